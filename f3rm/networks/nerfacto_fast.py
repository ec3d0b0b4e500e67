"""Nerfacto's torch hash encoding and contraction, made faster with the same bits."""

import math
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.utils.math import Gaussians
from torch import Tensor, nn

from f3rm.networks.fast import PRIMES, Implementation, Levels, interpolate, is_fast

_POINTS_AT_ONCE = 1 << 16
"""Points whose corners torch holds at once where no gradient is recorded."""


class FastHashEncoding(HashEncoding):
    """Nerfstudio's torch hash encoding, bit by bit, in a tenth of its time.

    Every level is hashed, the coarse ones too. Slopes differ exactly on the border of two cells,
    where Nerfstudio's are zero. In Triton values differ by roundings, and are half under autocast.
    """

    implementation: Implementation = "torch"

    @cached_property
    def _levels(self) -> Levels:
        count = self.num_levels
        return Levels(
            scales=self.scalings.cpu().numpy().astype(np.float32),
            tops=np.full(count, np.inf, dtype=np.float32),  # Nerfstudio hashes corners beyond 1 too
            strides=np.tile(np.array(PRIMES, dtype=np.int64), (count, 1)),
            masks=np.full(count, self.hash_table_size - 1, dtype=np.int64),
            offsets=self.hash_offset.cpu().numpy().astype(np.int64),
        )

    def pytorch_fwd(self, in_tensor: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs encoding"]:
        """Encodes positions in [0, 1]^3."""
        if not is_fast(in_tensor, self.hash_table, self.implementation):
            return self._in_parts(in_tensor)
        points = in_tensor.reshape(-1, 3)
        encoded = interpolate(points, self.hash_table, self._levels, self.implementation)
        return encoded.view(*in_tensor.shape[:-1], self.get_out_dim())

    def _in_parts(self, in_tensor: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs encoding"]:
        """Encodes as Nerfstudio does, with a bounded number of corners at once."""
        if torch.is_grad_enabled():
            return super().pytorch_fwd(in_tensor)
        parts = in_tensor.reshape(-1, 3).split(_POINTS_AT_ONCE)
        encoded = torch.cat([HashEncoding.pytorch_fwd(self, part) for part in parts])
        return encoded.view(*in_tensor.shape[:-1], self.get_out_dim())


class FastContraction(SceneContraction):
    """Nerfstudio's contraction by the largest coordinate.

    ``torch.linalg.norm`` over three numbers takes many times as long as two maxima, a fifth of a
    rendered frame on a CPU.
    """

    def forward(self, positions: Tensor | Gaussians) -> Tensor | Gaussians:
        """Contracts positions (..., 3) to [-2, 2]^3; Gaussians as Nerfstudio does."""
        if isinstance(positions, Gaussians):
            return super().forward(positions)
        x, y, z = positions.abs().unbind(-1)
        size = torch.maximum(torch.maximum(x, y), z)[..., None]
        # ``1 / size`` would be two operations, its gradient one more.
        return torch.where(size < 1, positions, (2 - size.reciprocal()) * (positions / size))


def use_fast_encodings(model: nn.Module, implementation: Implementation = "torch") -> None:
    """Replaces the torch hash encodings and contractions of a Nerfstudio model by the fast ones.

    Parameters, their names and the outputs stay the same.

    Args:
        model: The model.
        implementation: ``triton`` reads hash grids in Triton; numba reads them on a CPU otherwise.
    """
    for module in model.modules():
        # Changing the class keeps the module where it is, with its parameters and hooks.
        if type(module) is HashEncoding and module.tcnn_encoding is None:
            module.__class__ = FastHashEncoding
            vars(module)["implementation"] = implementation
        elif type(module) is SceneContraction and module.order == math.inf:
            module.__class__ = FastContraction
