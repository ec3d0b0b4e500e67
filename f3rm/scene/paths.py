"""Cameras to render from: those of photographs, a path between them, or one from a file."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.camera_utils import get_interpolated_poses_many
from nerfstudio.cameras.cameras import Cameras

from f3rm.errors import F3rmError, check_number
from f3rm.scene.scene import Scene
from f3rm.store.names import safe_part, safe_paths

INTERPOLATED = "interpolate"


class CameraPathError(F3rmError):
    """A camera path cannot be read."""


@dataclass(frozen=True)
class CameraPath:
    """Cameras in the order in which they are rendered.

    Attributes:
        names: A file name for each, without its ending.
        cameras: The cameras, in the scene frame.
    """

    names: tuple[str, ...]
    cameras: Cameras


def check_views(views: str, *, between: int = 10, downscale: float = 1.0) -> None:
    """Checks, without a scene, what :func:`choose_path` takes.

    Raises:
        CameraPathError: If ``views`` is neither a known word nor a camera path that can be read.
        F3rmError: If a number is not positive.
    """
    check_number("--between", between, above=0)
    check_number("--downscale", downscale, above=0)
    if views not in ("train", "eval", INTERPOLATED):
        read_path(Path(views))


def choose_path(
    scene: Scene, views: str, *, between: int = 10, downscale: float = 1.0
) -> CameraPath:
    """Returns the cameras to render from.

    Args:
        scene: The scene.
        views: ``train`` or ``eval`` for the cameras of these photographs, ``interpolate`` for a
            path through those of the held-out ones, or a camera path file (.json) of Nerfstudio's
            viewer.
        between: Frames from one camera to the next on an interpolated path.
        downscale: Factor by which the pictures are smaller than the photographs.

    Raises:
        CameraPathError: If ``views`` is none of these, or the file cannot be read.
        F3rmError: If a number is not positive.
    """
    check_views(views, between=between, downscale=downscale)
    if views == "train" or views == "eval":
        cameras = scene.cameras(views, frame="nerfstudio")
        names = file_names(scene.views(views))
    else:
        cameras = interpolated(scene, between) if views == INTERPOLATED else read_path(Path(views))
        names = tuple(f"frame_{number:05d}" for number in range(len(cameras)))
    if downscale != 1:
        cameras.rescale_output_resolution(1 / downscale)
    return CameraPath(names, cameras)


def file_names(views: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a file name without ending for each view: its own, or its path where names repeat."""
    stems = tuple(safe_part(Path(view).stem) for view in views)
    if len(set(stems)) == len(stems):
        return stems
    paths = safe_paths(views)
    joined = tuple("_".join(paths[view].with_suffix("").parts) for view in views)
    if len(set(joined)) == len(joined):
        return joined
    # a/b.png and a_b.png are joined alike.
    return tuple(f"{name}_{number}" for number, name in enumerate(joined))


def interpolated(scene: Scene, between: int) -> Cameras:
    """Returns a path through the held-out cameras, each followed by the nearest remaining one.

    The lens is the first camera's, without distortion.

    Args:
        scene: The scene.
        between: Frames from one camera to the next.

    Raises:
        CameraPathError: If there are not two held-out cameras.
    """
    cameras = scene.cameras("eval", frame="nerfstudio")
    if len(cameras) < 2:
        msg = (
            f"--views {INTERPOLATED} needs at least two held-out views, got {len(cameras)}. Give a "
            "camera path file instead."
        )
        raise CameraPathError(msg)
    poses, _ = get_interpolated_poses_many(
        cameras.camera_to_worlds,
        cameras.get_intrinsics_matrices(),
        steps_per_transition=between,
        order_poses=True,
    )
    first = cameras[0]
    return Cameras(
        camera_to_worlds=torch.as_tensor(poses)[:, :3],
        fx=float(first.fx),
        fy=float(first.fy),
        cx=float(first.cx),
        cy=float(first.cy),
        width=int(first.width),
        height=int(first.height),
        camera_type=first.camera_type,
    )


def read_path(file: Path) -> Cameras:
    """Reads a camera path of Nerfstudio's viewer, in the scene frame.

    Raises:
        CameraPathError: If it cannot be read or has no camera.
    """
    try:
        content = json.loads(file.expanduser().read_text(encoding="utf-8"))
        return get_path_from_json(content)
    # Nerfstudio checks nothing: a wrong file ends in any of these.
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        msg = (
            f"--views must be train, eval, {INTERPOLATED} or a camera path (.json) that "
            f"Nerfstudio's viewer saved, got {str(file)!r}: {type(error).__name__}: {error}. Save "
            "one in the viewer's Render tab."
        )
        raise CameraPathError(msg) from error
