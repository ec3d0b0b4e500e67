"""The means of an evaluation, each over named units and with a bootstrap interval.

Every mean is a quotient of two sums over rows of an evaluation's JSON (queries, absent prompts,
views), so that one definition serves a run and the pool of several. A row is drawn with all that
was measured of it: the pairs of one query show the same objects and are not independent. Of several
evaluations the scenes are drawn first, then the rows of each.

*Source:* the percentile bootstrap (Efron, 1979), in two stages for several scenes (Davison and
Hinkley, 1997, section 3.8).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from f3rm.evaluation.metrics import auroc

FOUND_IOU = 0.25
"""A true object is found if its partner's box has at least this IoU with its own."""

ANSWERS = ("", "teacher_")
"""Prefixes of the numbers that are measured of the field and of its 2D teacher."""

_DRAWS = 2000
_LEVEL = 95

Row = Mapping[str, Any]
Parts = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """A mean, and how much it would vary with other queries, views or scenes.

    Attributes:
        value: The mean.
        low: Lower end of the 95 % interval.
        high: Its upper end.
        count: Number of values that it is over.
        unit: What these are.
    """

    value: float
    low: float
    high: float
    count: int
    unit: str

    def interval(self) -> dict[str, Any]:
        """Returns everything but the value, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "value"}


def no_interval(name: str) -> dict[str, Any]:
    """Returns the interval of a mean over nothing, for JSON."""
    unit = _auroc_unit(per_scene=AUROCS[name][1]) if name in AUROCS else MEANS[name].unit
    return {"low": None, "high": None, "count": 0, "unit": unit}


@dataclass(frozen=True)
class _Quotient:
    """A mean as a quotient of sums over rows.

    Attributes:
        unit: What the values are.
        parts: What a row adds to numerator and denominator.
        rows: The lists of rows.
        is_count: Whether the denominator is the number of values; if not, rows are counted.
    """

    unit: str
    parts: Callable[[Row], Parts]
    rows: tuple[str, ...] = ("queries",)
    is_count: bool = True


def _of(name: str, weight: str | None = None) -> Callable[[Row], Parts]:
    """Returns the parts of a row's own mean, weighted by another of its numbers."""

    def parts(row: Row) -> Parts:
        value = row.get(name)
        if value is None:
            return 0.0, 0.0
        share = 1.0 if weight is None else float(row[weight])
        return value * share, share

    return parts


def _each(name: str) -> Callable[[Row], Parts]:
    """Returns the parts of a list of values."""
    return lambda row: (sum(row.get(name) or ()), len(row.get(name) or ()))


def _hits(row: Row) -> int:
    return sum(iou >= FOUND_IOU for iou in row.get("box_ious") or ())


def _matched(row: Row) -> Parts:
    found = [iou for iou in row.get("box_ious") or () if iou >= FOUND_IOU]
    return float(sum(found)), float(len(found))


def _nothing(row: Row) -> int:
    return int(row.get("instances") == 0)


def _nothing_absent(row: Row) -> int:
    return _nothing(row) * ("kind" in row)


def _asked(row: Row) -> int:
    return int(row.get("instances") is not None)


def _of_answers(who: str) -> dict[str, _Quotient]:
    per_pair = ("localisation", "localisation_mask")
    per_query = ("miou", "miou_minmax", "miou_argmax", "miou_boundary", "average_precision")
    maxima = _each(f"{who}max_relevancies")
    return {
        **{f"{who}{name}": _Quotient("pairs", _of(f"{who}{name}", "views")) for name in per_pair},
        **{f"{who}{name}": _Quotient("queries", _of(f"{who}{name}")) for name in per_query},
        f"{who}present_max_relevancy": _Quotient("pairs", maxima),
        f"{who}absent_max_relevancy": _Quotient("pairs", maxima, ("absent",)),
        f"{who}absent_found": _Quotient("prompts", _of(f"{who}found_share"), ("absent",)),
    }


def _ratio(row: Row) -> Parts:
    field, teacher = row.get("miou"), row.get("teacher_miou")
    return (0.0, 0.0) if field is None or teacher is None else (field, teacher)


MEANS: Mapping[str, _Quotient] = {
    **{name: mean for who in ANSWERS for name, mean in _of_answers(who).items()},
    "miou_ratio": _Quotient("queries", _ratio, is_count=False),
    "point_iou": _Quotient("queries", _of("point_iou")),
    "find_box_iou": _Quotient("objects", _each("box_ious")),
    "find_matched_iou": _Quotient("objects", _matched),
    "find_visible_iou": _Quotient("objects", _each("visible_ious")),
    "find_box_iou_ceiling": _Quotient("objects", _each("box_iou_ceilings")),
    "find_centre_error": _Quotient("objects", _of("centre_error", "matched")),
    "find_recall": _Quotient("objects", lambda row: (_hits(row), len(row.get("box_ious") or ()))),
    "find_precision": _Quotient(
        "instances", lambda row: (_hits(row), row.get("instances") or 0), ("queries",)
    ),
    "not_found_recall": _Quotient("prompts", lambda row: (_nothing(row), _asked(row)), ("absent",)),
    "not_found_precision": _Quotient(
        "prompts",
        lambda row: (_nothing(row) * ("kind" in row), _nothing(row)),
        ("queries", "absent"),
    ),
    "psnr": _Quotient("views", _of("psnr"), ("views",)),
    "feature_cosine_bilinear": _Quotient("views", _of("feature_cosine_bilinear"), ("views",)),
    "feature_cosine_constant": _Quotient("views", _of("feature_cosine_constant"), ("views",)),
}
"""Every mean over rows, by name; absent prompts are the rows with a kind."""

