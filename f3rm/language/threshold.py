"""Thresholds that cut a score map into found and not found.

*Source:* N. Otsu, "A threshold selection method from gray-level histograms", 1979. Otsu's threshold
cuts every map in two, also of a picture that does not show the object;
:func:`automatic_threshold` adds a rule for finding nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RELEVANCY_FLOOR = 0.5
"""A relevancy below it is nearer to a negative than to the prompt."""

LEAST_CONTRAST = 0.04
"""How far above the floor the best score must be for the object to count as present."""

COSINE_FLOOR = 0.2
"""The same for plain cosines of CLIP."""

_BINS = 256
_NOTHING = float("inf")


def otsu_threshold(scores: Float[Tensor, " pixels"]) -> float:
    """Returns the cut that makes the variance between the two sides largest.

    Args:
        scores: At least one finite score; equal ones are returned as the threshold.
    """
    low, high = float(scores.min()), float(scores.max())
    if high <= low:
        return low
    counts = torch.histc(scores.float(), bins=_BINS, min=low, max=high).double()
    width = (high - low) / _BINS
    centres = low + width * (torch.arange(_BINS, device=scores.device).double() + 0.5)
    below = counts.cumsum(0)[:-1]  # (bins - 1): pixels left of each inner edge
    above = counts.sum() - below
    mass = (counts * centres).cumsum(0)
    mean_below = mass[:-1] / below.clamp_min(1)
    mean_above = (mass[-1] - mass[:-1]) / above.clamp_min(1)
    between = below * above * (mean_above - mean_below).square()
    best = torch.nonzero(between >= between.max() * (1 - 1e-12)).flatten()
    return low + width * (float(best.double().mean()) + 1)  # the middle of a plateau


def automatic_threshold(
    scores: Float[Tensor, " pixels"],
    *,
    floor: float = RELEVANCY_FLOOR,
    least_contrast: float = LEAST_CONTRAST,
) -> float:
    """Chooses the threshold of a picture in which the object may be absent.

    Args:
        scores: Absolute scores of a picture.
        floor: No lower score is ever found: 0.5 for relevancy; for cosines what is known of them.
        least_contrast: How far above the floor the best score must be; 0 for an object that is
            known to be there.

    Returns:
        Otsu's threshold or the floor, whichever is higher; infinity where nothing is found.
    """
    if float(scores.max()) < floor + least_contrast:
        return _NOTHING
    return max(floor, otsu_threshold(scores))


def found_from(
    scores: Float[Tensor, " pixels"], *, compares: bool, is_present: bool = False
) -> float:
    """Chooses the threshold of a query by :func:`automatic_threshold`.

    Args:
        scores: Its scores.
        compares: Whether they are relevancies, not plain cosines.
        is_present: Whether the object is known to be there.
    """
    return automatic_threshold(
        scores,
        floor=RELEVANCY_FLOOR if compares else COSINE_FLOOR,
        least_contrast=0.0 if is_present else LEAST_CONTRAST,
    )
