"""Generated datasets: photographs of a scene, ``transforms.json`` and ground truth.

A dataset is built beside its folder and renamed, so that it appears complete or not at all.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from f3rm.errors import DatasetError, StrPath, as_path
from f3rm.scene.metres import SCENE_FILE
from f3rm.store.items import TRANSFORMS
from f3rm.store.progress import track
from f3rm.synthetic.cameras import View, draw_views
from f3rm.synthetic.layouts import Layout, SceneKind, draw_layout
from f3rm.synthetic.render import SceneRenderer
from f3rm.synthetic.scene_truth import (
    dataset_pose,
    describe_truth,
    draw_dataset_from_metres,
    seen_distances,
    training_planes,
    write_view,
)
from f3rm.synthetic.truth import IMAGE_FOLDER, truth_files

GENERATOR_VERSION = 3
"""Increased when the same settings give other pictures, so that an older dataset is not reused."""

_DISTORTION = ("k1", "k2", "p1", "p2")


@dataclass(frozen=True)
class SceneSettings:
    """Seed and sizes of a generated dataset; each kind of scene with them is one dataset.

    Attributes:
        seed: Draws the objects, their colours and their places.
        views: Number of photographs.
        height: Rows of a photograph; of the largest landscape one if sizes are mixed.
        width: Columns of it.
    """

    seed: int = 0
    views: int = 48
    height: int = 360
    width: int = 480

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("views", 2), ("height", 8), ("width", 8)):
            value = getattr(self, name)
            if value < least:
                raise DatasetError(f"--{name} must be at least {least}, got {value}.")


def make_tabletop(
    folder: StrPath, settings: SceneSettings | None = None, *, show_progress: bool = False
) -> bool:
    """Writes the tabletop as a dataset; arguments, result and errors are :func:`make_scene`'s."""
    return make_scene(folder, "tabletop", settings, show_progress=show_progress)


def make_scene(
    folder: StrPath,
    kind: SceneKind,
    settings: SceneSettings | None = None,
    *,
    show_progress: bool = False,
) -> bool:
    """Writes a generated scene as a dataset with truth, unless the folder already holds it.

    Args:
        folder: The dataset's folder; created if it does not exist.
        kind: One of :data:`~f3rm.synthetic.layouts.SCENE_KINDS`.
        settings: Seed and sizes; None takes the defaults.
        show_progress: Whether a bar counts the views.

    Returns:
        Whether it was written; False if the folder already held the same scene.

    Raises:
        DatasetError: If the folder has other content, or cannot be written to.
        RaycastError: If Open3D, which renders, cannot be imported.
    """
    settings = settings or SceneSettings()
    folder = as_path(folder).expanduser().absolute()
    identity = {"generator": GENERATOR_VERSION, "scene": kind, **asdict(settings)}
    if _holds(folder, identity):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
            built = Path(aside) / folder.name
            _build(built, identity, kind, settings, show_progress=show_progress)
            built.rename(folder)
    except OSError as error:
        msg = f"{str(folder)!r} cannot be written: {error}. Choose another folder."
        raise DatasetError(msg) from error
    return True


def model_options(folder: StrPath) -> list[str]:
    """Returns options of ns-train for a generated dataset; none for other datasets.

    They set the near and far plane around all surfaces that the cameras see, which keeps f3rm-lite
    from growing floaters before the cameras.

    Args:
        folder: Any dataset's folder.
    """
    description = _read_description(as_path(folder) / SCENE_FILE)
    if not isinstance(description, dict) or not {"near_plane", "far_plane"} <= set(description):
        return []
    near, far = description["near_plane"], description["far_plane"]
    return ["--pipeline.model.near-plane", str(near), "--pipeline.model.far-plane", str(far)]


def image_name(index: int) -> str:
    """Returns the path of a photograph in its dataset, e.g. ``"images/frame_00001.png"``.

    Args:
        index: Its number among the views, from 0.
    """
    return f"{IMAGE_FOLDER}/frame_{index + 1:05d}.png"


def _build(
    folder: Path,
    identity: dict[str, Any],
    kind: SceneKind,
    settings: SceneSettings,
    *,
    show_progress: bool,
) -> None:
    layout = draw_layout(kind, settings.seed)
    sizes = {"height": settings.height, "width": settings.width}
    views = draw_views(kind, settings.seed, views=settings.views, **sizes)
    frame = draw_dataset_from_metres(settings.seed)
    distances = _write_pictures(folder, layout, views, show_progress=show_progress)
    near, far = training_planes(views, frame, *distances)
    truth = describe_truth(layout, frame)
    _write_json(folder / TRANSFORMS, _transforms(views, frame))
    _write_json(folder / SCENE_FILE, {**identity, "near_plane": near, "far_plane": far, **truth})


def _write_pictures(
    folder: Path, layout: Layout, views: Sequence[View], *, show_progress: bool
) -> tuple[float, float]:
    """Renders and writes all views; returns the shortest and longest distance to a surface."""
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    rendered = map(SceneRenderer(layout.spec).render, views)
    bar = track(rendered, total=len(views), label="Rendering the scene", show=show_progress)
    nearest, farthest = math.inf, 0.0
    for index, (view, picture) in enumerate(zip(views, bar, strict=True)):
        path = folder / image_name(index)
        Image.fromarray(picture.rgb).save(path)
        write_view(folder, path.name, picture)
        distances = seen_distances(view, picture)
        nearest = min(nearest, float(distances.min(initial=math.inf)))
        farthest = max(farthest, float(distances.max(initial=0)))
    return nearest, farthest


def _holds(folder: Path, identity: dict[str, Any]) -> bool:
    """Returns whether a folder holds the scene (True) or is free for it (False).

    Raises:
        DatasetError: If it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _read_description(folder / SCENE_FILE)
    same = isinstance(found, dict) and all(found.get(key) == identity[key] for key in identity)
    if same and all(path.is_file() for path in _files(folder, identity["views"])):
        return True
    what = "another scene, or an incomplete one" if found is not None else "other files"
    msg = (
        f"The folder must be new, empty, or hold the same scene, but {str(folder)!r} holds {what}. "
        "Choose another folder, or move that one away."
    )
    raise DatasetError(msg)


def _read_description(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # a file of someone else's


def _files(folder: Path, views: int) -> list[Path]:
    images = [folder / image_name(index) for index in range(views)]
    truths = [path for image in images for path in truth_files(folder, image.name)]
    return [folder / TRANSFORMS, *images, *truths]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _transforms(
    views: Sequence[View], dataset_from_metres: Float64[np.ndarray, "4 4"]
) -> dict[str, Any]:
    """Returns the cameras: values that all frames share once, the others with each frame."""
    cameras = [_intrinsics(view) for view in views]
    shared = {
        key: value
        for key, value in cameras[0].items()
        if all(camera[key] == value for camera in cameras)
    }
    frames = []
    for index, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        pose = dataset_pose(dataset_from_metres, view.world_from_camera)
        own = {key: value for key, value in camera.items() if key not in shared}
        entry = {"file_path": image_name(index), "transform_matrix": pose.tolist()}
        frames.append({**entry, **own})
    return {"camera_model": "OPENCV", **shared, "frames": frames}


def _intrinsics(view: View) -> dict[str, float]:
    (focal_x, focal_y), (x, y) = view.focals, view.centre
    camera = {"fl_x": focal_x, "fl_y": focal_y, "cx": x, "cy": y, "w": view.width, "h": view.height}
    return camera | dict(zip(_DISTORTION, view.distortion, strict=True))