AUROCS = {
    f"{who}{name}": (f"{who}max_relevancies", per_scene)
    for who in ANSWERS
    for name, per_scene in (("presence_auroc", False), ("presence_auroc_scene", True))
}
"""Every AUROC of present queries above absent prompts: the rows' list, and whether each row counts
by its largest value alone."""


def mean_over(name: str, found: Sequence[Mapping[str, Any]]) -> Mean | None:
    """Returns a number of one evaluation, or of several pooled; None for a mean over nothing.

    Args:
        name: A name in :data:`MEANS` or :data:`AUROCS`; of any other number, the mean over
            evaluations.
        found: Evaluations as their JSON has them.
    """
    if name in AUROCS:
        key, per_scene = AUROCS[name]
        return _auroc_over(key, found, per_scene=per_scene)
    mean = MEANS.get(name)
    if mean is None:
        mean = _Quotient("scenes", _of(name), ("scenes",))
        found = [{"scenes": [one]} for one in found]
    parts = [
        [[mean.parts(row) for row in one.get(key) or ()] for one in found] for key in mean.rows
    ]
    sums = np.array([part for kind in parts for rows in kind for part in rows], float)
    totals = sums.reshape(-1, 2).sum(axis=0)
    if totals[1] <= 0:
        return None
    counts = np.concatenate(_resampled(parts), axis=1)  # (draws, rows)
    drawn = counts @ sums
    count = totals[1] if mean.is_count else (sums[:, 1] > 0).sum()
    return _mean(totals[0] / totals[1], drawn[:, 0], drawn[:, 1], round(count), mean.unit)


def _auroc_over(key: str, found: Sequence[Mapping[str, Any]], *, per_scene: bool) -> Mean | None:
    rows = [
        [_maxima(one.get(kind) or (), key, per_scene=per_scene) for one in found]
        for kind in ("queries", "absent")
    ]
    present, absent = ([values for one in kind for values in one] for kind in rows)
    if not (present and absent):
        return None
    pairs = np.array([[len(p) * len(a) for a in absent] for p in present], float)
    shares = np.array([[auroc(p, a) or 0.0 for a in absent] for p in present])
    wins = shares * pairs
    of_present, of_absent = _resampled(rows)
    won, compared = (((of_present @ table) * of_absent).sum(axis=1) for table in (wins, pairs))
    count = sum(len(values) for values in (*present, *absent))
    unit = _auroc_unit(per_scene=per_scene)
    return _mean(wins.sum() / pairs.sum(), won, compared, count, unit)


def _auroc_unit(*, per_scene: bool) -> str:
    return "prompts" if per_scene else "pairs"


def _maxima(rows: Sequence[Row], key: str, *, per_scene: bool) -> list[Float[np.ndarray, " n"]]:
    values = [np.array(row[key], float) for row in rows if row.get(key)]
    return [row.max(keepdims=True) for row in values] if per_scene else values


def _resampled(kinds: Sequence[Sequence[Sequence[Any]]]) -> list[Int[np.ndarray, "draws _"]]:
    """Draws scenes, then as many rows of each as it has, with replacement.

    Args:
        kinds: For each kind of row, the rows of each scene.

    Returns:
        For each kind, how often each row was drawn, in the order of scenes and rows.
    """
    rng = np.random.default_rng(0)
    scenes = len(kinds[0])
    drawn = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=_DRAWS)  # (draws, scenes)
    return [
        np.concatenate(
            [
                rng.multinomial(drawn[:, scene] * len(rows), np.full(len(rows), 1 / len(rows)))
                if len(rows)
                else np.zeros((_DRAWS, 0), int)
                for scene, rows in enumerate(kind)
            ],
            axis=1,
        )
        for kind in kinds
    ]


def _mean(
    value: float,
    numerators: Float[np.ndarray, " draws"],
    denominators: Float[np.ndarray, " draws"],
    count: int,
    unit: str,
) -> Mean:
    known = denominators > 0
    edge = (100 - _LEVEL) / 2
    low, high = np.percentile(numerators[known] / denominators[known], [edge, 100 - edge])
    return Mean(float(value), float(low), float(high), count, unit)
