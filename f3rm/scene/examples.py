"""Examples in place of words: a pixel of a view, an image or a part of it, points of the scene.

Their features are compared as the viewer compares clicked points: with the mean feature of all
training photographs as the negative.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.feature_field import FeatureHead
from f3rm.language.active_query import shortened
from f3rm.language.image_encoder import ImageEncoder
from f3rm.language.questions import Question, question_like
from f3rm.scene.frames import FrameName, single
from f3rm.scene.points import FieldAtPoints, Points
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.surface import HIDDEN_ONLY, LEAST_ACCUMULATION, hidden_of
from f3rm.scene.views import find_view

Like = StrPath | tuple[StrPath | Cameras, Sequence[float]] | Points
"""An example: ``(camera, (x, y))`` or ``(view, (x, y))``, a pixel of a camera, or of a photograph
by its name; an image file, or ``(file, (left, top, right, bottom))``, a part of it; or points of
shape (points, 3)."""


class ExampleEncoder:
    """Turns examples into questions; image towers load when first needed.

    Args:
        run: The run, for its views.
        field: Its field.
    """

    def __init__(self, run: LoadedRun, field: FieldAtPoints) -> None:
        self._run, self._field = run, field
        self._encoders: dict[str, ImageEncoder] = {}

    def question(
        self,
        examples: Sequence[Like],
        head: FeatureHead,
        *,
        name: str,
        temperature: float,
        frame: FrameName,
    ) -> Question:
        """Makes the question of what is like one of some examples.

        Args:
            examples: At least one.
            head: The head that compares.
            name: The label; empty for one that says what the examples are.
            temperature: Soft-max temperature of the relevancy.
            frame: The frame of cameras and points.

        Raises:
            F3rmError: If an example cannot be used.
        """
        if not examples:
            msg = (
                "like needs at least one example, got none. Give (view, (x, y)), a file or points."
            )
            raise F3rmError(msg)
        read = [self._read(example, head, frame) for example in examples]
        return question_like(
            name.strip() or shortened(", ".join(label for label, _, _ in read)),
            torch.cat([features for _, features, _ in read]),
            head,
            head.pca_mean,
            temperature=temperature,
            is_present=all(is_here for _, _, is_here in read),
        )

    def _read(
        self, example: Like, head: FeatureHead, frame: FrameName
    ) -> tuple[str, Float[Tensor, "_ channels"], bool]:
        """Returns an example's label, its features, and whether it is from the scene."""
        if isinstance(example, str | os.PathLike):
            return as_path(example).name, self._image(example, None, head)[None], False
        if isinstance(example, tuple) and isinstance(example[0], str | os.PathLike | Cameras):
            place, *numbers = example
            values = [float(number) for number in numbers[0]] if len(numbers) == 1 else []
            if len(values) == 4 and not isinstance(place, Cameras):
                return as_path(place).name, self._image(place, values, head)[None], False
            if len(values) == 2:
                label, hidden = self._pixel(place, (values[0], values[1]), frame)
                return label, head(hidden)[None].detach(), True
            msg = (
                "An example must be (camera or view, (x, y)) or (file, (left, top, right, "
                f"bottom)), got {shortened(repr(numbers))} beside a camera, view or file."
            )
            raise F3rmError(msg)
        features = self._field.features(example, head.spec.name, frame=frame)
        if not len(features) or not bool(self._field.contains(example, frame=frame).all()):
            msg = (
                "Points to ask with must be in the view of a training camera, got "
                f"{len(features)} points of which some are not. Choose points on surfaces."
            )
            raise F3rmError(msg)
        return f"{len(features)} points", features, True

    def _image(
        self, file: StrPath, crop: Sequence[float] | None, head: FeatureHead
    ) -> Float[Tensor, " channels"]:
        encoder = self._encoders.setdefault(head.spec.name, ImageEncoder(head.spec))
        corners = None if crop is None else tuple(int(number) for number in crop)
        return encoder.encode(as_path(file), corners)  # pyright: ignore[reportArgumentType]

    def _pixel(
        self, place: StrPath | Cameras, pixel: tuple[float, float], frame: FrameName
    ) -> tuple[str, Float[Tensor, " hidden"]]:
        if isinstance(place, Cameras):
            camera = self._field.frames.get(frame).cameras_to_scene(single(place))
            size, name = (int(camera.height[0]), int(camera.width[0])), "a camera"
        else:
            view = find_view(self._run, os.fspath(place))
            camera, size, name = view.camera, view.file_size(), Path(view.name).name
        (x, y), (height, width) = pixel, size
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            msg = (
                f"A pixel of {name} must be inside its {width} x {height} pixels, got x = {x:g}, "
                f"y = {y:g}. x is 0 to {width - 1}, y is 0 to {height - 1}."
            )
            raise F3rmError(msg)
        # A run may train on smaller pictures than the photographs' files.
        scale = torch.tensor([int(camera.height[0]), int(camera.width[0])]) / torch.tensor(size)
        coords = (torch.tensor([[[y, x]]]) + 0.5) * scale
        model = self._field.model
        camera = camera.to(model.device)
        bundle = camera.generate_rays(camera_indices=0, coords=coords.to(model.device))
        with torch.no_grad():
            outputs = model.get_outputs_for_camera_ray_bundle(bundle, request=HIDDEN_ONLY)
        hidden, opacity = hidden_of(outputs), float(outputs["accumulation"])
        if opacity < LEAST_ACCUMULATION:
            msg = (
                f"There is no surface at pixel ({x:g}, {y:g}) of {name}: its opacity is "
                f"{opacity:.2f}. Choose a pixel on a surface."
            )
            raise F3rmError(msg)
        return f"{name} at {x:g}, {y:g}", hidden[0, 0].to(model.device)
