"""The folder of an evaluation's pictures: a panel per view and query, an overview, and the page.

A panel shows the photograph, the field's scores over its render, the field's mask against the
truth, and the same two of the 2D teacher.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from PIL import Image, ImageDraw
from torch import Tensor

from f3rm.errors import DatasetError, F3rmError, StrPath, as_path
from f3rm.evaluation.held_out import ScoredView
from f3rm.evaluation.metrics import RELEVANCY_THRESHOLD, fixed_mask, iou
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.scene.frames import FileCamera
from f3rm.store.names import safe_part

Picture = UInt8[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]
Scores = Float[np.ndarray, "height width"]

PAGE = "index.html"

TRUE_POSITIVE = (40, 200, 80)
FALSE_POSITIVE = (230, 60, 50)
FALSE_NEGATIVE = (60, 110, 250)

HEAT = np.array(
    [(20, 10, 60), (90, 20, 120), (190, 50, 90), (245, 130, 40), (252, 240, 120)], np.float64
)
"""Colours of scores 0, 0.25, 0.5, 0.75 and 1."""
BOX_EDGES = (
    *((0, 1), (2, 3), (4, 5), (6, 7)),
    *((0, 2), (1, 3), (4, 6), (5, 7)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
"""Pairs of corners of a box, in the order of ``OrientedBox.corners``."""

_HEAT_SHARE = 0.65
_BOX_WIDTH = 960
"""Pictures with boxes are at least so wide, so that lines are thin and names can be read."""
_NAME_SIZE = 26
_NAME_GROUND = (22, 25, 29)
_HEADER = 18
_LEGEND = 10
_GAP = 2
_OVERVIEW_WIDTH = 1400


def heat_picture(base: Picture, scores: Scores) -> Picture:
    """Lays scores in [0, 1] as colours over a picture."""
    colours = (1 - _HEAT_SHARE) * base + _HEAT_SHARE * _heat(scores)
    return (colours + 0.5).astype(np.uint8)


def legend(width: int) -> UInt8[np.ndarray, "rows {width} 3"]:
    """Returns the scale of colours from 0 to 1, with a white line at the fixed rule's threshold."""
    scale = _heat(np.tile(np.linspace(0, 1, width), (_LEGEND, 1))).astype(np.uint8)
    scale[:, round(RELEVANCY_THRESHOLD * (width - 1))] = 255
    return scale


