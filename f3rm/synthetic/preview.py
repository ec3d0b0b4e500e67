"""Contact sheets of generated datasets: photographs with object names, object masks and depth."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from f3rm.errors import DatasetError
from f3rm.store.items import read_items
from f3rm.synthetic.truth import SceneTruth, ViewTruth

_CELL_HEIGHT = 300
_MARGIN = 6
_FONT_SIZE = 12
_NAMED_FROM = 0.002
"""Smallest share of the pixels that an object covers if its name is written."""
_GOLDEN = 0.618033988749895


def write_preview(folder: Path, *, views: int = 4) -> Path:
    """Writes ``preview.png`` into a generated dataset and returns its path.

    Args:
        folder: The dataset.
        views: Number of photographs shown.

    Raises:
        DatasetError: If the dataset has no truth, or the file cannot be written.
    """
    truth = SceneTruth.read(folder)
    names = [item.name for item in read_items(truth.folder)]
    # The middles of equal stretches: the first and the last view are neighbours on the circle.
    chosen = [names[(2 * index + 1) * len(names) // (2 * views)] for index in range(views)]
    path = truth.folder / "preview.png"
    try:
        draw_sheet([(truth, name) for name in chosen]).save(path)
    except OSError as error:
        msg = f"{str(path)!r} cannot be written: {error}. Make the dataset's folder writable."
        raise DatasetError(msg) from error
    return path


def draw_sheet(shown: Sequence[tuple[SceneTruth, str]], *, names: bool = True) -> Image.Image:
    """Draws a column per photograph: itself, its objects in colours, its depth.

    Args:
        shown: Datasets and ``file_path``s of their photographs.
        names: Whether object names are written into the photographs.

    Raises:
        DatasetError: If a photograph is missing or its truth is damaged.
    """
    columns = [_column(truth, name, names=names) for truth, name in shown]
    widths = [cells[0].width for cells in columns]
    rows = len(columns[0])
    size = (
        sum(widths) + _MARGIN * (len(columns) + 1),
        rows * _CELL_HEIGHT + _MARGIN * (rows + 1),
    )
    sheet = Image.new("RGB", size, "white")
    left = _MARGIN
    for cells, width in zip(columns, widths, strict=True):
        for row, cell in enumerate(cells):
            sheet.paste(cell, (left, _MARGIN + row * (_CELL_HEIGHT + _MARGIN)))
        left += width + _MARGIN
    return sheet


def _column(truth: SceneTruth, name: str, *, names: bool) -> list[Image.Image]:
    view = truth.view(name)
    with Image.open(truth.folder / name) as image:
        photograph = image.convert("RGB")
    size = (round(photograph.width * _CELL_HEIGHT / photograph.height), _CELL_HEIGHT)
    photograph = photograph.resize(size, Image.Resampling.LANCZOS)
    if names:
        _write_names(photograph, truth, view)
    return [
        photograph,
        Image.fromarray(_object_colours(truth, view)).resize(size, Image.Resampling.NEAREST),
        Image.fromarray(_depth_colours(view)).resize(size, Image.Resampling.NEAREST),
    ]


def _write_names(picture: Image.Image, truth: SceneTruth, view: ViewTruth) -> None:
    """Writes the objects' names over the centres of their masks."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    scale = picture.height / view.ids.shape[0]
    for entry in truth.objects:
        seen = view.ids == entry.id
        if entry.kind == "surface" or seen.mean() < _NAMED_FROM:
            continue
        rows, columns = np.nonzero(seen)
        half = draw.textlength(entry.name, font) / 2
        x = float(np.clip(columns.mean() * scale, half + 2, picture.width - half - 2))
        draw.text(
            (x, rows.mean() * scale),
            entry.name,
            fill="white",
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill="black",
        )


def _object_colours(truth: SceneTruth, view: ViewTruth) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a colour per object: greys for surfaces, black for no object."""
    colours = [(0.0, 0.0, 0.0)]
    for entry in truth.objects:
        if entry.kind == "surface":
            grey = 0.25 + 0.5 * (entry.id * _GOLDEN % 1)
            colours.append((grey, grey, grey))
        else:
            colours.append(colorsys.hsv_to_rgb(entry.id * _GOLDEN % 1, 0.7, 0.95))
    palette = (255 * np.array(colours)).astype(np.uint8)
    return palette[view.ids + 1]


def _depth_colours(view: ViewTruth) -> UInt8[np.ndarray, "height width 3"]:
    """Returns colours from near (bright) to far (dark); black where there is no surface."""
    seen = np.isfinite(view.depth)
    if not seen.any():
        return np.zeros((*view.depth.shape, 3), dtype=np.uint8)
    closeness = np.where(seen, 1 / np.where(seen, view.depth, 1), 0)
    low, high = closeness[seen].min(), closeness[seen].max()
    levels = np.clip(255 * (closeness - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)[..., ::-1]
    return np.where(seen[..., None], coloured, 0).astype(np.uint8)
