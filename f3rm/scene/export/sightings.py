"""Found instances in photographs: the views that show them best, with their boxes drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from f3rm.colours.palette import palette
from f3rm.errors import StrPath, as_path, printable
from f3rm.language.active_query import shortened
from f3rm.scene.drawing import Picture, text_lines
from f3rm.scene.export.files import check_file, write_file
from f3rm.scene.found import Found, Instance
from f3rm.scene.scene import Scene
from f3rm.scene.views import View, views_of

PICTURE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG"}
"""Endings of a picture's file, with PIL's name of its format."""
MOST_VIEWS = 4
"""Photographs of a picture."""
_CANDIDATES = 12
"""Photographs in which rays are cast to see what is hidden."""
_SAMPLE = 48
"""Points of an instance that are looked for in a photograph."""
_REACH = 3.0
"""A point is seen where the surface is at most this many cells in front of it."""
_WIDTH = 640
"""Width of each photograph in a picture."""
_LEAST_SHARE = 0.6
"""A photograph shows an instance well if at least this share as well as its best one."""
_EDGE_POINTS = 24
"""Points of a box's edge, which a lens may bend."""
_TEXT = 18
"""Height of a label in pixels."""
_BACK = (255, 255, 255)


def write_sightings(scene: Scene, answers: Sequence[Found], file: StrPath) -> Path | None:
    """Writes a picture of the photographs that show instances best, with their boxes drawn.

    Args:
        scene: The scene.
        answers: The answers; each has a colour of its own.
        file: A file that ends in .png or .jpg.

    Returns:
        The file; None where there are no instances.

    Raises:
        ExportError: If the file cannot be written.
        F3rmError: If a photograph cannot be read, or its camera is not perspective.
    """
    path = check_file(as_path(file), PICTURE_SUFFIXES, what="a picture")
    colours = [tuple(row) for row in (palette(len(answers)) * 255).byte().tolist()]
    instances = [instance for found in answers for instance in found]
    labels = [
        (f"{number} {shortened(found.question)}", colour)
        for found, colour in zip(answers, colours, strict=True)
        for number in range(1, len(found) + 1)
    ]
    panels: list[Picture] = []
    for view, shown in best_views(scene, instances) if instances else ():
        picture = Image.fromarray(view.photograph())
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
        for number in shown:
            draw_box(picture, scene, view, instances[number], *labels[number])
        texts = [view.name, *(each.verdict for each in answers)]
        below = text_lines([printable(text) for text in texts], [_BACK, *colours], _WIDTH)
        panels.append(np.concatenate((np.asarray(picture), below)))
    if not panels:
        return None
    height = max(len(panel) for panel in panels)
    padded = [
        np.pad(p, ((0, height - len(p)), (0, 8), (0, 0)), constant_values=255) for p in panels
    ]
    sheet = Image.fromarray(np.concatenate(padded, axis=1))
    write_file(path, lambda stream: sheet.save(stream, PICTURE_SUFFIXES[path.suffix.lower()]))
    return path


@torch.no_grad()
def best_views(scene: Scene, instances: Sequence[Instance]) -> list[tuple[View, list[int]]]:
    """Returns training photographs that together show instances best, and whom each shows.

    An instance is shown well where much of it is inside the picture, large, and not hidden.

    Args:
        scene: The scene.
        instances: At least one.

    Returns:
        At most :data:`MOST_VIEWS` photographs, each with indices of instances.
    """
    views = views_of(scene.run, scene.run.train)
    samples = [_sample(scene, instance) for instance in instances]
    sizes = np.array([[_size_in(view, points) for points in samples] for view in views])
    likely = np.unique(np.argsort(-sizes, axis=0, kind="stable")[:3])
    likely = likely[np.argsort(-sizes[likely].sum(axis=1), kind="stable")][:_CANDIDATES]
    reach = [
        _REACH * each.spacing * scene.frames.get(each.frame).scene_per_unit for each in instances
    ]
    clear = sizes[likely] * [_visible_shares(scene, views[i], samples, reach) for i in likely]
    quality = clear / np.maximum(clear.max(axis=0), 1e-12)  # (candidates, instances), at most 1
    chosen: list[tuple[View, list[int]]] = []
    left = clear.max(axis=0) > 0
    while left.any() and len(chosen) < MOST_VIEWS:
        shown_well = (quality >= _LEAST_SHARE) & left
        best = int(np.argmax((quality * shown_well).sum(axis=1)))
        shown = np.flatnonzero(quality[best] >= _LEAST_SHARE / 2)
        chosen.append((views[likely[best]], shown.tolist()))
        left &= ~shown_well[best]
    return chosen


