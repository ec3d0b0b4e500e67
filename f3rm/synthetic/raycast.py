"""Rays against triangle meshes, by Open3D's ray caster (Embree)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from f3rm.errors import F3rmError
from f3rm.scene.open3d_library import require_open3d
from f3rm.synthetic.meshes import Mesh


class RaycastError(F3rmError):
    """Open3D, which casts the rays, cannot be used on this machine."""


@dataclass(frozen=True)
class Hits:
    """Where rays first meet a surface.

    Attributes:
        mesh: Index of the mesh that is hit, -1 where none is.
        distance: In lengths of the ray's direction; infinite where nothing is hit.
        normals: Unit normals of the triangles, turned towards the ray's origin.
    """

    mesh: Int[np.ndarray, " rays"]
    distance: Float32[np.ndarray, " rays"]
    normals: Float32[np.ndarray, "rays 3"]


class Raycaster:
    """Finds what rays hit among some meshes.

    Args:
        meshes: The surfaces; both sides of a triangle count.

    Raises:
        RaycastError: If Open3D cannot be imported.
    """

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        open3d = require_open3d("Raycaster: Open3D, which renders the scene", error=RaycastError)
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
        """Returns each ray's first hit.

        Args:
            origins: Where the rays start.
            directions: Where they go, of any length.
        """
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
        """Returns whether something stands between each origin and ``origin + direction``."""
        rays = self._rays(origins, directions)
        return self._scene.test_occlusions(rays, tnear=0.0, tfar=1.0).numpy()

    def _rays(
        self, origins: Float32[np.ndarray, "rays 3"], directions: Float32[np.ndarray, "rays 3"]
    ) -> Any:
        return self._tensor(np.concatenate((origins, directions), axis=-1))
