"""Vision transformers taken apart for taps: one walk through the blocks, up to the deepest tap.

A family (open_clip's, transformers') describes its network as a :class:`Vit` of :class:`VitBlock`;
the walk is the same for all. Queries, keys and values are computed by the model's own weights, and
the attention matrix is built only where a tap asks for it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.layers import FACETS, LayerInfo
from f3rm.backbones.tap_values import apply_ops, select_tokens, select_weights
from f3rm.backbones.taps import Facet, Tap

TokenFunction = Callable[[Tensor], Tensor]
"""Tokens (batch, tokens, channels) to tokens."""

DenseFunction = Callable[[str, Tensor, tuple[int, int]], Tensor]
"""A rule's name, the last block's input and the (rows, cols) of patches to features in the space of
the texts, (batch, patches, channels)."""

Heads = Float[Tensor, "batch heads tokens head_channels"]

Rotation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries and keys, each (batch, heads, tokens, head_channels), turned by their positions."""


@dataclass(frozen=True)
class VitBlock:
    """A pre-norm block as functions of its own modules; parity tests compare it with the library's.

    Attributes:
        norm1: The norm before the attention.
        qkv: Normed tokens to queries, keys and values side by side, (batch, tokens, 3 * width).
        out: The attention's output projection.
        norm2: The norm before the MLP.
        mlp: The MLP.
        num_heads: Heads of the attention.
        scale1: Layer scale of the attention.
        scale2: Layer scale of the MLP.
    """

    norm1: TokenFunction
    qkv: TokenFunction
    out: TokenFunction
    norm2: TokenFunction
    mlp: TokenFunction
    num_heads: int
    scale1: TokenFunction = field(default_factory=nn.Identity)
    scale2: TokenFunction = field(default_factory=nn.Identity)

    def heads(self, tokens: Float[Tensor, "batch tokens width"]) -> tuple[Heads, Heads, Heads]:
        """Returns queries, keys and values per head, of a block's input."""
        projected = self.qkv(self.norm1(tokens))  # (batch, tokens, 3 * width)
        split = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]

    def attended(self, mixed: Heads) -> Float[Tensor, "batch tokens width"]:
        """Returns the attention's addition to the stream, from the mixed values of its heads."""
        return self.scale1(self.out(merged(mixed)))

    def transformed(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Returns the MLP's addition to the stream."""
        return self.scale2(self.mlp(self.norm2(tokens)))

    def run(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        facets: Collection[Facet] = ("token",),
        rotate: Rotation | None = None,
    ) -> dict[Facet, Tensor]:
        """Runs the block.

        The libraries' own forwards may build the attention matrix on a CPU (open_clip's does):
        measured at 4000 tokens and 16 heads, the fused attention here is 14 times faster and needs
        1 GB less.

        Returns:
            At least the facets asked for and ``token``, the block's output: (batch, tokens, width)
            each, with the heads of queries, keys and values side by side, and for ``attn`` (batch,
            heads, tokens, tokens). Queries and keys are those before a rotation.
        """
        queries, keys, values = self.heads(tokens)
        turned = rotate(queries, keys) if rotate is not None else (queries, keys)
        asking, asked = (each.to(values.dtype) for each in turned)
        attended = self.attended(F.scaled_dot_product_attention(asking, asked, values))
        transformed = self.transformed(tokens + attended)
        found: dict[Facet, Tensor] = {
            "token": tokens + attended + transformed,
            "attn_out": attended,
            "mlp_out": transformed,
        }
        splits: dict[Facet, Tensor] = {"query": queries, "key": keys, "value": values}
        found |= {facet: merged(splits[facet]) for facet in splits if facet in facets}
        if "attn" in facets:
            scale = queries.shape[-1] ** -0.5
            found["attn"] = (scale * asking @ asked.transpose(-1, -2)).softmax(dim=-1)
        return found

    def run_alone(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Runs the block with every token attending to itself alone, so to its own value."""
        attended = tokens + self.attended(self.heads(tokens)[2])
        return attended + self.transformed(attended)


def merged(split: Heads) -> Float[Tensor, "batch tokens width"]:
    """Puts the channels of all heads side by side."""
    return split.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Vit:
    """A vision transformer, as functions of its own modules.

    Attributes:
        embed: Images (batch, 3, height, width) to the first block's tokens (batch, tokens, width).
        blocks: Its blocks.
        norm: Its last norm.
        width: Channels of its tokens.
        patch_size: Pixels per patch.
        prefix_tokens: Tokens before the patches: the class token and registers.
        proj: The projection, where it has one: into the space of the texts after the last norm, or
            into a language model's inputs straight from the tokens.
        dense: Features by a last-block rule, where it has texts.
        head: From the last block's output to the library's pooled vector, where it has one.
        head_channels: Channels of that vector.
        rotation: Images to the rotation of queries and keys, where positions enter by one.
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
    rotation: Callable[[Tensor], Rotation] | None = None

    @property
    def num_heads(self) -> int:
        """Heads of its attention."""
        return self.blocks[0].num_heads

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name."""
        own = ("proj",) if self.proj is not None else ()
        layers = [self._info("embed", ("norm", *own))]
        for index in range(len(self.blocks)):
            has_rules = index == len(self.blocks) - 1 and self.dense is not None
            ops = ("norm", *own, "dense") if has_rules else ("norm", *own)
            layers.append(self._info(str(index), ops, FACETS))
        layers.append(self._info("final", own))
        if self.head is not None:
            layers.append(LayerInfo("head", "vector", self.head_channels, 0))
        return layers

    def _info(
        self, name: str, ops: tuple[str, ...], facets: tuple[Facet, ...] = ("token",)
    ) -> LayerInfo:
        return LayerInfo(
            name, "tokens", self.width, self.patch_size, facets, ops, self.prefix_tokens
        )

    def read(
        self, images: Float[Tensor, "batch 3 height width"], taps: Iterable[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps in one forward pass that stops at the deepest.

        Args:
            images: Normalised RGB, a whole number of patches high and wide.
            taps: At least one.
        """
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        by_depth: dict[int, list[Tap]] = {}
        for tap in taps:
            by_depth.setdefault(self._depth(tap), []).append(tap)
        tokens = self.embed(images)
        rotate = None if self.rotation is None else self.rotation(images)
        found = self._values({"token": tokens}, by_depth.get(-1, ()), grid)
        deepest = max(by_depth)
        for depth, block in enumerate(self.blocks[: deepest + 1]):
            here = by_depth.get(depth, [])
            plain = [tap for tap in here if not _rule(tap)]
            for tap in here:
                if _rule(tap):
                    found[tap] = self._dense_value(tap, tokens, grid)
            # A rule replaces the block, so that the block runs only where something else needs it.
            if plain or depth < deepest:
                facets: set[Facet] = {tap.facet for tap in plain}
                read = block.run(tokens, facets, rotate)
                tokens = read["token"]
                found |= self._values(read, plain, grid)
        last = by_depth.get(len(self.blocks), [])
        final = [tap for tap in last if tap.layer == "final"]
        if final:
            found |= self._values({"token": self.norm(tokens)}, final, grid)
        for tap in last:
            if tap.layer == "head" and self.head is not None:
                found[tap] = apply_ops(self.head(tokens), tap.ops, "vector")
        return found

    def _depth(self, tap: Tap) -> int:
        """Returns the index of the block that a tap reads; ``embed`` comes before the first."""
        if tap.layer == "embed":
            return -1
        if tap.layer in ("final", "head"):
            return len(self.blocks)
        return int(tap.layer) % len(self.blocks)

    def _values(
        self, read: Mapping[Facet, Tensor], taps: Iterable[Tap], grid: tuple[int, int]
    ) -> dict[Tap, Tensor]:
        own = {"norm": self.norm} | ({} if self.proj is None else {"proj": self.proj})
        values: dict[Tap, Tensor] = {}
        for tap in taps:
            select = select_weights if tap.facet == "attn" else select_tokens
            chosen = select(read[tap.facet], tap, prefix_tokens=self.prefix_tokens, grid=grid)
            values[tap] = apply_ops(
                chosen, tap.ops, tap.read_form("tokens"), model_ops=own, num_heads=self.num_heads
            )
        return values

    def _dense_value(self, tap: Tap, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        assert self.dense is not None  # noqa: S101 (check_tap refuses dense taps without rules)
        features = self.dense(_rule(tap), tokens, grid)
        return apply_ops(features.unflatten(1, grid), tap.ops[1:], "map")


def _rule(tap: Tap) -> str:
    """Returns the rule of a dense tap, and nothing for any other."""
    return str(tap.ops[0].arguments[0]) if tap.ops and tap.ops[0].name == "dense" else ""
