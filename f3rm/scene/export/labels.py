"""Label transfer: pictures of all views, and the surfaces, with the best label of each place."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from nerfstudio.cameras.cameras import Cameras
from PIL import Image

from f3rm.colours.palette import best_query_index, palette
from f3rm.errors import StrPath, as_path
from f3rm.language.questions import Query, Question, all_scores, questions_in
from f3rm.language.threshold import RELEVANCY_FLOOR
from f3rm.scene.export.files import write_cloud, write_file
from f3rm.scene.export.points import Sampling, surface
from f3rm.scene.found import NONE_OF_THESE
from f3rm.scene.paths import CameraPath, choose_path
from f3rm.scene.scene import Scene
from f3rm.store.progress import track


@torch.no_grad()
def export_labels(
    scene: Scene,
    folder: StrPath,
    query: Query,
    *,
    views: Sequence[str] = ("train", "eval"),
    sampling: Sampling | None = None,
    threshold: float | None = None,
    downscale: float = 1.0,
    show_progress: bool = False,
) -> dict[str, int]:
    """Writes ``<view>.png`` for each view, ``points.ply`` and ``labels.json`` into a folder.

    A picture has a palette: its values are 0 for none of these and 1 for the first label. The
    property ``label`` of a point has the same values. Examples from the scene bound each other:
    of several, a place has the label of the most similar one that is nearer to it than the mean of
    all features.

    Args:
        scene: The scene.
        folder: The folder.
        query: The labels, in words or from :meth:`Scene.like`.
        views: As :func:`choose_path` takes them.
        sampling: Number, spacing and frame of the points; None for the defaults.
        threshold: The least score of every label; None for 0.5 of several examples from the scene,
            and chosen from the scene's scores of others.
        downscale: Factor by which the pictures are smaller than the photographs.
        show_progress: Whether a bar counts views.

    Returns:
        The number of points of each label, and of none of these.

    Raises:
        ExportError: If a file cannot be written, or the scene has no surfaces.
        F3rmError: If labels, views or frame cannot be used.
    """
    path = as_path(folder).expanduser().absolute()
    asked = [scene.question(each) for each in questions_in(query)]
    cameras = [choose_path(scene, each, downscale=downscale) for each in views]
    least = [_least(scene, asked, each) if threshold is None else threshold for each in asked]
    names = (NONE_OF_THESE, *(each.label for each in asked))
    colours = torch.cat((torch.zeros(1, 3), palette(len(asked)))).mul(255).round().to(torch.uint8)

    points = surface(scene, sampling or Sampling())
    scores = all_scores(asked, points.hidden.to(asked[0].device)).float().cpu()
    labels = best_query_index(scores, tuple(least)).numpy() + 1
    scalars = {"label": labels.astype(np.int32)}
    write_cloud(path / "points.ply", points.positions.numpy(), colours.numpy()[labels], scalars)
    listed = [
        {"value": value, "label": name, "colour": colour}
        for value, (name, colour) in enumerate(zip(names, colours.tolist(), strict=True))
    ]
    content = json.dumps({"labels": listed}, indent=2) + "\n"
    write_file(path / "labels.json", lambda stream: stream.write(content.encode()))

    pictures = _named_cameras(views, cameras)
    for name, camera in track(pictures, total=len(pictures), label="views", show=show_progress):
        images = scene.render(camera, ["labels"], query=asked, thresholds=least, frame="nerfstudio")
        picture = _paletted(images["labels"].numpy() + 1, colours.flatten().tolist())
        write_file(path / f"{name}.png", lambda stream, of=picture: of.save(stream, "PNG"))
    return {name: int((labels == value).sum()) for value, name in enumerate(names)}


def _least(scene: Scene, asked: Sequence[Question], label: Question) -> float:
    if label.is_present and len(asked) > 1:
        return RELEVANCY_FLOOR
    return scene.threshold(label)


def _named_cameras(views: Sequence[str], paths: Sequence[CameraPath]) -> list[tuple[str, Cameras]]:
    """Returns each camera with its picture's name: with the views where two would share it."""
    used = Counter(name for path in paths for name in path.names)
    return [
        (name if used[name] == 1 else f"{kind}_{name}", path.cameras[number])
        for kind, path in zip(views, paths, strict=True)
        for number, name in enumerate(path.names)
    ]


def _paletted(values: Int[np.ndarray, "height width"], colours: list[int]) -> Image.Image:
    """Returns a picture whose pixels are indices into a palette."""
    picture = Image.fromarray(values.astype(np.uint8), mode="P")
    picture.putpalette(colours)
    return picture
