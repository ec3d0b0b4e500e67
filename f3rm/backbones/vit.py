"""Taps of vision transformers: one walk through the blocks that stops at the deepest tap.

A family (open_clip's, transformers') describes its network as a :class:`Vit`; the walk is the same
for all. Queries, keys and values are computed by the model's own weights, and the attention matrix
is built only where a tap asks for it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.layers import FACETS, LayerInfo
from f3rm.backbones.tap_values import apply_ops, select_tokens, select_weights
from f3rm.backbones.taps import Facet, Tap
from f3rm.backbones.vit_block import TokenFunction, VitBlock

DenseFunction = Callable[[str, Tensor, tuple[int, int]], Tensor]
"""A rule's name, the last block's input and the (rows, cols) of patches to features in the space of
the texts, (batch, patches, channels)."""


@dataclass(frozen=True)
class Vit:
    """A pre-norm vision transformer, as functions of its own modules.

    Attributes:
        embed: Images (batch, 3, height, width) to the first block's tokens (batch, tokens, width).
        blocks: Its blocks.
        norm: Its last norm.
        width: Channels of its tokens.
        patch_size: Pixels per patch.
        prefix_tokens: Tokens before the patches: the class token and registers.
        proj: What follows the last norm, or for a language model the tokens: the projection, where
            it has one.
        dense: Features by a last-block rule, where it has texts.
        head: From the last block's output to the library's pooled vector, where it has one.
        head_channels: Channels of that vector.
    """

    embed: TokenFunction
    blocks: Sequence[VitBlock]
    norm: TokenFunction
    width: int
    patch_size: int
    prefix_tokens: int = 1
    proj: TokenFunction | None = None
    dense: DenseFunction | None = None
    head: TokenFunction | None = None
    head_channels: int = 0

    @property
    def num_heads(self) -> int:
        """Heads of its attention."""
        return self.blocks[0].num_heads

    def layers(self) -> list[LayerInfo]:
        """Describes what taps can name."""
        own = ("proj",) if self.proj is not None else ()
        names = ["embed", *(str(index) for index in range(len(self.blocks)))]
        layers = [self._info(name, ("norm", *own)) for name in names]
        for index in range(1, len(layers)):
            last = index == len(self.blocks) and self.dense is not None
            ops = (*layers[index].ops, "dense") if last else layers[index].ops
            layers[index] = self._info(layers[index].name, ops, FACETS)
        layers.append(self._info("final", own))
        if self.head is not None:
            layers.append(LayerInfo("head", "vector", self.head_channels, 0))
        return layers

    def read(
        self, images: Float[Tensor, "batch 3 height width"], taps: Iterable[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps in one forward pass that stops at the deepest.

        Args:
            images: Normalised RGB, a whole number of patches high and wide.
            taps: What to read.

        Returns:
            One tensor per tap.
        """
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        by_depth: dict[int, list[Tap]] = {}
        for tap in taps:
            by_depth.setdefault(self._depth(tap), []).append(tap)
        tokens = self.embed(images)
        found = self._values({"token": tokens}, by_depth.get(-1, ()), grid)
        deepest = max(by_depth)
        for depth, block in enumerate(self.blocks[: deepest + 1]):
            here = by_depth.get(depth, [])
            for tap in [tap for tap in here if _rule(tap)]:
                found[tap] = self._dense_values(tap, tokens, grid)
                here.remove(tap)
            if here or depth < deepest:
                facets: set[Facet] = {tap.facet for tap in here}
                read = block.run(tokens, facets)
                tokens = read["token"]
                found |= self._values(read, here, grid)
        return found | self._last_values(tokens, by_depth.get(len(self.blocks), ()), grid)

    def _info(
        self, name: str, ops: tuple[str, ...], facets: tuple[Facet, ...] = ("token",)
    ) -> LayerInfo:
        return LayerInfo(
            name, "tokens", self.width, self.patch_size, facets, ops, self.prefix_tokens
        )

    def _depth(self, tap: Tap) -> int:
        """Returns the index of the block that a tap reads; ``embed`` comes before the first."""
        if tap.layer == "embed":
            return -1
        if tap.layer in ("final", "head"):
            return len(self.blocks)
        return int(tap.layer) % len(self.blocks)

    def _values(
        self, read: dict[Facet, Tensor], taps: Iterable[Tap], grid: tuple[int, int]
    ) -> dict[Tap, Tensor]:
        values: dict[Tap, Tensor] = {}
        for tap in taps:
            select = select_weights if tap.facet == "attn" else select_tokens
            chosen = select(read[tap.facet], tap, prefix_tokens=self.prefix_tokens, grid=grid)
            values[tap] = self._operated(chosen, tap)
        return values

    def _last_values(
        self, tokens: Tensor, taps: Iterable[Tap], grid: tuple[int, int]
    ) -> dict[Tap, Tensor]:
        normed = [tap for tap in taps if tap.layer == "final"]
        values = self._values({"token": self.norm(tokens)}, normed, grid) if normed else {}
        for tap in taps:
            if tap.layer == "head" and self.head is not None:
                values[tap] = apply_ops(self.head(tokens), tap.ops, "vector")
        return values

    def _dense_values(self, tap: Tap, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        features = self.dense(_rule(tap), tokens, grid) if self.dense is not None else tokens
        return apply_ops(features.unflatten(1, grid), tap.ops[1:], "map")

    def _operated(self, values: Tensor, tap: Tap) -> Tensor:
        own = {"norm": self.norm} | ({} if self.proj is None else {"proj": self.proj})
        form = tap.read_form("tokens")
        return apply_ops(values, tap.ops, form, model_ops=own, num_heads=self.num_heads)


def _rule(tap: Tap) -> str:
    """Returns the rule of a dense tap, and nothing for any other."""
    return str(tap.ops[0].arguments[0]) if tap.ops and tap.ops[0].name == "dense" else ""
