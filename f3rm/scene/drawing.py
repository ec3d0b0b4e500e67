"""Draws rendered outputs as pictures with a legend; one colour scale for all frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from f3rm.colours.palette import coloured, palette
from f3rm.language.threshold import Certainty, shown_certainty
from f3rm.store.geometry import Size

Picture = UInt8[np.ndarray, "_ _ 3"]
"""RGB; a legend makes it higher than the rendered picture."""

_LINE, _SWATCH, _MARGIN = 14, 10, 3  # the legend, in pixels


@dataclass(frozen=True)
class Scale:
    """Colour scale and legend texts that all frames of a video share.

    Attributes:
        labels: The queries, in the order of their scores.
        thresholds: Each query's least score of a matching pixel, infinity where none matches; empty
            where no picture shows matches.
        certainties: How certain each query's answer in the whole scene is; empty likewise.
        low: The score that gets the first colour.
        high: The score that gets the last colour.
        farthest: The depth that gets the last colour.
        unit: Name of the unit of depths.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    certainties: tuple[Certainty, ...]
    low: float
    high: float
    farthest: float
    unit: str

    def named(self, question: int) -> str:
        """Returns a query with its certainty and threshold, as the legend shows it."""
        shown = shown_certainty(self.certainties[question], self.thresholds[question])
        return f"{self.labels[question]}: {shown}"


def to_picture(image: Float[Tensor, "rows cols channels"], size: Size) -> Picture:
    """Converts colours in [0, 1] to bytes, resized to (height, width); alpha is dropped."""
    colours = image[..., :3].float().cpu().permute(2, 0, 1)[None]
    if colours.shape[2:] != torch.Size(size):
        colours = functional.interpolate(colours, size=size, mode="bilinear", align_corners=False)
    return (colours[0].permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).byte().numpy()


def draw_images(images: Mapping[str, Tensor], scale: Scale, *, legend: bool) -> dict[str, Picture]:
    """Draws the outputs of :meth:`Scene.render`.

    Args:
        images: Pictures by output name, of ``rgb``, ``depth``, ``accumulation``, ``pca``,
            ``similarity``, ``composite``, ``mask`` and ``labels``.
        scale: The scale of all frames.
        legend: Whether to add a legend below each picture that needs one.

    Returns:
        One picture per output; of ``similarity`` and ``mask`` one per query where there are
        several, as ``similarity_1`` and so on. A legend makes them higher.
    """
    drawn: dict[str, Picture] = {}
    for name, image in images.items():
        for key, question, single in _by_question(name, image):
            colours = _colours(name, single, scale)
            picture = to_picture(colours, (colours.shape[0], colours.shape[1]))
            below = _legend(name, question, scale, picture.shape[1]) if legend else None
            drawn[key] = picture if below is None else np.concatenate((picture, below))
    return drawn


def _by_question(name: str, image: Tensor) -> list[tuple[str, int, Tensor]]:
    """Splits a picture by query: key, index of the query, picture."""
    if name not in ("similarity", "mask"):
        return [(name, 0, image)]
    if image.shape[-1] == 1:
        return [(name, 0, image[..., 0])]
    return [(f"{name}_{i + 1}", i, image[..., i]) for i in range(image.shape[-1])]


def _colours(name: str, image: Tensor, scale: Scale) -> Float[Tensor, "height width 3"]:
    if name == "similarity":
        return coloured(image, scale.low, scale.high)
    if name == "depth":
        return coloured(image, 0.0, scale.farthest)
    if name == "labels":
        colours = torch.cat((torch.zeros(1, 3), palette(len(scale.labels))))  # -1 is black
        return colours[image + 1]
    if name in ("mask", "accumulation"):
        return image.float()[..., None].expand(-1, -1, 3)
    return image


def _legend(name: str, question: int, scale: Scale, width: int) -> Picture | None:
    if name == "similarity":
        return _bar(f"{scale.labels[question]}: ", scale.low, scale.high, width)
    if name == "depth":
        return _bar(f"depth in {scale.unit}: ", 0.0, scale.farthest, width)
    if name == "mask":
        return text_lines([scale.named(question)], [(255, 255, 255)], width)
    if name in ("labels", "composite"):
        texts = [scale.named(number) for number in range(len(scale.labels))]
        colours = [tuple(row) for row in (palette(len(texts)) * 255 + 0.5).byte().tolist()]
        return text_lines(texts, colours, width)
    return None


def _bar(text: str, low: float, high: float, width: int) -> Picture:
    """Returns a colour bar with its range in words above."""
    colours = coloured(torch.linspace(0, 1, width)[None], 0.0, 1.0).expand(_SWATCH, -1, -1)
    words = _canvas([f"{text}{low:.2f} to {high:.2f}"], width, left=_MARGIN)
    return np.concatenate((np.asarray(words), to_picture(colours, (_SWATCH, width))))


def text_lines(texts: Sequence[str], colours: Sequence[tuple[int, ...]], width: int) -> Picture:
    """Returns lines of text, each behind a square of its colour."""
    canvas = _canvas(texts, width, left=2 * _MARGIN + _SWATCH)
    draw = ImageDraw.Draw(canvas)
    for number, colour in enumerate(colours):
        top = number * _LINE + 2
        square = (_MARGIN, top, _MARGIN + _SWATCH, top + _SWATCH)
        draw.rectangle(square, fill=colour, outline="grey")
    return np.asarray(canvas)


def _canvas(texts: Sequence[str], width: int, *, left: int) -> Image.Image:
    canvas = Image.new("RGB", (width, _LINE * len(texts)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(texts):
        draw.text((left, number * _LINE + 1), text, fill="black")
    return canvas
