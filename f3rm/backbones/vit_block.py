"""One pre-norm transformer block, taken apart into what taps can name."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.taps import Facet

TokenFunction = Callable[[Tensor], Tensor]
"""Tokens (batch, tokens, channels) to tokens."""

Heads = Float[Tensor, "batch heads tokens head_channels"]


@dataclass(frozen=True)
class VitBlock:
    """A block as functions of its own modules; its forward is the library's, in parity tests.

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
        """Returns what the attention adds to the stream, from the mixed values of its heads."""
        return self.scale1(self.out(merged(mixed)))

    def transformed(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Returns what the MLP adds to the stream."""
        return self.scale2(self.mlp(self.norm2(tokens)))

    def run(
        self, tokens: Float[Tensor, "batch tokens width"], facets: Collection[Facet] = ("token",)
    ) -> dict[Facet, Tensor]:
        """Runs the block.

        Args:
            tokens: Its input.
            facets: What is needed.

        Returns:
            At least these and ``token``, the output: (batch, tokens, width) each, with the heads of
            queries, keys and values side by side, and for ``attn`` (batch, heads, tokens, tokens).
        """
        queries, keys, values = self.heads(tokens)
        attended = self.attended(F.scaled_dot_product_attention(queries, keys, values))
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
            found["attn"] = (scale * queries @ keys.transpose(-1, -2)).softmax(dim=-1)
        return found


def merged(split: Heads) -> Float[Tensor, "batch tokens width"]:
    """Puts the channels of all heads side by side."""
    return split.transpose(1, 2).flatten(2)
