"""Generated datasets: views of a scene written as photographs with ``transforms.json``.

A dataset appears at once and complete, or not at all: it is built beside its place and renamed.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from f3rm._types import DatasetError
from f3rm.evaluation.scene_objects import ROOM, SceneSpec, tabletop
from f3rm.evaluation.scene_render import SceneRenderer, View, look_at
from f3rm.features.progress import track

SCENE_FILE = "scene.json"
TRANSFORMS_FILE = "transforms.json"

GENERATOR_VERSION = 1
"""Raised when the same settings give other pictures, so that no older dataset is mistaken."""

NEAR_PLANE, FAR_PLANE = 0.3, 4.0
"""Between these, in the units that Nerfstudio scales the cameras to, lies everything that a camera
of the tabletop sees (0.54 to 3.4). Told so, f3rm-lite grows no floaters before the cameras."""

_DISTANCE = 1.75
_ELEVATIONS = (22.0, 40.0, 30.0, 54.0)
_FOCAL_PER_WIDTH = 0.87  # a field of view of about 60 degrees
_DISTORTION = ("k1", "k2", "p1", "p2")


@dataclass(frozen=True)
class SceneSettings:
    """What decides a generated dataset.

    Attributes:
        seed: Draws the objects, their colours and their places.
        views: Number of photographs.
        height: Rows of a photograph.
        width: Columns of a photograph.
    """

    seed: int = 0
    views: int = 40
    height: int = 180
    width: int = 240

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("views", 2), ("height", 8), ("width", 8)):
            value = getattr(self, name)
            if value < least:
                msg = (
                    f"SceneSettings: {name} must be at least {least}, got {value}. Ask for "
                    "a larger number."
                )
                raise DatasetError(msg)


def make_tabletop(
    folder: Path, settings: SceneSettings | None = None, *, show_progress: bool = False
) -> bool:
    """Writes the tabletop scene as a dataset, unless it is there already.

    Args:
        folder: The dataset's folder; made if need be.
        settings: Seed and sizes; None takes the defaults.
        show_progress: Whether a bar counts the views.

    Returns:
        Whether it was written; False if the same scene was there and is used as it is.

    Raises:
        DatasetError: If the folder has something else in it, or cannot be written to.
        RaycastError: If Open3D, which renders, cannot be imported.
    """
    settings = settings or SceneSettings()
    spec = tabletop(settings.seed)
    views = tabletop_views(settings)
    return write_scene(folder, spec, views, show_progress=show_progress)


def tabletop_views(settings: SceneSettings) -> list[View]:
    """Returns cameras once around the table at four heights in turn, looking at its middle."""
    rng = np.random.default_rng([settings.seed, 1])
    views: list[View] = []
    for index in range(settings.views):
        azimuth = 2 * math.pi * index / settings.views
        elevation = math.radians(_ELEVATIONS[index % len(_ELEVATIONS)] + rng.uniform(-3, 3))
        around = [math.cos(azimuth), math.sin(azimuth)]
        direction = np.array([*(np.array(around) * math.cos(elevation)), math.sin(elevation)])
        target = np.array([*rng.uniform(-0.08, 0.08, 2), 0.05])
        distance = _DISTANCE * rng.uniform(0.94, 1.06)
        views.append(
            View(
                look_at(target + distance * direction, target),
                focal=_FOCAL_PER_WIDTH * settings.width,
                height=settings.height,
                width=settings.width,
            )
        )
    return views


def write_scene(
    folder: Path, spec: SceneSpec, views: Sequence[View], *, show_progress: bool = False
) -> bool:
    """Renders a scene and writes it in Nerfstudio's format; see :func:`make_tabletop`.

    Args:
        folder: The dataset's folder.
        spec: The scene.
        views: Its photographs' cameras, all of one size and focal length.
        show_progress: Whether a bar counts the views.

    Returns:
        Whether it was written.

    Raises:
        DatasetError: If the folder has something else in it, or cannot be written to.
        RaycastError: If Open3D, which renders, cannot be imported.
    """
    folder = folder.expanduser().absolute()
    description = _description(spec, views)
    if _holds(folder, description):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
            built = Path(aside) / folder.name
            _write_images(built / "images", spec, views, show_progress=show_progress)
            _write_json(built / TRANSFORMS_FILE, _transforms(views))
            _write_json(built / SCENE_FILE, description)
            built.rename(folder)
    except OSError as error:
        msg = (
            f"write_scene: {str(folder)!r} must be a place that can be written to, got: {error}. "
            "Choose another folder."
        )
        raise DatasetError(msg) from error
    return True


def model_options(folder: Path) -> list[str]:
    """Returns options of ns-train that a generated dataset is best trained with; none for others.

    Args:
        folder: Any dataset's folder.
    """
    description = _read_description(folder / SCENE_FILE)
    if not isinstance(description, dict) or "near_plane" not in description:
        return []
    near, far = description["near_plane"], description["far_plane"]
    return ["--pipeline.model.near-plane", str(near), "--pipeline.model.far-plane", str(far)]


def _holds(folder: Path, description: dict[str, Any]) -> bool:
    """Returns whether a folder has the scene (True) or is free for it (False).

    Raises:
        DatasetError: If it has anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _read_description(folder / SCENE_FILE)
    if found == description and all((folder / name).is_file() for name in _files(description)):
        return True
    kind = "another scene, or an incomplete one" if found is not None else "other files"
    msg = (
        f"write_scene: the folder must be new, empty, or hold the same scene, got {str(folder)!r} "
        f"with {kind}. Choose another folder, or move that one away."
    )
    raise DatasetError(msg)


def _read_description(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # no scene of ours


def _files(description: dict[str, Any]) -> list[str]:
    return [TRANSFORMS_FILE, *(_image_name(index) for index in range(description["views"]))]


def _image_name(index: int) -> str:
    return f"images/frame_{index + 1:05d}.png"


def _write_images(
    folder: Path, spec: SceneSpec, views: Sequence[View], *, show_progress: bool
) -> None:
    folder.mkdir(parents=True)
    rendered = map(SceneRenderer(spec).render, views)
    bar = track(rendered, total=len(views), label="Rendering the scene", show=show_progress)
    for index, picture in enumerate(bar):
        Image.fromarray(picture.rgb).save(folder / Path(_image_name(index)).name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _transforms(views: Sequence[View]) -> dict[str, Any]:
    view = views[0]
    return {
        "camera_model": "OPENCV",
        "fl_x": view.focal,
        "fl_y": view.focal,
        "cx": view.width / 2,
        "cy": view.height / 2,
        "w": view.width,
        "h": view.height,
        **dict.fromkeys(_DISTORTION, 0.0),
        "frames": [
            {"file_path": _image_name(index), "transform_matrix": view.world_from_camera.tolist()}
            for index, view in enumerate(views)
        ],
    }


def _description(spec: SceneSpec, views: Sequence[View]) -> dict[str, Any]:
    """Returns what is in the scene, as JSON has it (lists, not tuples)."""
    objects: list[dict[str, Any]] = []
    for part in spec.parts:
        if part.name == ROOM:
            continue
        objects.append(
            {
                "id": spec.names.index(part.name),
                **{key: value for key, value in asdict(part).items() if key != "texture"},
            }
        )
    content = {
        "generator": GENERATOR_VERSION,
        "scene": spec.name,
        "seed": spec.seed,
        "views": len(views),
        "height": views[0].height,
        "width": views[0].width,
        "near_plane": NEAR_PLANE,
        "far_plane": FAR_PLANE,
        "objects": objects,
    }
    return json.loads(json.dumps(content))
