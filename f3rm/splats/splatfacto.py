"""Gaussians of a checkpoint of Nerfstudio's splatfacto, without its model, which needs CUDA."""

from collections.abc import Mapping

import torch
from torch import Tensor

from f3rm.splats.gaussians import Gaussians, flat_colours
from f3rm.splats.ply import MOST_GAUSSIANS, SplatFileError

_PARTS = ("means", "quats", "scales", "opacities", "features_dc", "features_rest")
_PREFIXES = ("_model.gauss_params.", "_model.")
"""Of parameters now, and before Nerfstudio 1.0."""
_LEAST_OPACITY = 1 / 255


def gaussians_of(state: Mapping[str, Tensor]) -> Gaussians:
    """Returns Gaussians in the run's frame: those that ``ns-export gaussian-splat`` writes.

    It leaves out what is not finite or has an opacity below 1/255: training makes both.

    Args:
        state: The pipeline's tensors by name. Scales are logarithms, opacities logits.

    Raises:
        SplatFileError: If it has no Gaussians, or too many.
    """
    found: dict[str, Tensor] = {}
    for part in _PARTS:
        names = [prefix + part for prefix in _PREFIXES if prefix + part in state]
        if not names:
            raise SplatFileError(f"The checkpoint has no {_PREFIXES[0]}{part}: it is no splat.")
        found[part] = state[names[0]].float()
    dc, rest = found["features_dc"][:, None], found["features_rest"]
    # Without higher harmonics splatfacto trains logits of colours.
    sh = torch.cat((dc, rest), dim=1) if rest.shape[1] else flat_colours(dc[:, 0].sigmoid())
    opacities = found["opacities"][:, 0].sigmoid()
    everything = torch.cat((*(found[name] for name in _PARTS[:3]), sh.flatten(1)), dim=1)
    kept = torch.isfinite(everything).all(dim=1) & (found["quats"].square().sum(dim=1) > 0)
    kept &= opacities >= _LEAST_OPACITY  # false for NaN
    gaussians = Gaussians(
        found["means"], found["quats"], found["scales"].exp(), opacities, sh
    ).subset(kept)
    if not 0 < len(gaussians) <= MOST_GAUSSIANS:
        raise SplatFileError(
            f"The checkpoint has {len(gaussians):,} Gaussians that can be seen; 1 to "
            f"{MOST_GAUSSIANS:,} can be opened. Train it longer, or prune it."
        )
    return gaussians
