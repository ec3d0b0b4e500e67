"""Parts of Nerfacto that launch many small kernels, made faster with the same bits."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.field_components.encodings import HashEncoding, SHEncoding
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.base_field import Field
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.utils.math import Gaussians
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        contracted: Any = _Contract.apply(positions)
        return contracted


class _Contract(torch.autograd.Function):
    """The contraction, whose gradient takes 17 kernels; torch would derive one of 45."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor) -> Tensor:
        x, y, z = positions.abs().unbind(-1)
        size = torch.maximum(torch.maximum(x, y), z)[..., None]
        inverse = size.reciprocal()
        scale, unit, is_inside = 2 - inverse, positions / size, size < 1
        ctx.save_for_backward(size, inverse, scale, unit, is_inside)
        return torch.where(is_inside, positions, scale * unit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        size, inverse, scale, unit, is_inside = ctx.saved_tensors
        of_unit = gradient * scale
        of_scale = (gradient * unit).sum(-1, keepdim=True)
        of_size = of_scale * (inverse * inverse) - (of_unit * (unit / size)).sum(-1, keepdim=True)
        largest = unit.trunc()  # -1 or 1 where a coordinate is the largest, which share its slope
        of_largest = largest * (of_size / largest.abs().sum(-1, keepdim=True))
        return torch.where(is_inside, gradient, of_unit / size + of_largest)


class FastHarmonics(SHEncoding):
    """Nerfstudio's spherical harmonics of degree 0 to 3: 33 kernels in place of 73.

    *Source:* ``components_from_spherical_harmonics`` of Nerfstudio, with its products in its order.
    """

    @torch.no_grad()
    def pytorch_fwd(self, in_tensor: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs components"]:
        """Encodes directions, in float32 whatever their precision."""
        x, y, z = in_tensor.unbind(-1)
        xx, yy, zz = (in_tensor**2).unbind(-1)
        linear_x, linear_y, linear_z = (0.4886025119029199 * in_tensor).unbind(-1)
        cross_x, cross_y, _ = (1.0925484305920792 * in_tensor).unbind(-1)
        side_x, side_y, _ = (0.5900435899266435 * in_tensor).unbind(-1)
        pole_x, pole_y, _ = (0.4570457994644658 * in_tensor).unbind(-1)
        difference, high = xx - yy, 5 * zz
        higher = high - 1
        harmonics = (
            *(linear_y, linear_z, linear_x),
            *(cross_x * y, cross_y * z, 0.9461746957575601 * zz - 0.31539156525251999, cross_x * z),
            *(
                0.5462742152960396 * difference,
                side_y * (3 * xx - yy),
                2.890611442640554 * x * y * z,
            ),
            *(pole_y * higher, 0.3731763325901154 * z * (high - 3), pole_x * higher),
            *(1.445305721320277 * z * difference, side_x * (xx - 3 * yy)),
        )
        constant = torch.full_like(x[..., None], 0.28209479177387814, dtype=torch.float32)
        return torch.cat((constant, torch.stack(harmonics, dim=-1)), dim=-1)


class FastCameraOptimizer(CameraOptimizer):
    """Nerfstudio's camera optimizer; matrices are joined, as writing into zeros takes more kernels.

    *Source:* ``exp_map_SO3xR3`` of Nerfstudio, with its sums and their gradients in its order.
    """

    def forward(self, indices: Int[Tensor, " cameras"]) -> Float[Tensor, "cameras 3 4"]:
        """Returns the corrections of some cameras."""
        if self.config.mode != "SO3xR3" or self.non_trainable_camera_indices is not None:
            return super().forward(indices)
        tangents = self.pose_adjustment[indices, :]
        turns = tangents[:, 3:]
        angles = (turns * turns).sum(1).clamp(1e-4).sqrt()
        inverses = angles.reciprocal()
        first = inverses * angles.sin()
        second = inverses * inverses * (1.0 - angles.cos())
        x, y, z = turns.unbind(1)
        zero = torch.zeros_like(x)
        rows = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=1)
        skews = rows.view(-1, 3, 3)
        squares = torch.bmm(skews, skews)
        turned = first[:, None, None] * skews + second[:, None, None] * squares
        turned = turned + torch.eye(3, dtype=turns.dtype, device=turns.device)
        return torch.cat((turned, tangents[:, :3, None]), dim=-1)


@dataclass(frozen=True)
class _At:
    """Positions, with as much of Nerfstudio's ``RaySamples`` as a density reads."""

    positions: Float[Tensor, "*bs 3"]

    @property
    def frustums(self) -> "_At":
        return self

    @property
    def shape(self) -> torch.Size:
        return self.positions.shape[:-1]

    def get_positions(self) -> Float[Tensor, "*bs 3"]:
        return self.positions


def _density_at(field: Field, positions: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs 1"]:
    """``Field.density_fn`` without frustums: 0 is not added to positions."""
    samples: Any = _At(positions)
    return field.get_density(samples)[0]


def use_fast_encodings(model: nn.Module, implementation: Implementation = "torch") -> None:
    """Replaces parts of a Nerfstudio model by those that compute the same with fewer kernels.

    Parameters, their names, the outputs and their gradients stay the same, bit by bit but for the
    slopes of hash grids.

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
        elif type(module) is SHEncoding and module.tcnn_encoding is None and module.levels == 4:
            module.__class__ = FastHarmonics
        elif type(module) is CameraOptimizer:
            module.__class__ = FastCameraOptimizer
    if isinstance(model, NerfactoModel):
        # Importing it imports transformers, which no start of ns-train should wait for.
        from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415

        networks: list[Any] = [*model.proposal_networks]
        rounds = range(len(model.density_fns))
        model.density_fns = [
            partial(_density_at, networks[min(n, len(networks) - 1)]) for n in rounds
        ]
        # The metric's class also keeps sums over all batches, which nobody reads.
        del model.psnr
        vars(model)["psnr"] = partial(peak_signal_noise_ratio, data_range=1.0)
