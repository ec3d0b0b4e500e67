"""A trained run, open for questions: ``scene = f3rm.load(run)``."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor, nn
from typing_extensions import Unpack

from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.language.questions import (
    Question,
    Questioner,
    QuestionOptions,
    all_scores,
    as_part,
    questions_in,
)
from f3rm.language.threshold import RELEVANCY_FLOOR, found_from
from f3rm.scene.find import find_instances
from f3rm.scene.found import Found, Identified, Instance
from f3rm.scene.frames import FrameName, single
from f3rm.scene.images import ANSWERING, Wanted, check_outputs, render_images, render_mask
from f3rm.scene.points import SeenSpace, check_points
from f3rm.scene.run_loading import LoadedRun, Split, load_run
from f3rm.scene.scored import score_surface
from f3rm.scene.source import FieldSource, Source
from f3rm.scene.splat.loading import LoadedSplat, is_splat, load_splat
from f3rm.scene.surface import SurfacePoints, thinned
from f3rm.store.device import resolve_device

NUM_RAYS = 1 << 16
"""Rays that give the surface points."""
SPACING = 0.01
"""Edge of the cells in which instances are found; a scene's cameras are within [-1, 1]."""

_MASK_REACH = 1.5
"""A pixel shows an instance if its surface is within so many cells of one of its points."""

Points = Tensor | np.ndarray | Sequence[Sequence[float]]
SplitName = Literal["train", "eval"]


def load(
    run: str | Path,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    surface_rays: int = NUM_RAYS,
    show_progress: bool = False,
) -> "Scene":
    """Opens a trained run, or a splat with the dataset that it was trained on.

    Args:
        run: Its ``config.yml``, or the folder that has it; or a ``.ply`` of Gaussians.
        data: The dataset, where it was moved since training; of a splat always.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        surface_rays: Rays that give the surface points of :meth:`Scene.find`, cast at the first
            search; fewer are faster, more find smaller objects.
        show_progress: Whether a bar is drawn while they are cast.

    Raises:
        RunError: If configuration, checkpoint or dataset cannot be used.
        F3rmError: If splat, device, photographs or features cannot be used.
    """
    path, moved = Path(run), None if data is None else Path(data)
    open_it = load_splat if is_splat(path) else load_run
    opened = open_it(path, data=moved, device=resolve_device(device))
    return Scene(opened, surface_rays=surface_rays, show_progress=show_progress)


