"""Positional encoding shared by both implementations of the trunk."""

import torch
from jaxtyping import Float
from torch import Tensor


def frequency_encoding(
    positions: Float[Tensor, "points 3"], num_frequencies: int
) -> Float[Tensor, "points encoding"]:
    """Computes ``sin`` and ``cos`` of ``2^k pi x`` for k = 0 ... num_frequencies - 1.

    *Source:* tiny-cuda-nn's Frequency encoding; only the order of the channels differs.
    """
    exponents = torch.arange(num_frequencies, device=positions.device, dtype=positions.dtype)
    angles = (positions[..., None] * (torch.pi * 2.0**exponents)).flatten(1)
    if angles.requires_grad:
        return torch.cat((angles.sin(), angles.cos()), -1)
    encoded = angles.new_empty(len(angles), 2 * angles.shape[1])  # the same without copies
    torch.sin(angles, out=encoded[:, : angles.shape[1]])
    torch.cos(angles, out=encoded[:, angles.shape[1] :])
    return encoded
