"""Thresholds that cut a score map into found and not found.

*Source:* N. Otsu, "A threshold selection method from gray-level histograms", 1979. Otsu's threshold
cuts every map in two, also of a picture that does not show the object;
:func:`automatic_threshold` adds a rule for finding nothing.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

RELEVANCY_FLOOR = 0.5
"""A relevancy below it is nearer to a negative than to the prompt."""

LEAST_CONTRAST = 0.04
"""How far above the floor the best score must be for the object to count as present."""

COSINE_FLOOR = 0.2
"""The same for plain cosines of CLIP."""

CLOSE = 0.08
"""A best score nearer than this to the least score of a present object says neither yes nor no."""

Certainty = Literal["found", "uncertain", "absent", "unknown word"]
"""How certain an answer is; ``unknown word`` where the text tower does not know the words."""

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


def presence_threshold(*, compares: bool) -> float:
    """Returns the score that some pixel or point of a present object must reach.

    Args:
        compares: Whether scores are relevancies, not plain cosines.
    """
    return (RELEVANCY_FLOOR if compares else COSINE_FLOOR) + LEAST_CONTRAST


def presence(best: float, *, compares: bool) -> Certainty:
    """Tells whether an object is there by its best score, or that it is too close to tell.

    Args:
        best: The highest score of a picture or a scene.
        compares: Whether scores are relevancies, not plain cosines.
    """
    rise = best - presence_threshold(compares=compares)
    return "uncertain" if abs(rise) < CLOSE else "found" if rise > 0 else "absent"


def shown_certainty(certainty: Certainty, threshold: float) -> str:
    """Returns an answer as a legend shows it.

    Args:
        certainty: How certain it is.
        threshold: The least score of a match; infinity where nothing matches.
    """
    if certainty == "absent":
        return "not found"
    if certainty == "unknown word" or threshold == _NOTHING:
        return certainty
    return ("uncertain, " if certainty == "uncertain" else "") + f"from {threshold:.2f}"


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
