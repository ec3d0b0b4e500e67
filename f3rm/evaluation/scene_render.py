"""Pictures of a generated scene: colours with shadows, and which object and how far at each pixel.

Cameras follow Nerfstudio: x right, y up, looking along -z; pixel (row, column) has its centre at
(column + 0.5, row + 0.5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

from f3rm.evaluation.raycast import Hits, Raycaster
from f3rm.evaluation.scene_objects import SceneSpec

_SUBPIXELS = ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25))
_LIFT = 1e-3
"""How far shadow rays start off their surface, in metres."""


@dataclass(frozen=True)
class View:
    """A pinhole camera in the scene.

    Attributes:
        world_from_camera: Its pose.
        focal: Focal length in pixels, the same for x and y; the principal point is the middle.
        height: Rows of the picture.
        width: Columns of the picture.
    """

    world_from_camera: Float[np.ndarray, "4 4"]
    focal: float
    height: int
    width: int


@dataclass(frozen=True)
class RenderedView:
    """What a camera sees.

    Attributes:
        rgb: Colours, averaged over four rays per pixel.
        ids: Index into the scene's names of what the ray through the pixel's centre hits; -1 where
            it hits nothing.
        depth: Of the same hit, along the optical axis, in metres; infinite where nothing is hit.
    """

    rgb: UInt8[np.ndarray, "height width 3"]
    ids: Int32[np.ndarray, "height width"]
    depth: Float32[np.ndarray, "height width"]


def look_at(eye: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"]) -> np.ndarray:
    """Returns the pose (4, 4) of a camera at ``eye`` that looks at ``target``, z being up.

    Args:
        eye: Where the camera is, not straight above or below the target.
        target: What it sees in the middle of its picture.
    """
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((right, np.cross(back, right), back), axis=1)
    pose[:3, 3] = eye
    return pose


class SceneRenderer:
    """Renders views of a scene.

    Args:
        spec: The scene.

    Raises:
        RaycastError: If Open3D cannot be imported.
    """

    def __init__(self, spec: SceneSpec) -> None:
        self._spec = spec
        self._caster = Raycaster([part.mesh() for part in spec.parts])
        names = spec.names
        ids = [names.index(part.name) for part in spec.parts]
        self._id_of_part = np.array([*ids, -1], dtype=np.int32)  # index -1: nothing is hit

    def render(self, view: View) -> RenderedView:
        """Renders one view."""
        shape = (view.height, view.width)
        origins, directions = _camera_rays(view, (0.0, 0.0))
        centre = self._caster.cast(origins, directions)
        colours = np.zeros((view.height * view.width, 3), dtype=np.float32)
        for offset in _SUBPIXELS:
            colours += self._colours(*_camera_rays(view, offset))
        rgb = np.clip(255 * colours / len(_SUBPIXELS) + 0.5, 0, 255).astype(np.uint8)
        return RenderedView(
            rgb=rgb.reshape(*shape, 3),
            ids=self._id_of_part[centre.mesh].reshape(shape),
            depth=centre.distance.reshape(shape),
        )

    def _colours(
        self, origins: Float32[np.ndarray, "rays 3"], directions: Float32[np.ndarray, "rays 3"]
    ) -> Float32[np.ndarray, "rays 3"]:
        hits = self._caster.cast(origins, directions)
        seen = hits.mesh >= 0
        distance = np.where(seen, hits.distance, 0)
        points = origins + directions * distance[:, None]
        albedo = np.zeros_like(points)
        for index, part in enumerate(self._spec.parts):
            here = hits.mesh == index
            albedo[here] = part.texture.colours(part.local(points[here]))
        return albedo * self._light(points, hits, seen)[:, None]

    def _light(
        self,
        points: Float32[np.ndarray, "rays 3"],
        hits: Hits,
        seen: Bool[np.ndarray, " rays"],
    ) -> Float32[np.ndarray, " rays"]:
        """Returns ambient light plus Lambert's cosine of each light that is not in the way."""
        total = np.full(len(points), self._spec.ambient, dtype=np.float32)
        lifted = points + _LIFT * hits.normals
        for light in self._spec.lights:
            towards = np.array(light.position, dtype=np.float32) - lifted
            lengths = np.linalg.norm(towards, axis=-1)
            cosine = np.sum(towards * hits.normals, axis=-1) / lengths
            lit = seen & (cosine > 0)
            lit[lit] = ~self._caster.blocked(lifted[lit], towards[lit])
            total += np.where(lit, light.strength * cosine, 0).astype(np.float32)
        return total


def _camera_rays(
    view: View, offset: tuple[float, float]
) -> tuple[Float32[np.ndarray, "rays 3"], Float32[np.ndarray, "rays 3"]]:
    """Returns origins and directions in row order; a distance along them is a depth along -z.

    Args:
        view: The camera.
        offset: Rows and columns off the pixels' centres.
    """
    rows, columns = np.meshgrid(np.arange(view.height), np.arange(view.width), indexing="ij")
    x = (columns + 0.5 + offset[1] - view.width / 2) / view.focal
    y = -(rows + 0.5 + offset[0] - view.height / 2) / view.focal
    local = np.stack((x, y, -np.ones_like(x)), axis=-1).reshape(-1, 3)
    directions = local @ view.world_from_camera[:3, :3].T
    origins = np.broadcast_to(view.world_from_camera[:3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)
