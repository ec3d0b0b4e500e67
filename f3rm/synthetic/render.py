"""Pictures of a generated scene: colours with shadows, and which object and how far at each pixel.

Cameras follow Nerfstudio: x right, y up, looking along -z; pixel (row, column) has its centre at
(column + 0.5, row + 0.5).
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8

from f3rm.synthetic.objects import SceneSpec
from f3rm.synthetic.raycast import Hits, Raycaster

_SUBPIXELS = ((-0.25, -0.25), (0.25, 0.25), (-0.25, 0.25), (0.25, -0.25))
_SHININESS = 24.0
_LIFT = 1e-3
"""How far shadow rays start off their surface, in metres."""

_EXACT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-13)
"""When OpenCV may stop undistorting; its own rule is off by hundredths of a pixel."""


@dataclass(frozen=True)
class View:
    """A camera in the scene.

    Attributes:
        world_from_camera: Its pose.
        focal: Focal length in pixels along x, and along y unless ``focal_y`` is given.
        height: Rows of the picture.
        width: Columns of the picture.
        focal_y: Focal length in pixels along y; None is that along x.
        principal: Where the optical axis meets the picture, as x and y in pixels from its corner;
            None is the middle.
        distortion: OpenCV's k1, k2, p1, p2 of the lens.
    """

    world_from_camera: Float[np.ndarray, "4 4"]
    focal: float
    height: int
    width: int
    focal_y: float | None = None
    principal: tuple[float, float] | None = None
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def focals(self) -> tuple[float, float]:
        """Focal lengths along x and y, in pixels."""
        return self.focal, self.focal if self.focal_y is None else self.focal_y

    @property
    def centre(self) -> tuple[float, float]:
        """Principal point as x and y, in pixels from the picture's corner."""
        return self.principal or (self.width / 2, self.height / 2)


@dataclass(frozen=True)
class RenderedView:
    """What a camera sees.

    Attributes:
        rgb: Colours, averaged over a few rays per pixel.
        ids: Index into the scene's objects of what the ray through the pixel's centre hits; -1
            where it hits nothing.
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
        samples: Rays per pixel that its colour is averaged over, 2 or 4.

    Raises:
        RaycastError: If Open3D cannot be imported.
    """

    def __init__(self, spec: SceneSpec, *, samples: int = 4) -> None:
        self._spec = spec
        self._samples = samples
        self._caster = Raycaster([part.mesh() for part in spec.parts])
        objects = spec.objects
        ids = [objects.index((part.name, part.instance)) for part in spec.parts]
        self._id_of_part = np.array([*ids, -1], dtype=np.int32)  # index -1: nothing is hit

    def render(self, view: View) -> RenderedView:
        """Renders one view."""
        shape = (view.height, view.width)
        origins, directions = camera_rays(view, (0.0, 0.0))
        centre = self._caster.cast(origins, directions)
        colours = np.zeros((view.height * view.width, 3), dtype=np.float32)
        offsets = _SUBPIXELS[: self._samples]
        for offset in offsets:
            colours += np.minimum(self._colours(*camera_rays(view, offset)), 1)
        rgb = np.clip(255 * colours / len(offsets) + 0.5, 0, 255).astype(np.uint8)
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
        gloss = np.zeros(len(points), dtype=np.float32)
        for index, part in enumerate(self._spec.parts):
            here = hits.mesh == index
            albedo[here] = part.texture.colours(part.local(points[here]))
            gloss[here] = part.texture.gloss
        diffuse, mirrored = self._light(points, directions, hits, seen)
        return albedo * diffuse + gloss[:, None] * mirrored

    def _light(
        self,
        points: Float32[np.ndarray, "rays 3"],
        directions: Float32[np.ndarray, "rays 3"],
        hits: Hits,
        seen: Bool[np.ndarray, " rays"],
    ) -> tuple[Float32[np.ndarray, "rays 3"], Float32[np.ndarray, "rays 3"]]:
        """Returns what surfaces scatter and what they mirror of the lights that are not in the way.

        Scattered is ambient light plus Lambert's cosine; mirrored is the cosine between normal and
        half-way vector to a power (Blinn, "Models of light reflection for computer synthesized
        pictures", 1977).
        """
        diffuse = np.full((len(points), 3), self._spec.ambient, dtype=np.float32)
        mirrored = np.zeros_like(diffuse)
        back = -directions / np.linalg.norm(directions, axis=-1, keepdims=True)
        lifted = points + _LIFT * hits.normals
        for light in self._spec.lights:
            towards = np.array(light.position, dtype=np.float32) - lifted
            unit = towards / np.linalg.norm(towards, axis=-1, keepdims=True)
            cosine = np.sum(unit * hits.normals, axis=-1)
            lit = seen & (cosine > 0)
            lit[lit] = ~self._caster.blocked(lifted[lit], towards[lit])
            half = unit + back
            half = half / np.maximum(np.linalg.norm(half, axis=-1, keepdims=True), 1e-6)
            highlight = np.clip(np.sum(half * hits.normals, axis=-1), 0, 1) ** _SHININESS
            strength = light.strength * np.array(light.colour, dtype=np.float32)
            diffuse += np.where(lit, cosine, 0)[:, None] * strength
            mirrored += np.where(lit, highlight, 0)[:, None] * strength
        return diffuse.astype(np.float32), mirrored.astype(np.float32)


def camera_rays(
    view: View, offset: tuple[float, float] = (0.0, 0.0)
) -> tuple[Float32[np.ndarray, "rays 3"], Float32[np.ndarray, "rays 3"]]:
    """Returns origins and directions in row order; a distance along them is a depth along -z.

    Args:
        view: The camera.
        offset: Rows and columns off the pixels' centres.
    """
    lens = _Lens(view.height, view.width, view.focals, view.centre, view.distortion)
    directions = _lens_directions(lens, offset) @ view.world_from_camera[:3, :3].T
    origins = np.broadcast_to(view.world_from_camera[:3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)


@dataclass(frozen=True)
class _Lens:
    """What decides a camera's rays in its own frame."""

    height: int
    width: int
    focals: tuple[float, float]
    centre: tuple[float, float]
    distortion: tuple[float, float, float, float]


@lru_cache(maxsize=len(_SUBPIXELS) + 1)
def _lens_directions(lens: _Lens, offset: tuple[float, float]) -> Float64[np.ndarray, "rays 3"]:
    """Returns directions in the camera's frame; most views of a scene share them."""
    rows, columns = np.meshgrid(np.arange(lens.height), np.arange(lens.width), indexing="ij")
    x = (columns + 0.5 + offset[1] - lens.centre[0]) / lens.focals[0]
    y = (rows + 0.5 + offset[0] - lens.centre[1]) / lens.focals[1]
    if any(lens.distortion):
        x, y = _undistorted(x, y, lens.distortion)
    directions = np.stack((x, -y, -np.ones_like(x)), axis=-1).reshape(-1, 3)
    directions.setflags(write=False)
    return directions


def _undistorted(
    x: Float64[np.ndarray, "height width"],
    y: Float64[np.ndarray, "height width"],
    distortion: tuple[float, float, float, float],
) -> tuple[Float64[np.ndarray, "height width"], Float64[np.ndarray, "height width"]]:
    """Returns where points of the picture plane would be without the lens, at focal length one."""
    points = np.stack((x, y), axis=-1).reshape(-1, 1, 2)
    eye = np.eye(3)
    found = cv2.undistortPointsIter(points, eye, np.array(distortion), eye, eye, _EXACT)
    return found[:, 0, 0].reshape(x.shape), found[:, 0, 1].reshape(y.shape)
