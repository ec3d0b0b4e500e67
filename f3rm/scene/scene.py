"""A trained run, open for questions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor
from typing_extensions import Unpack

from f3rm.errors import F3rmError, check_number
from f3rm.language.questions import (
    Askable,
    Query,
    Question,
    Questioner,
    QuestionOptions,
    all_scores,
    questions_in,
)
from f3rm.language.relevancy import TEMPERATURE
from f3rm.language.threshold import RELEVANCY_FLOOR
from f3rm.scene.boxes import checked_up
from f3rm.scene.camera import CameraLike
from f3rm.scene.casting import NUM_RAYS
from f3rm.scene.examples import ExampleEncoder, Like
from f3rm.scene.finding.find import Wish, find_instances
from f3rm.scene.finding.scored import competing, score_surface
from f3rm.scene.found import Found, Identified, Instance
from f3rm.scene.frames import FrameName, single
from f3rm.scene.images import ANSWERING, Wanted, check_outputs, render_images
from f3rm.scene.kept.kept_surface import KeptSurface
from f3rm.scene.points import FieldAtPoints, Points
from f3rm.scene.run_loading import LoadedRun, Split
from f3rm.scene.source import FieldSource
from f3rm.scene.surface import Surface, SurfacePoints, thinned
from f3rm.scene.views import Photographed

SPACING = 0.01
"""Edge of the cells in which instances are found; a scene's cameras are within [-1, 1]."""

SplitName = Literal["train", "eval"]


