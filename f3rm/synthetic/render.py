"""Renders generated scenes: colours with shadows, and the object and depth at each pixel.

Rays are cast by Open3D (Embree).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from f3rm.errors import F3rmError
from f3rm.scene.open3d_library import require_open3d
from f3rm.synthetic.cameras import View, camera_rays
from f3rm.synthetic.objects import Mesh, SceneSpec

_SUBPIXELS = ((-0.25, -0.25), (0.25, 0.25), (-0.25, 0.25), (0.25, -0.25))
_SHININESS = 24.0
_MIRROR = 0.3
"""Share of its surroundings that a surface of gloss 1 reflects towards its front."""
_LIFT = 1e-3
"""Distance in metres of shadow rays' origins from their surface, which would else block them."""


class RaycastError(F3rmError):
    """Open3D, which casts the rays, cannot be imported."""


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray.

    Attributes:
        mesh: Index of the mesh, -1 for no hit.
        distance: In lengths of the ray's direction; infinite for no hit.
        normals: Unit normals of the triangles, turned towards the ray's origin.
    """

    mesh: Int[np.ndarray, " rays"]
    distance: Float32[np.ndarray, " rays"]
    normals: Float32[np.ndarray, "rays 3"]


class Raycaster:
    """Casts rays against meshes.

    Args:
        meshes: The surfaces; both sides of a triangle are hit.

    Raises:
        RaycastError: If Open3D cannot be imported.
    """

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        open3d = require_open3d("Open3D, which renders the scene", error=RaycastError)
        self._tensor = open3d.core.Tensor
        self._scene = open3d.t.geometry.RaycastingScene()
        for mesh in meshes:
            self._scene.add_triangles(
                self._tensor(np.ascontiguousarray(mesh.vertices)),
                self._tensor(np.ascontiguousarray(mesh.triangles, dtype=np.uint32)),
            )
        self._nothing = int(self._scene.INVALID_ID)

    def cast(
        self, origins: Float32[np.ndarray, "rays 3"], directions: Float32[np.ndarray, "rays 3"]
    ) -> Hits:
        """Returns each ray's first hit; directions may have any length."""
        found = self._scene.cast_rays(self._rays(origins, directions))
        mesh = found["geometry_ids"].numpy().astype(np.int64)
        normals = found["primitive_normals"].numpy()
        away = np.sum(normals * directions, axis=-1, keepdims=True) > 0
        return Hits(
            mesh=np.where(mesh == self._nothing, -1, mesh),
            distance=found["t_hit"].numpy(),
            normals=np.where(away, -normals, normals),
        )

    def blocked(
        self, origins: Float32[np.ndarray, "rays 3"], directions: Float32[np.ndarray, "rays 3"]
    ) -> Bool[np.ndarray, " rays"]:
        """Returns whether a surface is between each origin and ``origin + direction``."""
        rays = self._rays(origins, directions)
        return self._scene.test_occlusions(rays, tnear=0.0, tfar=1.0).numpy()

    def _rays(
        self, origins: Float32[np.ndarray, "rays 3"], directions: Float32[np.ndarray, "rays 3"]
    ) -> Any:
        return self._tensor(np.concatenate((origins, directions), axis=-1))


@dataclass(frozen=True)
class RenderedView:
    """A rendered view.

    Attributes:
        rgb: Colours, averaged over a few rays per pixel.
        ids: Index into the scene's objects of the hit of the ray through the pixel's centre; -1
            for no hit.
        depth: Of the same hit, along the optical axis, in metres; infinite for no hit.
    """

    rgb: UInt8[np.ndarray, "height width 3"]
    ids: Int32[np.ndarray, "height width"]
    depth: Float32[np.ndarray, "height width"]


class SceneRenderer:
    """Renders views of a scene.

    Args:
        spec: The scene.
        samples: Rays per pixel for its colour, 2 or 4.

    Raises:
        RaycastError: If Open3D cannot be imported.
    """

    def __init__(self, spec: SceneSpec, *, samples: int = 4) -> None:
        self._spec = spec
        self._samples = samples
        self._caster = Raycaster([part.mesh() for part in spec.parts])
        objects = spec.objects
        ids = [objects.index((part.name, part.instance)) for part in spec.parts]
        self._id_of_part = np.array([*ids, -1], dtype=np.int32)  # index -1, no hit, takes the last

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
        self,
        origins: Float32[np.ndarray, "rays 3"],
        directions: Float32[np.ndarray, "rays 3"],
        *,
        mirrors: bool = True,
    ) -> Float32[np.ndarray, "rays 3"]:
        """Returns the colours that rays meet; glossy surfaces mirror matte ones."""
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
        diffuse, specular = self._light(points, directions, hits, seen)
        colours = albedo * diffuse
        shiny = gloss > 0
        if mirrors and shiny.any():
            normals = hits.normals[shiny]
            ahead = directions[shiny] / np.linalg.norm(directions[shiny], axis=-1, keepdims=True)
            cosine = -np.sum(ahead * normals, axis=-1, keepdims=True)
            # Schlick, "An inexpensive BRDF model for physically-based rendering", 1994.
            front = _MIRROR * gloss[shiny, None]
            share = front + (1 - front) * np.clip(1 - cosine, 0, 1) ** 5
            start = points[shiny] + _LIFT * normals
            seen_there = self._colours(start, ahead + 2 * cosine * normals, mirrors=False)
            colours[shiny] += share * (seen_there - colours[shiny])
        return colours + gloss[:, None] * specular

    def _light(
        self,
        points: Float32[np.ndarray, "rays 3"],
        directions: Float32[np.ndarray, "rays 3"],
        hits: Hits,
        seen: Bool[np.ndarray, " rays"],
    ) -> tuple[Float32[np.ndarray, "rays 3"], Float32[np.ndarray, "rays 3"]]:
        """Returns diffuse and specular light at points, shadows included.

        Diffuse is ambient light plus Lambert's cosine; specular is the cosine between normal and
        half-way vector to a power (Blinn, "Models of light reflection for computer synthesized
        pictures", 1977).
        """
        diffuse = np.full((len(points), 3), self._spec.ambient, dtype=np.float32)
        specular = np.zeros_like(diffuse)
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
            specular += np.where(lit, highlight, 0)[:, None] * strength
        return diffuse.astype(np.float32), specular.astype(np.float32)
