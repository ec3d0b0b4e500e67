"""The field of a trained run, asked at points of any known frame."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor, nn
from typing_extensions import Unpack

from f3rm.colours.palette import belongs
from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.language.expressions import things_of
from f3rm.language.questions import (
    Question,
    Questioner,
    QuestionOptions,
    all_scores,
    questions_in,
)
from f3rm.language.threshold import RELEVANCY_FLOOR, found_from
from f3rm.model import FeatureFieldModel
from f3rm.scene.found import Identified
from f3rm.scene.frames import FrameName, Frames
from f3rm.scene.points import SeenSpace, check_points, density_at, hidden_at
from f3rm.scene.run_loading import LoadedRun, Split, field_model
from f3rm.scene.surface import SurfacePoints, sample_surface, thinned

NUM_RAYS = 1 << 16
"""Rays from which surface points are made."""
SPACING = 0.01
"""Cells of the grid in which things are found; a scene's cameras lie within [-1, 1]."""

Points = Tensor | np.ndarray | Sequence[Sequence[float]]
SplitName = Literal["train", "eval"]


class SceneField:
    """What can be asked of a run at points; see :class:`f3rm.scene.scene.Scene`.

    Attributes:
        run: The run.
        model: Its model.
        frames: The frames that are known.

    Args:
        run: A run with a feature field.
        surface_rays: Rays that make the surface points in which things are found.
        show_progress: Whether a bar is drawn while surface points are made.
    """

    def __init__(
        self, run: LoadedRun, *, surface_rays: int = NUM_RAYS, show_progress: bool = False
    ) -> None:
        self.run = run
        self._surface_rays, self._show_progress = surface_rays, show_progress
        self.model: FeatureFieldModel = field_model(run)
        self.frames = Frames.of_dataset(run.manager.train_dataparser_outputs, run.data)
        self._questioner = Questioner(self.model.heads)
        self._sampled = lru_cache(maxsize=2)(self._sample)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the feature heads."""
        return tuple(self.model.heads)

    def views(self, split: SplitName = "train") -> tuple[str, ...]:
        """Returns the ``file_path`` of each photograph of a split."""
        return self._split(split).names

    def cameras(self, split: SplitName = "train", *, frame: FrameName = "dataset") -> Cameras:
        """Returns the cameras of a split, in the order of :meth:`views`."""
        return self.frames.get(frame).cameras_from_scene(self._split(split).cameras.to("cpu"))

    def _split(self, split: SplitName) -> Split:
        return self.run.train if split == "train" else self.run.held_out

    def contains(self, points: Points, *, frame: FrameName = "dataset") -> Bool[Tensor, " points"]:
        """Returns which points a training camera looks at.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        return self._seen_space.contains(self._positions(points, frame, who="contains"))

    @cached_property
    def _seen_space(self) -> SeenSpace:
        return SeenSpace(self.run.train.cameras)

    def _positions(
        self, points: Points, frame: FrameName, *, who: str
    ) -> Float[Tensor, "points 3"]:
        positions = check_points(torch.as_tensor(points).detach().cpu(), who=who)
        return self.frames.get(frame).to_scene(positions).float()

    def hidden(
        self, points: Points, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points hidden"]:
        """Returns the field's hidden vectors at points; a head's features are linear in them.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        positions = self._positions(points, frame, who="hidden")
        return self._at(positions, nn.Identity(), self.model.feature_field.hidden_dim)

    def features(
        self, points: Points, head: str | None = None, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points channels"]:
        """Returns the field's features at points.

        Args:
            points: Positions, shape (points, 3).
            head: The feature head; None for the first.
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or head or frame are not known.
        """
        module = self.head(head)
        positions = self._positions(points, frame, who="features")
        return self._at(positions, module, module.spec.channels)

    def head(self, name: str | None = None) -> FeatureHead:
        """Returns a feature head; None for the first.

        Raises:
            F3rmError: If there is none, or none of that name.
        """
        if not self.heads:
            msg = (
                "features: the field must have feature heads, got none: its checkpoint was made "
                "without a feature cache. Train again, after f3rm extract."
            )
            raise F3rmError(msg)
        return self.model.feature_field.head(self.heads[0] if name is None else name)

    @torch.no_grad()
    def _at(
        self,
        positions: Float[Tensor, "points 3"],
        made: Callable[[Tensor], Tensor],
        channels: int | None,
        *,
        outside: float = 0.0,
    ) -> Tensor:
        """Returns what is made of hidden vectors.

        Args:
            positions: Positions in the scene frame.
            made: From hidden vectors of shape (batch, hidden) to values.
            channels: How many values there are for each; None for one, without an axis for it.
            outside: The value outside of the scene.
        """
        values = torch.full((len(positions), *(() if channels is None else (channels,))), outside)
        seen = self._seen_space.contains(positions).nonzero()[:, 0]
        start = 0
        for hidden in hidden_at(self.model, positions[seen]):
            stop = start + len(hidden)
            values[seen[start:stop]] = made(hidden).float().cpu()
            start = stop
        return values

    def density(self, points: Points, *, frame: FrameName = "dataset") -> Float[Tensor, " points"]:
        """Returns the volume density at points, per unit of length of their frame.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        positions = self._positions(points, frame, who="density")
        density = torch.zeros(len(positions))
        seen = self._seen_space.contains(positions)
        density[seen] = density_at(self.model, positions[seen]).float()
        return density * self.frames.get(frame).scene_per_unit

    def similarity(
        self,
        points: Points,
        question: str,
        *,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Float[Tensor, " points"]:
        """Scores points against a question: LERF's relevancy, or the cosine without negatives.

        Args:
            points: Positions, shape (points, 3).
            question: A phrase, or phrases joined by and, or, not and >.
            frame: Their frame.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If points, frame, question or options cannot be used.
        """
        asked = self.question(question, **options)
        positions = self._positions(points, frame, who="similarity")
        return self._at(positions, asked.scores, None)

    def identify(
        self,
        points: Points,
        labels: str | Sequence[str],
        *,
        none_threshold: float = RELEVANCY_FLOOR,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Identified:
        """Chooses the best of several labels for each point, or none of these.

        Args:
            points: Positions, shape (points, 3).
            labels: The labels, as a list or with semicolons between them.
            none_threshold: The score that the best label must reach.
            frame: The frame of the points.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If points, frame, labels or options cannot be used.
        """
        asked = [self.question(label, **options) for label in questions_in(labels)]
        positions = self._positions(points, frame, who="identify")
        ask_all = partial(all_scores, asked)
        scores = self._at(positions, ask_all, len(asked), outside=-torch.inf)
        indices = belongs(scores, (none_threshold,) * len(asked))
        best = scores.topk(min(2, len(asked)), dim=1).values
        rival = best[:, 1:].amax(dim=1) if len(asked) > 1 else torch.zeros(len(best))
        margins = (best[:, 0] - rival.clamp_min(none_threshold)).clamp_min(0)
        names = tuple(question.label for question in asked)
        return Identified(names, indices, best[:, 0].nan_to_num(neginf=0.0), margins)

    def question(self, text: str, **options: Unpack[QuestionOptions]) -> Question:
        """Reads a question and embeds its phrases.

        Raises:
            LanguageError: If the field or the head has no text tower.
            ExpressionError: If the question cannot be read.
            F3rmError: If options cannot be used.
        """
        asked = self._questioner.ask(text, **options)
        if not things_of(asked.expression):
            return asked
        hidden = self.cells.hidden.to(self.model.device)
        return asked.with_thresholds(partial(found_from, compares=True), hidden)

    def surface_points(
        self,
        num_rays: int = NUM_RAYS,
        *,
        spacing: float | None = None,
        frame: FrameName = "dataset",
        seed: int = 0,
    ) -> SurfacePoints:
        """Returns points on the surfaces that the training views see, on the CPU.

        Args:
            num_rays: Pixels of training views that are rendered; those that hit no surface, or an
                edge, give no point.
            spacing: Edge of the grid's cells whose points are averaged, in units of the frame; None
                keeps every point.
            frame: The frame of the points.
            seed: Seed of the pixels.

        Raises:
            F3rmError: If the frame is not known, or the field has no heads.
        """
        known = self.frames.get(frame)
        points = self._sampled(num_rays, seed)
        points = replace(points, positions=known.from_scene(points.positions))
        return points if spacing is None else thinned(points, spacing)

    def _sample(self, num_rays: int, seed: int) -> SurfacePoints:
        cameras, show = self.run.train.cameras, self._show_progress
        return sample_surface(self.model, cameras, num_rays, seed=seed, show_progress=show)

    @cached_property
    def cells(self) -> SurfacePoints:
        """Surface points of the scene frame, one per cell of the grid in which things are found."""
        return thinned(self._sampled(self._surface_rays, 0), SPACING)