def boxed_picture(
    photograph: Picture,
    cameras: Cameras,
    index: int,
    boxes: Sequence[tuple[Tensor, str, Sequence[int]]],
) -> UInt8[np.ndarray, "shown_height shown_width 3"]:
    """Draws boxes, with names, into an enlarged photograph; what is behind others is drawn too.

    Args:
        photograph: The photograph; of a camera that is not perspective it is returned as it is.
        cameras: Cameras in the scene frame.
        index: The photograph's.
        boxes: Corners in the scene frame, shape (8, 3), name and RGB colour of each.
    """
    height, width = photograph.shape[:2]
    factor = max(1, -(-_BOX_WIDTH // width))
    try:
        camera = FileCamera(cameras.to("cpu"), index, (height * factor, width * factor))
    except DatasetError:
        return photograph
    canvas = Image.fromarray(photograph).resize(
        (width * factor, height * factor), Image.Resampling.LANCZOS
    )
    draw = ImageDraw.Draw(canvas)
    for corners, name, colour in boxes:
        pixels, depths = camera.project(corners)
        if bool((depths > 0).all()):
            ends = pixels.numpy()
            for first, second in BOX_EDGES:
                draw.line((*ends[first], *ends[second]), fill=tuple(colour), width=3)
            _draw_name(draw, canvas.size, name.split(",")[0], ends[ends[:, 1].argmin()], colour)
    return np.asarray(canvas)


def _draw_name(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    at: Float[np.ndarray, "2"],
    colour: Sequence[int],
) -> None:
    """Writes a name above a place, on a dark ground, inside of a picture of (width, height)."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font_size=_NAME_SIZE)
    x = min(max(at[0] - right / 2, 0), max(0, size[0] - right))
    y = min(max(at[1] - bottom - 4, 0), max(0, size[1] - bottom))
    draw.rectangle((x + left - 2, y + top - 2, x + right + 2, y + bottom + 2), fill=_NAME_GROUND)
    draw.text((x, y), text, fill=tuple(colour), font_size=_NAME_SIZE)


def mask_picture(base: Picture, predicted: Mask, truth: Mask) -> Picture:
    """Colours hits green, false positives red and misses blue, over a darkened picture."""
    picture = (base * 0.5).astype(np.uint8)
    for mask, colour in (
        (predicted & truth, TRUE_POSITIVE),
        (predicted & ~truth, FALSE_POSITIVE),
        (truth & ~predicted, FALSE_NEGATIVE),
    ):
        picture[mask] = (0.5 * picture[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    return picture


def query_panel(
    view: ScoredView, vocabulary: Vocabulary, query: int
) -> UInt8[np.ndarray, "panel_height panel_width 3"]:
    """Draws the panel of one view and query.

    Args:
        view: The view with its scores.
        vocabulary: The phrases of the scores.
        query: Index of the query.
    """
    label = vocabulary.queries[query]
    truth = np.isin(view.ids, label.ids)
    tiles = [_tile(view.photograph, f"{Path(view.name).name}: {label.text}")]
    for who, base, answers in (
        ("field", view.render, view.field),
        ("2D teacher", view.photograph, view.teacher),
    ):
        if answers is None:
            continue
        scores = answers[query]
        predicted = fixed_mask(scores)
        tiles.append(_tile(heat_picture(base, scores), f"{who}: relevancy", scale=True))
        title = f"{who}: > {RELEVANCY_THRESHOLD}, IoU {iou(predicted, truth):.2f}"
        tiles.append(_tile(mask_picture(view.photograph, predicted, truth), title))
    return np.concatenate(tiles, axis=1)


class PictureFolder:
    """Writes a panel per held-out view and query, an overview with one row per query, and the page.

    Args:
        folder: The folder; created if it does not exist.
        vocabulary: The phrases.

    Raises:
        F3rmError: If the folder cannot be written to.
    """

    def __init__(self, folder: StrPath, vocabulary: Vocabulary) -> None:
        self.path = as_path(folder).expanduser().absolute()
        self._vocabulary = vocabulary
        self._best: dict[int, tuple[int, Picture]] = {}
        self._owners: dict[str, tuple[str, int]] = {}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error) from error

    def add(self, view: ScoredView) -> None:
        """Draws a panel for each query that a view shows.

        Raises:
            F3rmError: If a file cannot be written.
        """
        for number, query in enumerate(self._vocabulary.queries):
            pixels = int(np.isin(view.ids, query.ids).sum())
            if pixels < MIN_PIXELS:
                continue
            panel = query_panel(view, self._vocabulary, number)
            name = self._own_name(panel_name(view.name, query.text), view.name, number)
            self._write(name, Image.fromarray(panel).save)
            if pixels > self._best.get(number, (0, panel))[0]:
                self._best[number] = (pixels, _narrowed(panel))

    def _own_name(self, name: str, view: str, query: int) -> str:
        """Returns a free file name: two views or queries may differ only in dropped letters."""
        stem, number = name.removesuffix(".png"), 1
        while self._owners.setdefault(name, (view, query)) != (view, query):
            number += 1
            name = f"{stem}_{number}.png"
        return name

    def write_overview(self) -> None:
        """Writes ``overview.png``: each query in the view that shows most of it.

        Raises:
            F3rmError: If the file cannot be written.
        """
        panels = [panel for _, (_, panel) in sorted(self._best.items())]
        if panels:
            width = max(panel.shape[1] for panel in panels)
            rows = [np.pad(p, ((0, 4), (0, width - p.shape[1]), (0, 0))) for p in panels]
            self._write("overview.png", Image.fromarray(np.concatenate(rows)).save)

    def write_page(self, text: str) -> None:
        """Writes ``index.html``.

        Args:
            text: The page's HTML.

        Raises:
            F3rmError: If the file cannot be written.
        """
        self._write(PAGE, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        try:
            write(self.path / name)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> F3rmError:
        return F3rmError(
            f"--pictures: {str(self.path)!r} cannot be written to: {error}. Give another "
            "--pictures."
        )


def panel_name(view: str, query: str) -> str:
    """Returns a panel's file name, e.g. ``frame_00009_red_mug.png``."""
    words = re.sub(r"[^a-z0-9]+", "_", query.lower()).strip("_")
    return safe_part(f"{Path(view).stem}_{words or 'query'}") + ".png"


def _heat(scores: Scores) -> Float[np.ndarray, "height width 3"]:
    stops = np.linspace(0, 1, len(HEAT))
    clipped = np.clip(scores, 0, 1)
    return np.stack([np.interp(clipped, stops, channel) for channel in HEAT.T], axis=-1)


def _tile(
    picture: Picture, title: str, *, scale: bool = False
) -> UInt8[np.ndarray, "tile_height tile_width 3"]:
    """Adds a title above a picture, and below it the scale of colours or blank space."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width + _GAP, _HEADER + height + _LEGEND), "white")
    canvas.paste(Image.fromarray(picture), (0, _HEADER))
    ImageDraw.Draw(canvas).text((3, 3), title, fill="black")
    if scale:
        canvas.paste(Image.fromarray(legend(width)), (0, _HEADER + height))
    return np.asarray(canvas)


def _narrowed(panel: UInt8[np.ndarray, "rows cols 3"]) -> UInt8[np.ndarray, "height width 3"]:
    height, width = panel.shape[:2]
    if width <= _OVERVIEW_WIDTH:
        return panel
    size = (_OVERVIEW_WIDTH, round(height * _OVERVIEW_WIDTH / width))
    return np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.LANCZOS))
