"""Answers of a scene: the instances that match a query, or why there are none; labels of points."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.colours.palette import best_query_index
from f3rm.language.threshold import Certainty
from f3rm.scene.boxes import OrientedBox
from f3rm.scene.frames import FrameName

NONE_OF_THESE = "none of these"

BoxKind = Literal["visible", "completed"]
"""Whether a box is around what views see, or also around the far side that none sees."""


@dataclass(frozen=True)
class Instance:
    """One found object.

    Attributes:
        score: Mean score of its points.
        confidence: Share of the surface inside its box that matches the query, in [0, 1].
        visible: The upright box around its points.
        points: Its surface points, one per grid cell.
        spacing: Edge of a grid cell.
        frame: The frame of boxes, points and spacing.
        completed: The box with a far side that no view sees; None where views see all sides.
    """

    score: float
    confidence: float
    visible: OrientedBox
    points: Float[Tensor, "points 3"] = field(repr=False)
    spacing: float
    frame: FrameName
    completed: OrientedBox | None = None

    @property
    def box(self) -> OrientedBox:
        """The completed box where there is one, else the visible one."""
        return self.completed or self.visible

    @property
    def box_kind(self) -> BoxKind:
        """Which of the two :attr:`box` is."""
        return "completed" if self.completed else "visible"

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """Middle of its box."""
        return self.box.centre

    @property
    def extent(self) -> Float[np.ndarray, "3"]:
        """Full lengths of its box along the box's axes."""
        return self.box.extent

    def __str__(self) -> str:
        """Returns score, centre and size of its box as a line."""
        unit = "m" if self.frame == "metres" else f"units of the frame {self.frame}"
        centre = ", ".join(f"{value:.2f}" for value in self.centre)
        size = " x ".join(f"{value:.2f}" for value in self.extent)
        return f"score {self.score:.2f}, centre ({centre}), size {size} {unit}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, without the points."""
        kind = {"box": self.box_kind, "visible": self.visible.to_dict()}
        scores = {"score": self.score, "confidence": self.confidence}
        return {**scores, **self.box.to_dict(), **kind}


@dataclass(frozen=True)
class Found:
    """The answer to a query: a sequence of instances, false where it is empty.

    Attributes:
        question: The query as it was parsed.
        instances: The instances, best score first; of an ``uncertain`` answer what may be it.
        certainty: Whether the object is ``found``, ``uncertain`` or ``absent``, or was asked for
            with an ``unknown word``.
        reason: Why it is not found with certainty, as a sentence; empty for ``found``.
        best_score: The highest score of any surface point; None in a scene without surfaces.
        threshold: The least score of a matching point; infinity where nothing can match.
        frame: The frame of the instances.
    """

    question: str
    instances: tuple[Instance, ...]
    certainty: Certainty
    reason: str
    best_score: float | None
    threshold: float
    frame: FrameName

    def __str__(self) -> str:
        """Returns a line for each instance, or the reason why there is none."""
        if not self.instances:
            return self.verdict
        return "\n".join(
            f"{self.question} {number}: {self.certainty}, {instance}"
            for number, instance in enumerate(self.instances, start=1)
        )

    @property
    def verdict(self) -> str:
        """The certainty and its reason, as a line."""
        reason = self.reason.removeprefix(f"{self.question!r} not found: ")
        return f"{self.question}: {self.certainty}" + (reason and f", {reason}")

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]


@dataclass(frozen=True)
class Identified:
    """The best of several labels for each point.

    Attributes:
        labels: The labels.
        indices: The best label of each point; -1 where none fits.
        scores: Its score, or the highest score where none fits; 0 outside of the scene.
        margins: How far that is above the second best label or the threshold, whichever is higher;
            0 where none fits.
    """

    labels: tuple[str, ...]
    indices: Int[Tensor, " points"]
    scores: Float[Tensor, " points"]
    margins: Float[Tensor, " points"]

    @classmethod
    def of(
        cls,
        labels: tuple[str, ...],
        scores: Float[Tensor, "points labels"],
        none_threshold: float,
    ) -> "Identified":
        """Chooses labels from their scores.

        Args:
            labels: The labels, at least one.
            scores: The score of each at every point; minus infinity outside of the scene.
            none_threshold: The score that the best label must reach.
        """
        indices = best_query_index(scores, (none_threshold,) * len(labels))
        best = scores.topk(min(2, len(labels)), dim=1).values
        rival = best[:, 1:].amax(dim=1) if len(labels) > 1 else torch.zeros(len(best))
        margins = (best[:, 0] - rival.clamp_min(none_threshold)).clamp_min(0)
        return cls(labels, indices, best[:, 0].nan_to_num(neginf=0.0), margins)

    @property
    def names(self) -> list[str]:
        """The label of each point, or ``none of these``."""
        known = (*self.labels, NONE_OF_THESE)  # index -1 is the last
        return [known[index] for index in self.indices.tolist()]