def _sample(scene: Scene, instance: Instance) -> Float[Tensor, "points 3"]:
    """Returns some of an instance's points, evenly chosen, in the scene frame."""
    step = -(-len(instance.points) // _SAMPLE)
    return scene.frames.get(instance.frame).to_scene(instance.points[::step]).float()


def _size_in(view: View, points: Float[Tensor, "points 3"]) -> float:
    """Returns how large points are in a photograph, as a share of its side; 0 if mostly outside."""
    xy, inside = _pixels(view, points)
    share = float(inside.float().mean())
    if share <= 0.5:
        return 0.0
    sides = xy[inside].amax(dim=0) - xy[inside].amin(dim=0)
    # Cubed, so that the whole of a thing is better than a large part of it.
    return share**3 * float((sides.prod() / (view.size[0] * view.size[1])).sqrt())


def _pixels(
    view: View, points: Float[Tensor, "points 3"]
) -> tuple[Float[Tensor, "points 2"], Bool[Tensor, " points"]]:
    """Returns the pixel of each point, and whether it is inside the picture."""
    xy, depth = view.file_camera(view.size).project(points)
    limits = xy.new_tensor([view.size[1] - 1, view.size[0] - 1])
    return xy, (depth > 0) & ((xy >= 0) & (xy <= limits)).all(dim=1)


def _visible_shares(
    scene: Scene, view: View, samples: Sequence[Float[Tensor, "_ 3"]], reach: Sequence[float]
) -> list[float]:
    """Returns the share of each sample's points that no surface hides."""
    points = torch.cat(list(samples))
    counts = [len(sample) for sample in samples]
    xy, seen = _pixels(view, points)
    if bool(seen.any()):
        outputs = scene.source.at_pixels(view.camera, xy[seen].flip(-1) + 0.5, hidden=False)
        distances = (points[seen] - view.camera.camera_to_worlds[0, :, 3]).norm(dim=1)
        slack = torch.tensor(reach).repeat_interleave(torch.tensor(counts))[seen]
        seen[seen.clone()] = outputs["depth"][:, 0, 0].cpu() >= distances - slack
    return [float(part.float().mean()) for part in seen.split(counts)]


def draw_box(
    picture: Image.Image,
    scene: Scene,
    view: View,
    instance: Instance,
    label: str,
    colour: tuple[int, ...],
) -> None:
    """Draws an instance's box into a photograph, with a label at its upper left.

    Args:
        picture: The photograph in any size; it is changed.
        scene: The scene.
        view: The photograph's view.
        instance: The instance.
        label: The text.
        colour: RGB in [0, 255].
    """
    corners = torch.from_numpy(instance.box.corners())
    corners = scene.frames.get(instance.frame).to_scene(corners).float()
    pairs = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]
    along = torch.linspace(0, 1, _EDGE_POINTS)[:, None]
    camera = view.file_camera((picture.height, picture.width))
    draw = ImageDraw.Draw(picture)
    for first, last in pairs:
        edge = corners[first] * (1 - along) + corners[last] * along
        xy, depth = camera.project(edge)
        line = [tuple(point) for point in xy[depth > 0].tolist()]
        if len(line) > 1:
            draw.line(line, fill=colour, width=3)
    xy, depth = camera.project(corners)
    if bool((depth > 0).any()):
        left, top = xy[depth > 0].amin(dim=0).clamp(min=0).tolist()
        place = (min(left, picture.width - 60), max(0.0, top - _TEXT))
        font = ImageFont.load_default(size=_TEXT - 4)
        draw.rectangle(draw.textbbox(place, label, font=font), fill=_BACK)
        draw.text(place, label, fill="black", font=font)