class Scene:
    """A trained run or a splat, open for questions.

    Positions, cameras and lengths are in the named frame: ``dataset`` (that of transforms.json, the
    default), ``nerfstudio`` (the run's own) or ``metres`` (where the dataset gives its scale).
    Results are on the CPU. Where no training camera looks, features, density and scores are zero.
    :func:`load` makes one.
    """

    def __init__(
        self,
        run: LoadedRun | LoadedSplat,
        *,
        surface_rays: int = NUM_RAYS,
        show_progress: bool = False,
    ) -> None:
        self.run = run
        self._surface_rays = surface_rays
        self.source: Source = run.source if isinstance(run, LoadedSplat) else FieldSource(run)
        self.frames = self.source.frames
        self._questioner = Questioner(self.source.heads)
        self._seen_space = SeenSpace(run.train.cameras)
        sample = partial(self.source.sample_surface, show_progress=show_progress)
        self._sampled = lru_cache(maxsize=2)(sample)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the feature heads."""
        return tuple(self.source.heads)

    def views(self, split: SplitName = "train") -> tuple[str, ...]:
        """Returns the ``file_path`` of each photograph of a split."""
        return self._split(split).names

    def cameras(self, split: SplitName = "train", *, frame: FrameName = "dataset") -> Cameras:
        """Returns the cameras of a split, in the order of :meth:`views`."""
        return self.frames.get(frame).cameras_from_scene(self._split(split).cameras.to("cpu"))

    def _split(self, split: SplitName) -> Split:
        return self.run.train if split == "train" else self.run.held_out

    def contains(self, points: Points, *, frame: FrameName = "dataset") -> Bool[Tensor, " points"]:
        """Returns which points are in the view of a training camera.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        return self._seen_space.contains(self._positions(points, frame))

    def _positions(self, points: Points, frame: FrameName) -> Float[Tensor, "points 3"]:
        positions = check_points(torch.as_tensor(points).detach().cpu())
        return self.frames.get(frame).to_scene(positions).float()

    def hidden(
        self, points: Points, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points hidden"]:
        """Returns hidden vectors at points; a head's features are linear in them.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        positions = self._positions(points, frame)
        return self._at(positions, nn.Identity(), self.source.hidden_dim)

    def features(
        self, points: Points, head: str | None = None, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points channels"]:
        """Returns features at points.

        Args:
            points: Positions, shape (points, 3).
            head: The feature head; None for the first.
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or head or frame are not known.
        """
        module = self.head(head)
        return self._at(self._positions(points, frame), module, module.spec.channels)

    def head(self, name: str | None = None) -> FeatureHead:
        """Returns a feature head; None for the first.

        Raises:
            F3rmError: If there is none, or none of that name.
        """
        if not self.heads:
            raise F3rmError(self.source.without_heads)
        if (chosen := name or self.heads[0]) not in self.heads:
            raise F3rmError(f"The scene has the heads {list(self.heads)}, got {name!r}.")
        return self.source.heads[chosen]

    def _at(
        self,
        positions: Float[Tensor, "points 3"],
        made: Callable[[Tensor], Tensor],
        channels: int | None,
        *,
        outside: float = 0.0,
    ) -> Tensor:
        seen = self._seen_space.contains(positions)
        return self.source.values_at(positions, seen, made, channels, outside=outside)

    def density(self, points: Points, *, frame: FrameName = "dataset") -> Float[Tensor, " points"]:
        """Returns the volume density at points, per unit of length of their frame.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If points or frame cannot be used, or for a splat, which has no density.
        """
        positions = self._positions(points, frame)
        seen = self._seen_space.contains(positions)
        return self.source.density_at(positions, seen) * self.frames.get(frame).scene_per_unit

    def similarity(
        self,
        points: Points,
        question: str,
        *,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Float[Tensor, " points"]:
        """Scores points for a question: LERF's relevancy, or the cosine without negatives.

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
        return self._at(self._positions(points, frame), asked.scores, None)

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
        positions = self._positions(points, frame)
        scores = self._at(positions, partial(all_scores, asked), len(asked), outside=-torch.inf)
        return Identified.of(tuple(q.label for q in asked), scores, none_threshold)

    def question(self, text: str, **options: Unpack[QuestionOptions]) -> Question:
        """Parses a question and embeds its phrases.

        Raises:
            LanguageError: If the field or the head has no text tower.
            ExpressionError: If the question cannot be parsed.
            F3rmError: If options cannot be used.
        """
        asked = self._asked(text, **options)
        self._questioner.warn_of_unknown(asked)  # its scores say nothing
        return asked

    def _asked(self, text: str, **options: Unpack[QuestionOptions]) -> Question:
        asked = self._questioner.ask(text, **options)
        return asked.with_thresholds(partial(found_from, compares=True), lambda: self.cells.hidden)

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
            num_rays: Pixels of training views to render; those that hit no surface, or an edge,
                give no point.
            spacing: Edge of the grid's cells whose points are averaged, in units of the frame; None
                keeps every point.
            frame: The frame of the points.
            seed: Seed of the pixels.

        Raises:
            F3rmError: If the frame is not known, or the field has no heads.
        """
        known = self.frames.get(frame)
        points = self._sampled(num_rays, seed=seed)
        points = replace(points, positions=known.from_scene(points.positions))
        return points if spacing is None else thinned(points, spacing)

    @cached_property
    def cells(self) -> SurfacePoints:
        """Surface points of the scene frame, one per cell of the grid in which instances are."""
        return thinned(self._sampled(self._surface_rays, seed=0), SPACING)

    def find(
        self,
        question: str,
        *,
        threshold: float | None = None,
        up: Sequence[float] | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Found:
        """Finds the instances of a question's answer, and says how certain it is and why.

        Args:
            question: A phrase, or phrases joined by and, or, not and >; ``object; part`` is the
                same as ``object > part``.
            threshold: Least score of an instance's points; None chooses it by the scene, in which
                the object may be absent.
            up: The vertical axis of boxes, in the frame; None for the z axis of metres, and
                elsewhere for the up direction that Nerfstudio estimated from the cameras.
            frame: The frame of the answer.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question, frame or options cannot be used.
        """
        known = self.frames.get(frame)
        asked = self._asked(as_part(question), **options)
        scored = score_surface(self.cells, SPACING, asked, threshold)
        upwards = known.up(is_level=frame == "metres") if up is None else np.asarray(up, float)
        return find_instances(scored, frame=known, name=frame, up=upwards)

    def threshold(self, question: str, **options: Unpack[QuestionOptions]) -> float:
        """Returns the least score of a match in this scene; infinity if there is none.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question or options cannot be used.
        """
        asked = self.question(question, **options)
        return score_surface(self.cells, SPACING, asked, None).threshold

    def render(
        self,
        camera: Cameras,
        outputs: Sequence[str] = ("rgb",),
        *,
        query: str | Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> dict[str, Tensor]:
        """Renders pictures of a camera; memory beyond them does not grow with their size.

        Args:
            camera: One camera.
            outputs: Names of the pictures; see :data:`f3rm.scene.images.Output`.
            query: A list of questions, or one text with semicolons between them.
            thresholds: Least score of a matching pixel for each question; None chooses them by the
                scene, as :meth:`threshold` does.
            frame: The frame of the camera, and the unit of ``depth``.
            **options: How words are asked; ``head`` is also that of ``pca`` and ``features``.

        Returns:
            Pictures by name: ``rgb``, ``pca`` and ``composite`` (height, width, 3); ``depth``,
            ``accumulation`` and ``labels`` (height, width); ``similarity`` and ``mask`` (height,
            width, questions); ``features`` and ``hidden`` (height, width, channels).

        Raises:
            LanguageError: If there is a query and the field or the head has no text tower.
            F3rmError: If camera, outputs, frame, query or options cannot be used.
        """
        names = check_outputs(outputs, asked=query is not None)
        asked = [] if query is None else [self.question(q, **options) for q in questions_in(query)]
        known, least = self.frames.get(frame), thresholds
        if least is None and ANSWERING & set(names):  # casts the surface rays: only where needed
            least = [score_surface(self.cells, SPACING, q, None).threshold for q in asked]
        wanted = Wanted(
            outputs=names,
            head=self.head(options.get("head")),
            questions=tuple(asked),
            thresholds=tuple([0.0] * len(asked) if least is None else least),
            units_per_scene=1 / known.scene_per_unit,
        )
        camera = known.cameras_to_scene(single(camera))
        return render_images(self.source.bands(camera), camera, wanted)

    def mask(
        self, instance: Instance, camera: Cameras, *, frame: FrameName | None = None
    ) -> Bool[Tensor, "height width"]:
        """Returns the pixels of a camera that show an instance, without those where it is hidden.

        Args:
            instance: From :meth:`find`.
            camera: One camera.
            frame: Its frame; None for the instance's.

        Raises:
            F3rmError: If the frame is not known, or it is not one camera.
        """
        camera = self.frames.get(frame or instance.frame).cameras_to_scene(single(camera))
        own = self.frames.get(instance.frame)
        reach = _MASK_REACH * instance.spacing * own.scene_per_unit
        points = own.to_scene(instance.points.double())
        return render_mask(self.source.bands(camera), points, reach)
