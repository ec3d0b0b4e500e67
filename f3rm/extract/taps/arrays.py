"""Small operations on what taps give: axes, the class token, vectors beside maps."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def channels_first(values: Shaped[Tensor, "items *axes channels"]) -> Shaped[Tensor, "items ..."]:
    """Moves the channels before the other axes of every item, as most decoders want them."""
    return values.movedim(-1, 1)


def map_of_tokens(
    tokens: Shaped[Tensor, "items tokens channels"], *, prefix: int = 1
) -> Shaped[Tensor, "items rows cols channels"]:
    """Drops leading tokens and puts the patches of a square input on their grid.

    Args:
        tokens: Class token and registers first, then patches row by row.
        prefix: How many come before the patches.

    Raises:
        ValueError: If the patches fill no square.
    """
    num_patches = tokens.shape[1] - prefix
    side = math.isqrt(max(0, num_patches))
    if side < 1 or side * side != num_patches:
        msg = (
            f"map_of_tokens: patches must fill a square, got {num_patches}. Extract @patch instead "
            "of @all, which keeps rows and columns."
        )
        raise ValueError(msg)
    return tokens[:, prefix:].unflatten(1, (side, side))


def broadcast_concat(
    maps: Float[Tensor, "items rows cols channels"], vectors: Float[Tensor, "items others"]
) -> Float[Tensor, "items rows cols both"]:
    """Puts a vector of every item beside each of its cells."""
    tiled = vectors[:, None, None].expand(-1, maps.shape[1], maps.shape[2], -1)
    return torch.cat([maps, tiled], dim=-1)
