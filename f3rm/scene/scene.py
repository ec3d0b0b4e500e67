"""A trained run, open for questions: ``scene = f3rm.load(run)``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from nerfstudio.cameras.cameras import Cameras
from scipy.spatial import KDTree
from torch import Tensor
from typing_extensions import Unpack

from f3rm.errors import F3rmError
from f3rm.language.questions import Question, QuestionOptions, questions_in
from f3rm.scene.field import NUM_RAYS, SPACING, SceneField
from f3rm.scene.find import find_instances, score_surface
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import FrameName
from f3rm.scene.images import ANSWERING, Wanted, check_outputs, render_bands, render_images
from f3rm.scene.run_loading import load_run
from f3rm.scene.surface import LEAST_ACCUMULATION
from f3rm.store.device import resolve_device

_MASK_REACH = 1.5
"""A pixel shows an instance if its surface lies so many cells from one of its points."""


def load(
    run: str | Path,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    surface_rays: int = NUM_RAYS,
    show_progress: bool = False,
) -> "Scene":
    """Opens a trained run.

    Args:
        run: Its ``config.yml``, or the folder that this is in.
        data: The dataset, where it was moved since training.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        surface_rays: Rays that make the surface points in which things are found, when something is
            first sought; fewer are faster, more show smaller things.
        show_progress: Whether a bar is drawn while these are made.

    Raises:
        RunError: If configuration, checkpoint or dataset cannot be used.
        DeviceError: If there is no such device.
        F3rmError: If the dataset's photographs or its feature cache are broken.
    """
    place = resolve_device(device)
    opened = load_run(Path(run), data=None if data is None else Path(data), device=place)
    return Scene(opened, surface_rays=surface_rays, show_progress=show_progress)


class Scene(SceneField):
    """A trained run, open for questions.

    Positions, cameras and lengths are in the frame that is named: ``dataset`` (that of
    transforms.json, the default), ``nerfstudio`` (the run's own) or ``metres`` (where the dataset
    says how it lies in metres). Results are on the CPU. What no training camera looks at is outside
    of the scene: there features, density and scores are zero.
    """

    def find(
        self,
        question: str,
        *,
        threshold: float | None = None,
        up: Sequence[float] | None = None,
        frame: FrameName = "dataset",
        **options: Unpack[QuestionOptions],
    ) -> Found:
        """Finds the instances of what is asked, or says why there are none.

        Args:
            question: A phrase, or phrases joined by and, or, not and >; ``thing; part`` is the same
                as ``thing > part``.
            threshold: From which score on a place answers; None to choose it by the scene, in which
                what is asked may be absent.
            up: Which way boxes stand, in the frame; None for the z axis of metres, and elsewhere
                for the way up that Nerfstudio estimated from the cameras.
            frame: The frame of the answer.
            **options: How words are asked.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question, frame or options cannot be used.
        """
        known = self.frames.get(frame)
        asked = self.question(_as_part(question), **options)
        scored = score_surface(self.cells, SPACING, asked, threshold)
        upwards = known.up(is_level=frame == "metres") if up is None else np.asarray(up, float)
        return find_instances(scored, frame=known, name=frame, up=upwards)

    def threshold(self, question: str, **options: Unpack[QuestionOptions]) -> float:
        """Returns from which score on a question counts as answered; infinity if it is not here.

        Raises:
            LanguageError: If the field or the head has no text tower.
            F3rmError: If question or options cannot be used.
        """
        return self._chosen(self.question(question, **options))

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
            query: What is asked: a list of questions, or one text with semicolons between them.
            thresholds: From which score on a pixel answers each question; None to choose them by
                the scene, as :meth:`threshold` does.
            frame: The frame of the camera, and the unit of ``depth``.
            **options: How words are asked; ``head`` is also that of ``pca`` and ``features``.

        Returns:
            Pictures by name: ``rgb``, ``pca`` and ``composite`` (height, width, 3); ``depth``,
            ``accumulation`` and ``labels`` (height, width); ``similarity`` and ``mask`` (height,
            width, questions); ``features`` and ``hidden`` (height, width, channels).

        Raises:
            LanguageError: If something is asked and the field or the head has no text tower.
            F3rmError: If camera, outputs, frame, query or options cannot be used.
        """
        names = check_outputs(outputs, asked=query is not None)
        asked = [] if query is None else [self.question(q, **options) for q in questions_in(query)]
        known, places = self.frames.get(frame), thresholds
        if places is None:
            places = [self._chosen(q) if ANSWERING & set(names) else 0.0 for q in asked]
        if len(places) != len(asked):
            msg = (
                f"render: thresholds must be one per question, got {len(places)} for {len(asked)}. "
                "Leave them out to choose them by the scene."
            )
            raise F3rmError(msg)
        wanted = Wanted(
            outputs=names,
            head=self.head(options.get("head")),
            questions=tuple(asked),
            thresholds=tuple(places),
            units_per_scene=1 / known.scene_per_unit,
        )
        return render_images(self.model, known.cameras_to_scene(_single(camera)), wanted)

    def _chosen(self, question: Question) -> float:
        return score_surface(self.cells, SPACING, question, None).threshold

    @torch.no_grad()
    def mask(
        self, instance: Instance, camera: Cameras, *, frame: FrameName | None = None
    ) -> Bool[Tensor, "height width"]:
        """Returns the pixels of a camera that show an instance, what hides it taken into account.

        Args:
            instance: What :meth:`find` returned.
            camera: One camera.
            frame: Its frame; None for the instance's.

        Raises:
            F3rmError: If the frame is not known, or it is not one camera.
        """
        known = self.frames.get(frame or instance.frame)
        camera = known.cameras_to_scene(_single(camera)).to(self.model.device)
        own = self.frames.get(instance.frame)
        tree = KDTree(own.to_scene(instance.points.double()).numpy())
        reach = _MASK_REACH * instance.spacing * own.scene_per_unit
        rows: list[Tensor] = []
        for bundle, band in render_bands(self.model, camera):
            positions = (bundle.origins + bundle.directions * band["depth"]).cpu().double()
            distances, _ = tree.query(positions.numpy(), distance_upper_bound=reach)
            on_surface = band["accumulation"][..., 0].cpu() >= LEAST_ACCUMULATION
            rows.append(torch.from_numpy(np.isfinite(distances)) & on_surface)
        return torch.cat(rows)


def _as_part(question: str) -> str:
    """Returns a question in which ``thing; part`` is written ``thing > part``."""
    pieces = questions_in(question)
    return pieces[0] if len(pieces) == 1 else " > ".join(f"({piece})" for piece in pieces)


def _single(camera: Cameras) -> Cameras:
    if camera.size != 1:
        msg = (
            f"render: camera must be one camera, got {camera.size}. Take one of several: "
            "cameras[0]."
        )
        raise F3rmError(msg)
    return camera.reshape((1,))
