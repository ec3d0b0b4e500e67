"""Scores of queries over the held-out views: one pair of view and query at a time, then means.

The same code scores the field and its 2D teacher. A pair counts if at least :data:`MIN_PIXELS`
pixels of the view show an object that the query names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from f3rm.evaluation.metrics import (
    average_precision,
    boundary,
    box_region,
    exclusive_mask,
    fixed_mask,
    iou,
    is_localised,
    minmax_mask,
    require_finite,
)
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.synthetic.truth import AbsentPrompt

MIN_PIXELS = 64
"""Smallest number of true pixels of a query that is scored in a view."""

Scores = Float[np.ndarray, "texts height width"]
"""Relevancy of every text of a vocabulary at every pixel of a photograph."""


@dataclass(frozen=True)
class PairScore:
    """Scores of one query's score map in one view.

    Attributes:
        view: Name of the photograph.
        pixels: Number of true pixels.
        localised: Whether the highest score is in the bounding box of one of the query's objects.
        localised_mask: Whether it is in the mask of one, so on the object itself.
        iou: Of the fixed rule's mask.
        iou_minmax: Of LangSplat's mask.
        iou_argmax: Of the pixels where the query beats every label of other objects.
        iou_boundary: Of the edges of the fixed rule's mask and of the true one.
        max_relevancy: The highest score in the view.
    """

    view: str
    pixels: int
    localised: bool
    localised_mask: bool
    iou: float
    iou_minmax: float
    iou_argmax: float
    iou_boundary: float
    max_relevancy: float


@dataclass(frozen=True)
class QueryScore:
    """A query's scores over the views that show it.

    Attributes:
        text: The query.
        pairs: One record per view, in their order; empty if no view shows it.
        average_precision: Over the pixels of all these views together; None without views.
    """

    text: str
    pairs: tuple[PairScore, ...]
    average_precision: float | None

    @property
    def max_relevancies(self) -> tuple[float, ...]:
        """The highest score in each view."""
        return tuple(pair.max_relevancy for pair in self.pairs)

    def numbers(self) -> dict[str, float | None]:
        """Returns the means over the views, under the names that reports use."""
        pairs = self.pairs
        return {
            "localisation": mean_of([float(pair.localised) for pair in pairs]),
            "localisation_mask": mean_of([float(pair.localised_mask) for pair in pairs]),
            "miou": mean_of([pair.iou for pair in pairs]),
            "miou_minmax": mean_of([pair.iou_minmax for pair in pairs]),
            "miou_argmax": mean_of([pair.iou_argmax for pair in pairs]),
            "miou_boundary": mean_of([pair.iou_boundary for pair in pairs]),
            "average_precision": self.average_precision,
        }


@dataclass(frozen=True)
class AbsentScore:
    """The scores of a prompt that is true of nothing in the scene.

    Attributes:
        prompt: The prompt, its kind, and how many words it shares with a present object.
        max_relevancies: The highest score in each view.
        found_share: Share of all pixels that the fixed rule finds; None without views.
    """

    prompt: AbsentPrompt
    max_relevancies: tuple[float, ...]
    found_share: float | None


@dataclass(frozen=True)
class Answers:
    """The scores of all queries and of all absent prompts over all held-out views."""

    queries: tuple[QueryScore, ...]
    absent: tuple[AbsentScore, ...]


@dataclass
class QueryScores:
    """Collects score maps view by view.

    Attributes:
        vocabulary: The phrases, in the order of the score maps.
    """

    vocabulary: Vocabulary
    _pairs: dict[int, list[PairScore]] = field(default_factory=dict)
    _pixels: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    _absent: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, view: str, ids: Int[np.ndarray, "height width"], scores: Scores) -> None:
        """Scores one view.

        Args:
            view: Name of the photograph.
            ids: The object at each pixel, -1 for none.
            scores: Relevancy at the same pixels.

        Raises:
            ScoreError: If a score is not finite.
        """
        require_finite(scores, f"The scores of the view {view!r}")
        for number, query in enumerate(self.vocabulary.queries):
            mask = np.isin(ids, query.ids)
            if mask.sum() >= MIN_PIXELS:
                self._pairs.setdefault(number, []).append(
                    score_pair(view, number, ids, scores, self.vocabulary)
                )
                self._pixels.setdefault(number, []).append((scores[number].ravel(), mask.ravel()))
        absent = scores[len(self.vocabulary.labels) :]
        self._absent.append((absent.max(axis=(1, 2)), fixed_mask(absent).mean(axis=(1, 2))))

    def answers(self) -> Answers:
        """Returns the scores of the views added so far."""
        queries = tuple(
            QueryScore(query.text, tuple(self._pairs.get(number, ())), self._precision(number))
            for number, query in enumerate(self.vocabulary.queries)
        )
        absent = tuple(
            AbsentScore(
                prompt,
                tuple(float(maxima[number]) for maxima, _ in self._absent),
                mean_of([float(shares[number]) for _, shares in self._absent]),
            )
            for number, prompt in enumerate(self.vocabulary.absent)
        )
        return Answers(queries, absent)

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
        ids: The object at each pixel, -1 for none.
        scores: Relevancy of every text.
        vocabulary: The texts.
    """
    wanted = vocabulary.queries[number].ids
    truth: Bool[np.ndarray, "height width"] = np.isin(ids, wanted)
    score = scores[number]
    found = fixed_mask(score)
    return PairScore(
        view=view,
        pixels=int(truth.sum()),
        localised=is_localised(score, box_region(ids, wanted)),
        localised_mask=is_localised(score, truth),
        iou=iou(found, truth),
        iou_minmax=iou(minmax_mask(score), truth),
        iou_argmax=iou(exclusive_mask(scores, number, vocabulary.rivals(number)), truth),
        iou_boundary=iou(boundary(found), boundary(truth)),
        max_relevancy=float(score.max()),
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers that are not None; None if there are none.

    Raises:
        ScoreError: If a number is not finite.
    """
    known = [value for value in values if value is not None]
    require_finite(np.array(known, dtype=np.float64), "Measured values")
    return float(np.mean(known)) if known else None
