"""Shapes of the generated scenes' objects, as triangles that fill a cube.

The simple ones are trimesh's; mug, bowl and bottle are turned on the lathe from a profile.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import trimesh
from jaxtyping import Float32, Int

Shape = Literal["box", "ball", "cylinder", "cone", "ring", "mug", "bowl", "bottle"]

SHAPES: tuple[Shape, ...] = ("box", "ball", "cylinder", "cone", "ring", "mug", "bowl", "bottle")

RING_FLATNESS = 0.36 / 1.36
"""Half height over half width of a ring: a round tube of radius 0.36 about a circle of radius 1."""

_ROUND_SECTIONS = 64

# (radius, height) from the axis at the bottom, outside, over the rim, back to the axis.
_BOWL = (
    *((0.0, 0.0), (0.42, 0.0), (0.62, 0.08), (0.84, 0.30), (0.96, 0.56), (1.0, 0.78)),
    *((0.93, 0.78), (0.88, 0.56), (0.76, 0.34), (0.55, 0.16), (0.0, 0.09)),
)
_BOTTLE = (
    *((0.0, 0.0), (0.46, 0.0), (0.50, 0.06), (0.50, 1.25), (0.44, 1.45), (0.22, 1.70)),
    *((0.18, 1.78), (0.18, 2.15), (0.22, 2.17), (0.22, 2.26), (0.0, 2.26)),
)
_MUG = (
    *((0.0, 0.0), (0.74, 0.0), (0.78, 0.05), (0.78, 1.7), (0.70, 1.7), (0.70, 0.12)),
    (0.0, 0.12),
)
_PROFILES = {"bowl": _BOWL, "bottle": _BOTTLE, "mug": _MUG}


@dataclass(frozen=True)
class Mesh:
    """Triangles in space.

    Attributes:
        vertices: Positions.
        triangles: Three vertex indices per triangle.
    """

    vertices: Float32[np.ndarray, "vertices 3"]
    triangles: Int[np.ndarray, "triangles 3"]


@lru_cache(maxsize=len(SHAPES))
def unit_mesh(shape: Shape) -> Mesh:
    """Returns a shape that fills the cube [-1, 1]^3 between its opposite faces, z upwards.

    Args:
        shape: Its kind.
    """
    mesh = _build(shape)
    vertices = np.asarray(mesh.vertices)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (2 * vertices - (low + high)) / (high - low)
    return Mesh(vertices.astype(np.float32), np.asarray(mesh.faces, dtype=np.int64))


def _build(shape: Shape) -> trimesh.Trimesh:
    create = trimesh.creation
    if shape == "box":
        return create.box(extents=(2, 2, 2))
    if shape == "ball":
        return create.uv_sphere(radius=1.0, count=(_ROUND_SECTIONS, 2 * _ROUND_SECTIONS))
    if shape == "cylinder":
        return create.cylinder(radius=0.8, height=2.0, sections=_ROUND_SECTIONS)
    if shape == "cone":
        return create.cone(radius=0.9, height=2.0, sections=_ROUND_SECTIONS)
    if shape == "ring":
        return create.torus(1.0, 0.36, major_sections=_ROUND_SECTIONS, minor_sections=40)
    body = create.revolve(np.array(_PROFILES[shape]), sections=_ROUND_SECTIONS)
    parts = [body, _handle()] if shape == "mug" else [body]
    return cast("trimesh.Trimesh", trimesh.util.concatenate(parts))


def _handle() -> trimesh.Trimesh:
    """Returns a mug's handle: the half of a standing ring that is outside of the wall."""
    ring = trimesh.creation.torus(0.46, 0.10, major_sections=40, minor_sections=16)
    ring.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))
    ring.apply_translation((0.76, 0.0, 0.85))
    half = ring.slice_plane((0.74, 0.0, 0.0), (1.0, 0.0, 0.0))
    assert half is not None  # noqa: S101 (the plane cuts the ring)
    return half
