"""Examples in place of words: a pixel of a view, an image or a part of it, points of the scene.

Their features are compared as the viewer compares clicked points: with the mean feature of all
training photographs as the negative.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import F3rmError, StrPath, as_path, check_number
from f3rm.feature_field import FeatureHead
from f3rm.language.active_query import shortened
from f3rm.language.image_encoder import ImageEncoder, parse_crop
from f3rm.language.questions import Question, question_like
from f3rm.scene.camera import CameraLike
from f3rm.scene.casting import LEAST_ACCUMULATION, hidden_of
from f3rm.scene.frames import FrameName, single
from f3rm.scene.points import FieldAtPoints, Points
from f3rm.scene.views import Photographed, find_view

Like = StrPath | tuple[StrPath | CameraLike, Sequence[int | float]] | Points
"""An example: ``(camera, (x, y))`` or ``(view, (x, y))``, a pixel of a camera, or of a photograph
by its name; an image file, or ``(file or view, (left, top, right, bottom))``, a part of it; or
points of shape (points, 3)."""


class ExampleEncoder:
    """Turns examples into questions; image towers load when first needed.

    Args:
        run: The run or splat, for its views.
        field: Its field.
    """

    def __init__(self, run: Photographed, field: FieldAtPoints) -> None:
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
        check_number("temperature", temperature, above=0)
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
        placed = _placed(example)
        if placed is None:
            return self._points(cast("Points", example), head, frame)
        place, numbers = placed
        if isinstance(place, CameraLike) or len(numbers) == 2:
            label, hidden = self._pixel(place, numbers, frame)
            return label, head(hidden)[None].detach(), True
        file = as_path(place)
        if numbers and not os.path.isfile(file):  # noqa: PTH113 - False, not an error, for any text
            file = find_view(self._run, os.fspath(place)).file
        return file.name, self._image(file, numbers, head)[None], False

    def _points(
        self, points: Points, head: FeatureHead, frame: FrameName
    ) -> tuple[str, Float[Tensor, "_ channels"], bool]:
        features = self._field.features(points, head.spec.name, frame=frame)
        seen = int(self._field.contains(points, frame=frame).sum())
        if not 0 < seen == len(features):
            msg = (
                "Points to ask with must be in the view of a training camera, got "
                f"{len(features)} points of which {seen} are. Choose points on surfaces."
            )
            raise F3rmError(msg)
        return f"{seen} points", features, True

    def _image(
        self, file: Path, crop: Sequence[float], head: FeatureHead
    ) -> Float[Tensor, " channels"]:
        encoder = self._encoders.setdefault(head.spec.name, ImageEncoder(head.spec))
        corners = parse_crop(" ".join(str(int(number)) for number in crop))
        return encoder.encode(file, corners)

    def _pixel(
        self, place: StrPath | CameraLike, pixel: Sequence[float], frame: FrameName
    ) -> tuple[str, Float[Tensor, " hidden"]]:
        if isinstance(place, CameraLike):
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
        coords = (torch.tensor([[y, x]]) + 0.5) * scale
        source = self._field.source
        with torch.no_grad():
            outputs = source.at_pixels(camera, coords)
        hidden, opacity = hidden_of(outputs), float(outputs["accumulation"])
        if opacity < LEAST_ACCUMULATION:
            msg = (
                f"There is no surface at pixel ({x:g}, {y:g}) of {name}: its opacity is "
                f"{opacity:.2f}. Choose a pixel on a surface."
            )
            raise F3rmError(msg)
        return f"{name} at {x:g}, {y:g}", hidden[0, 0].to(source.device)


def _placed(example: Like) -> tuple[StrPath | CameraLike, list[float]] | None:
    """Splits a view, camera or file from its numbers; None for points.

    Raises:
        F3rmError: If the numbers are neither a pixel nor a crop.
    """
    if isinstance(example, str | os.PathLike):
        return example, []
    if not isinstance(example, tuple) or not isinstance(
        next(iter(example), None), str | os.PathLike | CameraLike
    ):
        return None
    place, *rest = cast("tuple[StrPath | CameraLike, Sequence[int | float]]", example)
    try:
        numbers = [float(number) for row in rest for number in row]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 2 or (len(numbers) == 4 and not isinstance(place, CameraLike)):
        return place, numbers
    msg = (
        "An example must be (camera or view, (x, y)) or (file or view, (left, top, right, "
        f"bottom)), got {shortened(str(rest))} beside a camera, view or file."
    )
    raise F3rmError(msg)
