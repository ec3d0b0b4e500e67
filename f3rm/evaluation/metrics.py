"""Metrics of a score map against a truth mask; pure functions on arrays.

A score map has one number per pixel, higher where the phrase fits better. ``docs/evaluation.md``
defines the metrics; :mod:`f3rm.evaluation.query_scores` chooses the pairs of views and queries.

Scores must be finite: every metric raises :class:`ScoreError` for NaN or infinity, because NaN
compares false with every number and would be a hit in one metric and a miss in another.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from f3rm.errors import F3rmError

ScoreMap = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]

RELEVANCY_THRESHOLD = 0.5
"""The fixed rule: above it, a phrase beats all four canonical phrases."""

_MINMAX_THRESHOLD = 0.7
_BOX = 30
_MAJORITY = 3  # pixels to each side: a window of 7 x 7
_BOUNDARY = 0.02  # width, as a share of the picture's diagonal


class ScoreError(F3rmError, ValueError):
    """Scores hold NaN or infinity."""


def require_finite(scores: Shaped[np.ndarray, "*shape"], name: str) -> None:
    """Refuses scores that are not finite.

    Args:
        scores: Any scores.
        name: Their name in the message.

    Raises:
        ScoreError: If one of them is NaN or infinite.
    """
    broken = int(scores.size - np.isfinite(scores).sum())
    if broken:
        msg = (
            f"{name} must be finite, but {broken} of {scores.size} are NaN or infinite. The "
            "training diverged or its features are damaged: check these with f3rm cache verify, "
            "then train again."
        )
        raise ScoreError(msg)


def iou(predicted: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float:
    """Returns the intersection over union of two masks.

    It is 0 if both are empty, as in OpenGaussian; in an evaluation this cannot happen, because a
    scored pair has true pixels.
    """
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 0.0


def boundary(mask: Mask) -> Mask:
    """Returns the inner edge of a mask, 2 % of the picture's diagonal wide.

    What is outside of the picture counts as outside of the mask.

    *Source:* boundary IoU (Cheng et al. 2021), the measure of LERF-Mask: a mask less its erosion.
    """
    width = max(1, round(_BOUNDARY * float(np.hypot(mask.shape[0], mask.shape[1]))))
    starts = [np.arange(side) for side in mask.shape]
    full = 2 * width + 1
    around = _window_sums(np.pad(mask, width), starts, [start + full for start in starts])
    return mask & (around < full**2)


def is_localised(scores: ScoreMap, region: Mask) -> bool:
    """Whether the highest score is in a region; if several pixels have it, all of them must be.

    *Source:* LERF (Kerr et al. 2023) section 4.2, for a box around the object. There, one of
    several equal pixels is enough, and a constant map would always be right.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "Scores")
    return bool(region[scores == scores.max()].all())


def box_region(ids: Int[np.ndarray, "height width"], wanted: tuple[int, ...]) -> Mask:
    """Returns the union of the bounding boxes of each wanted object, borders included."""
    region = np.zeros(ids.shape, dtype=bool)
    for number in wanted:
        rows, cols = np.nonzero(ids == number)
        if len(rows):
            region[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] = True
    return region


def fixed_mask(scores: Float[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Returns the fixed rule's mask: relevancy above :data:`RELEVANCY_THRESHOLD`.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "Scores")
    return scores > RELEVANCY_THRESHOLD


def minmax_mask(scores: ScoreMap) -> Mask:
    """Returns LangSplat's mask of a relevancy map.

    The map is averaged with its mean over 30 x 30 pixels (reflected at the border, the window
    reaching 15 pixels up and left, 14 down and right), stretched to [0, 1], thresholded at 0.7, and
    cleaned by the majority in 7 x 7 pixels. A map of one value gives an empty mask.

    *Source:* LangSplat (Qin et al. 2024) ``eval/evaluate_iou_loc.py``: there the stretched map is
    stretched again to [-1, 1], clipped and thresholded at 0.4, which is equivalent.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "Scores")
    blended = 0.5 * (_box_mean(scores) + scores)
    low, high = blended.min(), blended.max()
    stretched = (blended - low) / max(high - low, 1e-9)
    return majority(stretched > _MINMAX_THRESHOLD)


def _box_mean(scores: ScoreMap) -> Float[np.ndarray, "height width"]:
    before = _BOX // 2
    padded = np.pad(scores.astype(np.float64), (before, _BOX - 1 - before), mode="reflect")
    starts = [np.arange(side) for side in scores.shape]
    return _window_sums(padded, starts, [start + _BOX for start in starts]) / _BOX**2


def majority(mask: Mask) -> Mask:
    """Sets each pixel to the majority of the 7 x 7 pixels around it; a tie is false.

    *Source:* LangSplat ``eval/utils.py:smooth``. Its windows leave out the picture's last row and
    column; ours do too, for comparability.
    """
    sides = [np.arange(side) for side in mask.shape]
    starts = [np.maximum(side - _MAJORITY, 0) for side in sides]
    ends = [np.minimum(side + _MAJORITY + 1, len(side) - 1) for side in sides]
    lengths = [np.maximum(end - start, 0) for start, end in zip(starts, ends, strict=True)]
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    return 2 * _window_sums(mask, starts, ends) > np.outer(*lengths)


def _window_sums(
    values: Shaped[np.ndarray, "rows cols"],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
) -> Shaped[np.ndarray, "height width"]:
    """Sums ``values`` over a window per output pixel, given each window's start and end.

    Four look-ups in the table of cumulative sums make the cost independent of the window's size.
    """
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    top, left = starts[0][:, None], starts[1]
    bottom, right = ends[0][:, None], ends[1]
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]


def exclusive_mask(
    scores: Float[np.ndarray, "texts ..."], wanted: int, rivals: list[int]
) -> Bool[np.ndarray, "..."]:
    """Returns the pixels where a phrase meets the fixed rule and beats its rivals.

    Args:
        scores: Relevancy of each text, which already compares it with the canonical phrases.
        wanted: Index of the text.
        rivals: Indices of the texts that it must beat.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "Scores")
    mask = fixed_mask(scores[wanted])
    for rival in rivals:
        mask = mask & (scores[wanted] > scores[rival])
    return mask


def average_precision(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Returns the area under the precision-recall steps over all thresholds; 0 if nothing is true.

    It is ``sum_k (R_k - R_{k-1}) P_k`` over the distinct scores from high to low, without
    interpolation.

    *Source:* the definition of scikit-learn's ``average_precision_score``; the values are equal.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "Scores")
    positives = int(truth.sum())
    if positives == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # the last pixel of each distinct score
    found = np.cumsum(truth[order])[last]
    taken = np.arange(1, len(scores) + 1)[last]
    steps = np.diff(found, prepend=0) / positives
    return float((steps * (found / taken)).sum())


def auroc(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float | None:
    """Returns the probability that a positive score is above a negative one, a tie counting half.

    Returns:
        A number in [0, 1]; None if one of the sides has no scores.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(positive, "Positive scores")
    require_finite(negative, "Negative scores")
    if not (len(positive) and len(negative)):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))
