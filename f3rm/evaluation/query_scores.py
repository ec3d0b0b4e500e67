"""Scores of queries over the held-out views: one pair of view and query at a time, then means.

The same code judges the field and its 2D teacher. A pair is scored where at least
:data:`MIN_PIXELS` pixels of the view show what the query names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from f3rm.evaluation.metrics import (
    auroc,
    average_precision,
    box_region,
    exclusive_mask,
    fixed_mask,
    iou,
    is_localised,
    minmax_mask,
    require_finite,
)
from f3rm.evaluation.vocabulary import Vocabulary

MIN_PIXELS = 64
"""A query is scored in a view only if so many pixels show what it names."""

Scores = Float[np.ndarray, "texts height width"]
"""Relevancy of every text of a vocabulary at every pixel of a photograph."""


@dataclass(frozen=True)
class PairScore:
    """What a score map is worth for one query in one view.

    Attributes:
        view: Name of the photograph.
        pixels: How many pixels show what the query names.
        localised: Whether the highest score lies in the bounding box of one of its objects.
        localised_mask: Whether it lies in its mask, so on the object itself.
        iou: Of the fixed rule's mask.
        iou_minmax: Of LangSplat's mask.
        iou_argmax: Of the pixels where the query beats every phrase for something else.
        max_relevancy: The highest score in the view.
    """

    view: str
    pixels: int
    localised: bool
    localised_mask: bool
    iou: float
    iou_minmax: float
    iou_argmax: float
    max_relevancy: float


@dataclass(frozen=True)
class QueryScore:
    """A query's numbers over the views that show it.

    Attributes:
        text: The query.
        pairs: One record per view, in their order; empty where no view shows it.
        average_precision: Over the pixels of all these views together; None without views.
    """

    text: str
    pairs: tuple[PairScore, ...]
    average_precision: float | None

    def mean(self, value: Callable[[PairScore], float]) -> float | None:
        """Returns the mean of a number over the views, or None without views."""
        return mean_of([value(pair) for pair in self.pairs])


@dataclass(frozen=True)
class PresenceScore:
    """How far scores of what is in the scene stand above scores of what is not.

    Attributes:
        absent: Highest score per absent phrase and view.
        present: Highest score per query and view that shows it.
        absent_share: Share of pixels that the fixed rule finds for absent phrases, over all views.
        per_view: Probability that a present maximum is above an absent one, per view.
        per_scene: The same, of each phrase's maximum over all views.
    """

    absent: Float[np.ndarray, " absent"]
    present: Float[np.ndarray, " present"]
    absent_share: float | None
    per_view: float | None
    per_scene: float | None

    @classmethod
    def nothing(cls) -> "PresenceScore":
        """What is known where nothing was asked."""
        return cls(np.zeros(0), np.zeros(0), None, None, None)


@dataclass(frozen=True)
class Answers:
    """Everything that score maps of all held-out views gave.

    Attributes:
        queries: One record per query.
        presence: How present and absent phrases compare.
    """

    queries: tuple[QueryScore, ...]
    presence: PresenceScore


@dataclass
class QueryScores:
    """Collects score maps view by view.

    Attributes:
        vocabulary: The phrases, in the order of the score maps.
    """

    vocabulary: Vocabulary
    _pairs: dict[int, list[PairScore]] = field(default_factory=dict)
    _pixels: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    _absent: list[list[float]] = field(default_factory=list)
    _found: list[float] = field(default_factory=list)

    def add(self, view: str, ids: Int[np.ndarray, "height width"], scores: Scores) -> None:
        """Scores one view.

        Args:
            view: Name of the photograph.
            ids: Which object each pixel shows.
            scores: Relevancy at the same pixels.

        Raises:
            ScoreError: If a score is not finite.
        """
        require_finite(scores, f"QueryScores: the scores of the view {view!r}")
        for number, query in enumerate(self.vocabulary.queries):
            mask = np.isin(ids, query.ids)
            if mask.sum() >= MIN_PIXELS:
                self._pairs.setdefault(number, []).append(
                    score_pair(view, number, ids, scores, self.vocabulary)
                )
                self._pixels.setdefault(number, []).append((scores[number].ravel(), mask.ravel()))
        absent = scores[len(self.vocabulary.labels) :]
        if len(absent):
            self._absent.append(absent.max(axis=(1, 2)).tolist())
            self._found.append(float(fixed_mask(absent).mean()))

    def answers(self) -> Answers:
        """Returns the numbers of the views so far."""
        queries = tuple(
            QueryScore(query.text, tuple(self._pairs.get(number, ())), self._precision(number))
            for number, query in enumerate(self.vocabulary.queries)
        )
        return Answers(queries, self._presence())

    def _presence(self) -> PresenceScore:
        maxima = [[pair.max_relevancy for pair in pairs] for pairs in self._pairs.values()]
        present = np.array([value for values in maxima for value in values], dtype=np.float64)
        absent = np.array(self._absent, dtype=np.float64)  # (views, phrases)
        over_views = absent.max(axis=0) if len(absent) else absent
        best = np.array([max(values) for values in maxima], dtype=np.float64)
        return PresenceScore(
            absent=absent.ravel(),
            present=present,
            absent_share=mean_of(self._found),
            per_view=auroc(present, absent.ravel()),
            per_scene=auroc(best, over_views),
        )

    def _precision(self, number: int) -> float | None:
        if number not in self._pixels:
            return None
        scores, truth = zip(*self._pixels[number], strict=True)
        return average_precision(np.concatenate(scores), np.concatenate(truth))


def score_pair(
    view: str,
    number: int,
    ids: Int[np.ndarray, "height width"],
    scores: Scores,
    vocabulary: Vocabulary,
) -> PairScore:
    """Scores one query in one view; see :class:`PairScore`.

    Args:
        view: Name of the photograph.
        number: Index of the query.
        ids: Which object each pixel shows.
        scores: Relevancy of every text.
        vocabulary: The texts.
    """
    wanted = vocabulary.queries[number].ids
    truth: Bool[np.ndarray, "height width"] = np.isin(ids, wanted)
    score = scores[number]
    return PairScore(
        view=view,
        pixels=int(truth.sum()),
        localised=is_localised(score, box_region(ids, wanted)),
        localised_mask=is_localised(score, truth),
        iou=iou(fixed_mask(score), truth),
        iou_minmax=iou(minmax_mask(score), truth),
        iou_argmax=iou(exclusive_mask(scores, number, vocabulary.rivals(number)), truth),
        max_relevancy=float(score.max()),
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers that are there, or None if there are none.

    Raises:
        ScoreError: If a number is not finite.
    """
    known = [value for value in values if value is not None]
    require_finite(np.array(known, dtype=np.float64), "mean_of: measured values")
    return float(np.mean(known)) if known else None


def summarise(queries: Sequence[QueryScore]) -> dict[str, float | None]:
    """Returns the means over queries.

    The shares of localised pairs are taken over all pairs, as LERF does; everything else is a mean
    over a query's views, then over queries.
    """
    pairs = [pair for query in queries for pair in query.pairs]
    return {
        "localisation": mean_of([float(pair.localised) for pair in pairs]),
        "localisation_mask": mean_of([float(pair.localised_mask) for pair in pairs]),
        "miou": mean_of([query.mean(lambda pair: pair.iou) for query in queries]),
        "miou_minmax": mean_of([query.mean(lambda pair: pair.iou_minmax) for query in queries]),
        "miou_argmax": mean_of([query.mean(lambda pair: pair.iou_argmax) for query in queries]),
        "average_precision": mean_of([query.average_precision for query in queries]),
    }