class Scene(FieldAtPoints, Askable):
    """A trained run or a splat, open for questions.

    Positions, cameras and lengths are in the named frame: ``dataset`` (that of transforms.json, the
    default), ``nerfstudio`` (the run's own) or ``metres`` (where the dataset gives its scale).
    Results are on the CPU. Where no training camera looks, features, density and scores are zero.
    """

    def __init__(
        self,
        run: Photographed,
        *,
        surface_rays: int = NUM_RAYS,
        show_progress: bool = False,
    ) -> None:
        source = FieldSource(run) if isinstance(run, LoadedRun) else run.source
        super().__init__(source, run.train.cameras)
        self.run = run
        self._surface_rays = surface_rays
        folder = run.config_path.parent
        self.questioner = Questioner(source.heads, lambda: self.cells.hidden, folder)
        self._examples = ExampleEncoder(run, self)
        sample = partial(source.sample_surface, show_progress=show_progress)
        kept = KeptSurface(run, sample) if isinstance(run, LoadedRun) else sample
        self._sampled = lru_cache(maxsize=2)(kept)
        self._look_closer = source.look_closer

    def __repr__(self) -> str:
        """Says which run it is, of how many photographs, with which heads and frames."""
        heads = ", ".join(str(head.spec) for head in self.source.heads.values()) or "none"
        return f"Scene of {self.run}; heads {heads}; frames {', '.join(self.frames.known)}"

    def views(self, split: SplitName = "train") -> tuple[str, ...]:
        """Returns the ``file_path`` of each photograph of a split."""
        return self._split(split).names

    def cameras(self, split: SplitName = "train", *, frame: FrameName = "dataset") -> Cameras:
        """Returns the cameras of a split, in the order of :meth:`views`."""
        return self.frames.get(frame).cameras_from_scene(self._split(split).cameras.to("cpu"))

    def _split(self, split: SplitName) -> Split:
        splits = {"train": self.run.train, "eval": self.run.held_out}
        if split not in splits:
            raise F3rmError(f"split must be 'train' or 'eval', got {split!r}.")
        return splits[split]

    def similarity(
        self,
        points: Points,
        question: str | Question,
        *,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Float[Tensor, " points"]:
        """Scores points for a question: LERF's relevancy, or the cosine without negatives.

        Args:
            points: Positions, shape (points, 3).
            question: A phrase, or phrases joined by and, or, not and >; or from :meth:`like`.
            frame: Their frame.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If points, frame, question or options cannot be used.
        """
        positions = self._positions(points, frame)
        return self._at(positions, self.question(question, **options).scores, None)

    def identify(
        self,
        points: Points,
        labels: Query,
        *,
        none_threshold: float = RELEVANCY_FLOOR,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Identified:
        """Chooses the best of several labels for each point, or none of these.

        Args:
            points: Positions, shape (points, 3).
            labels: The labels, as a list or with semicolons between them, or from :meth:`like`.
            none_threshold: The score that the best label must reach.
            frame: The frame of the points.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If points, frame, labels or options cannot be used.
        """
        positions = self._positions(points, frame)
        asked = [self.question(label, **options) for label in questions_in(labels)]
        scores = self._at(positions, partial(all_scores, asked), len(asked), outside=-torch.inf)
        return Identified.of(tuple(q.label for q in asked), scores, none_threshold)

    def like(
        self,
        *examples: Like,
        name: str = "",
        head: str | None = None,
        temperature: float = TEMPERATURE,
        frame: FrameName = "dataset",
    ) -> Question:
        """Makes a question without words: what is like one of some examples.

        Every method that takes a question takes it, and it needs no text tower.

        Args:
            *examples: ``(camera, (x, y))`` or ``(view, (x, y))``, a pixel of a camera or of a
                photograph by its name; an image file, or ``(file or view, (left, top, right,
                bottom))``, a part of it; or points of shape (points, 3).
            name: The question's label.
            head: The feature head that compares; None for the first.
            temperature: Soft-max temperature of the relevancy, > 0.
            frame: The frame of cameras and points.

        Raises:
            F3rmError: If an example, head or frame cannot be used.
            BackboneUnavailableError: If there is an image and its tower cannot be loaded.
        """
        return self._examples.question(
            examples, self.head(head), name=name, temperature=temperature, frame=frame
        )

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
        check_number("num_rays", num_rays, above=0)
        check_number("spacing", spacing, above=0)
        known = self.frames.get(frame)
        points = self._sampled(num_rays, seed=seed).points
        points = replace(points, positions=known.from_scene(points.positions))
        return points if spacing is None else thinned(points, spacing)

    @cached_property
    def surface(self) -> Surface:
        """The surface of the scene frame in which instances are found."""
        return Surface(self._sampled(self._surface_rays, seed=0), SPACING)

    @property
    def cells(self) -> SurfacePoints:
        """The points of :attr:`surface`, one per cell of a grid."""
        return self.surface.points

    @overload
    def find(
        self,
        question: str | Question | None = None,
        *,
        like: Like | None = None,
        compete: bool = True,
        threshold: float | None = None,
        up: Sequence[float] | None = None,
        smallest: float | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Found: ...

    @overload
    def find(
        self,
        question: Sequence[str | Question],
        *,
        compete: bool = True,
        threshold: float | None = None,
        up: Sequence[float] | None = None,
        smallest: float | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> list[Found]: ...

    def find(
        self,
        question: Query | None = None,
        *,
        like: Like | None = None,
        compete: bool = True,
        threshold: float | None = None,
        up: Sequence[float] | None = None,
        smallest: float | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Found | list[Found]:
        """Finds the instances of a question's answer, and says how certain it is and why.

        Args:
            question: A phrase, or phrases joined by and, or, not and >. Of a list, or a text with
                semicolons between several, the answers are a list.
            like: An example in place of words, see :meth:`like`.
            compete: Whether a place that matches several questions belongs to the best one only.
            threshold: Least score of an instance's points; None chooses it by the scene, in which
                the object may be absent.
            up: The vertical axis of boxes, in the frame; None for the z axis of metres, and
                elsewhere for the up direction that Nerfstudio estimated from the cameras.
            smallest: Width of the smallest instance, in the frame; None for three cells.
            frame: The frame of the answer, and of ``like``.
            **options: How words are asked; of ``like`` head and temperature.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question, frame or options cannot be used.
        """
        known = self.frames.get(frame)
        if (question is None) == (like is None):
            raise F3rmError("find needs either a question or like=. Give one of the two.")
        check_number("threshold", threshold, above=-1)
        check_number("smallest", smallest, above=0)
        upwards = known.up(is_level=frame == "metres") if up is None else checked_up(up)
        if like is not None:
            head, warmth = options.get("head"), options.get("temperature", TEMPERATURE)
            question = self.like(like, head=head, temperature=warmth, frame=frame)
        asked = [self.questioner.asked(each, **options) for each in questions_in(question or "")]
        scored = [score_surface(self.surface, each, threshold) for each in asked]
        wish = Wish(known, frame, upwards, smallest)
        found = [
            find_instances(each, wish, self._look_closer)
            for each in (competing(scored) if compete else scored)
        ]
        is_one = isinstance(question, str | Question) and len(found) == 1
        return found[0] if is_one else found

    def threshold(self, question: str | Question, **options: Unpack[QuestionOptions]) -> float:
        """Returns the least score of a match in this scene; infinity if there is none.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question or options cannot be used.
        """
        return score_surface(self.surface, self.question(question, **options), None).threshold

    def render(
        self,
        camera: CameraLike,
        outputs: Sequence[str] = ("rgb",),
        *,
        query: Query | None = None,
        compete: bool = True,
        thresholds: Sequence[float] | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> dict[str, Tensor]:
        """Renders pictures of a camera; memory beyond them does not grow with their size.

        Args:
            camera: One camera: :class:`f3rm.Camera`, or one of :meth:`cameras`.
            outputs: Names of the pictures; see :data:`f3rm.scene.images.Output`.
            query: A list of questions, or one text with semicolons between them.
            compete: Whether a pixel that matches several questions belongs to the best one only.
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
        seen = self.frames.get(frame).cameras_to_scene(single(camera))
        for each in thresholds or ():
            check_number("thresholds", each, above=-1)
        asked = [] if query is None else [self.question(q, **options) for q in questions_in(query)]
        known, least = self.frames.get(frame), thresholds
        if least is None and ANSWERING & set(names):  # casts the surface rays: only where needed
            least = [score_surface(self.surface, q, None).threshold for q in asked]
        wanted = Wanted(
            outputs=names,
            head=self.head(options.get("head")),
            questions=tuple(asked),
            thresholds=tuple([0.0] * len(asked) if least is None else least),
            compete=compete,
            units_per_scene=1 / known.scene_per_unit,
        )
        return render_images(self.source.bands(seen), seen, wanted)

    def mask(
        self, instance: Instance, camera: CameraLike, *, frame: FrameName | None = None
    ) -> Bool[Tensor, "height width"]:
        """Returns the pixels of a camera that show an instance, without those where it is hidden.

        Args:
            instance: From :meth:`find`.
            camera: One camera: :class:`f3rm.Camera`, or one of :meth:`cameras`.
            frame: Its frame; None for the instance's.

        Raises:
            F3rmError: If the frame is not known, or it is not one camera.
        """
        own, its = self.frames.get(instance.frame), self.frames.get(frame or instance.frame)
        seen = its.cameras_to_scene(single(camera))
        points = own.to_scene(instance.points.double())
        return self.source.mask(seen, points, instance.spacing * own.scene_per_unit)
