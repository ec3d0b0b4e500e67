"""A scene of 3D Gaussians, and their colours in the direction of a camera."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SH_0 = 0.28209479177387814
"""The constant harmonic: a colour is ``0.5 + SH_0 * f_dc``, plus the higher harmonics."""
MOST_DEGREES = 3
_SH_1 = 0.4886025119029199
_SH_2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_SH_3 = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


@dataclass(frozen=True)
class Gaussians:
    """Gaussians with opacity and view-dependent colour, in one frame: the *source* frame.

    Attributes:
        means: Centres, in units of the frame.
        quats: Rotations from a Gaussian's own axes to the frame, as w, x, y, z; never zero, of any
            length.
        scales: Standard deviations along the own axes, in units of the frame, > 0.
        opacities: Opacity at the centre, in [0, 1].
        sh: Coefficients of the real spherical harmonics of degree 0 to 3, for red, green and blue,
            in INRIA's order: 1, 4, 9 or 16 of them.
    """

    means: Float[Tensor, "gaussians 3"]
    quats: Float[Tensor, "gaussians 4"]
    scales: Float[Tensor, "gaussians 3"]
    opacities: Float[Tensor, " gaussians"]
    sh: Float[Tensor, "gaussians harmonics 3"]

    def __len__(self) -> int:
        return len(self.means)

    def subset(self, kept: Tensor) -> "Gaussians":
        """Returns some of the Gaussians, by a mask or by their numbers."""
        return replace(self, **{each.name: getattr(self, each.name)[kept] for each in fields(self)})

    def to(self, target: torch.device | torch.dtype) -> "Gaussians":
        """Returns the Gaussians on a device, or in a precision."""
        moved = {each.name: getattr(self, each.name).to(target) for each in fields(self)}
        return replace(self, **moved)

    def colours(self, eye: Float[Tensor, "3"]) -> Float[Tensor, "gaussians 3"]:
        """Returns RGB >= 0 as seen from a position in the source frame.

        *Source:* 3D Gaussian Splatting's ``eval_sh``, offset by one half and clipped at zero.
        """
        directions = functional.normalize(self.means - eye.to(self.means), dim=-1)
        basis = harmonics(directions, self.sh.shape[1])
        return (0.5 + (basis[..., None] * self.sh).sum(dim=1)).clamp_min(0)


def scaled_axes(
    quats: Float[Tensor, "gaussians 4"], scales: Float[Tensor, "gaussians 3"]
) -> Float[Tensor, "gaussians 3 3"]:
    """Returns axes as long as their standard deviations, in columns.

    The covariance of a Gaussian is ``axes @ axes.mT``.
    """
    w, x, y, z = functional.normalize(quats, dim=-1).unbind(-1)
    entries = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3)) * scales[:, None]


def flat_colours(rgb: Float[Tensor, "gaussians 3"]) -> Float[Tensor, "gaussians 1 3"]:
    """Returns the harmonics of colours that are the same from everywhere."""
    return ((rgb - 0.5) / SH_0)[:, None]


def harmonics(
    directions: Float[Tensor, "gaussians 3"], count: int
) -> Float[Tensor, "gaussians harmonics"]:
    """Evaluates real spherical harmonics with INRIA's signs and order.

    Args:
        directions: Unit vectors.
        count: How many: 1, 4, 9 or 16.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [torch.full_like(x, SH_0)]
    if count > 1:
        basis += [-_SH_1 * y, _SH_1 * z, -_SH_1 * x]
    if count > 4:
        a, b, c = _SH_2
        basis += [a * x * y, -a * y * z, b * (2 * zz - xx - yy), -a * x * z, c * (xx - yy)]
    if count > 9:
        a, b, c, d, e = _SH_3
        basis += [
            -a * y * (3 * xx - yy),
            b * x * y * z,
            -c * y * (4 * zz - xx - yy),
            d * z * (2 * zz - 3 * xx - 3 * yy),
            -c * x * (4 * zz - xx - yy),
            e * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)
