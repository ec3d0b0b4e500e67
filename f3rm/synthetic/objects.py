"""Objects of generated scenes: their shapes as triangles, their textures, names and sizes; lights.

The simple shapes are trimesh's; mug, bowl and bottle are surfaces of revolution of a profile.
Lengths are metres, z points up. :mod:`f3rm.synthetic.render` renders them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import trimesh
from jaxtyping import Float, Float32, Float64, Int

Vector = tuple[float, float, float]
Pattern = Literal["plain", "checker", "stripes", "dots", "waves", "grain"]
Material = Literal["plain", "shiny", "striped", "checkered", "dotted", "wooden"]

Shape = Literal["box", "ball", "cylinder", "cone", "ring", "mug", "bowl", "bottle"]

SHAPES: tuple[Shape, ...] = ("box", "ball", "cylinder", "cone", "ring", "mug", "bowl", "bottle")

RING_FLATNESS = 0.36 / 1.36
"""Half height over half width of a ring: a tube of radius 0.36 around a circle of radius 1."""

_ROUND_SECTIONS = 64

# (radius, height) from the axis at the bottom up the outside, over the rim, back to the axis.
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

COLOURS: dict[str, Vector] = {
    "red": (0.85, 0.10, 0.08),
    "orange": (0.95, 0.48, 0.06),
    "yellow": (0.93, 0.84, 0.12),
    "green": (0.12, 0.62, 0.18),
    "turquoise": (0.10, 0.70, 0.68),
    "blue": (0.12, 0.25, 0.82),
    "purple": (0.48, 0.16, 0.68),
    "pink": (0.96, 0.50, 0.68),
    "white": (0.93, 0.93, 0.90),
    "black": (0.07, 0.07, 0.08),
}
"""Colours that names use, as RGB in [0, 1]."""

TELLING_MATERIALS: tuple[Material, ...] = ("shiny", "striped", "checkered", "dotted")
"""Materials that a name says beside its colour."""

MATERIALS: tuple[Material, ...] = ("plain", *TELLING_MATERIALS, "wooden")
"""Materials; a name leaves ``plain`` out, and ``wooden`` replaces its colour."""

_WOODS: tuple[tuple[Vector, Vector], ...] = (
    ((0.40, 0.24, 0.12), (0.62, 0.42, 0.25)),
    ((0.55, 0.36, 0.19), (0.76, 0.56, 0.35)),
    ((0.30, 0.18, 0.10), (0.48, 0.31, 0.19)),
)
_PATTERNS: dict[Material, Pattern] = {
    "striped": "stripes",
    "checkered": "checker",
    "dotted": "dots",
    "wooden": "grain",
}
_LIGHT = ("white", "yellow")
"""Colours that a lighter one would not show on."""
_SLANT = 0.8
"""Height that a stripe gains per length along x."""
_GLOSS = 0.75
_DOT_RADIUS = 0.33
_HALF_HEIGHTS: dict[Shape, tuple[float, float]] = {
    "box": (0.75, 1.3),
    "ball": (1.0, 1.0),
    "cylinder": (0.9, 1.5),
    "cone": (1.0, 1.5),
    "ring": (RING_FLATNESS, RING_FLATNESS),
    "mug": (1.0, 1.25),
    "bowl": (0.42, 0.55),
    "bottle": (2.1, 2.6),
}
"""Smallest and largest half height of each shape over its half width."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh; each triangle has three indices of vertices."""

    vertices: Float32[np.ndarray, "vertices 3"]
    triangles: Int[np.ndarray, "triangles 3"]


@lru_cache(maxsize=len(SHAPES))
def unit_mesh(shape: Shape) -> Mesh:
    """Returns a shape whose bounding box is the cube [-1, 1]^3, z upwards."""
    mesh = _build_mesh(shape)
    vertices = np.asarray(mesh.vertices)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (2 * vertices - (low + high)) / (high - low)
    return Mesh(vertices.astype(np.float32), np.asarray(mesh.faces, dtype=np.int64))


def _build_mesh(shape: Shape) -> trimesh.Trimesh:
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
    """Returns a mug's handle: the half of an upright ring that is outside of the wall."""
    ring = trimesh.creation.torus(0.46, 0.10, major_sections=40, minor_sections=16)
    ring.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))
    ring.apply_translation((0.76, 0.0, 0.85))
    half = ring.slice_plane((0.74, 0.0, 0.0), (1.0, 0.0, 0.0))
    assert half is not None  # noqa: S101 (the plane cuts the ring)
    return half


@dataclass(frozen=True)
class Texture:
    """A solid texture: a colour for every point of space, relative to the object's centre.

    Attributes:
        pattern: ``plain`` is the first colour; ``checker`` cubes, slanted ``stripes`` and ``dots``
            alternate the two; ``waves`` blends them smoothly, per channel, and is constant nowhere;
            ``grain`` blends them in rings around a vertical axis, like wood.
        first: RGB in [0, 1].
        second: RGB in [0, 1].
        period: Length after which the pattern repeats, in metres.
        gloss: Strength of reflections of lights and surroundings; 0 for a matte surface.
    """

    pattern: Pattern
    first: Vector
    second: Vector
    period: float = 0.1
    gloss: float = 0.0

    def colours(self, points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
        """Returns the RGB in [0, 1] of points relative to the object's centre."""
        first, second = np.array(self.first, np.float32), np.array(self.second, np.float32)
        if self.pattern == "waves":
            # Waves of its own in each channel vary both hue and brightness.
            return np.clip(first + (second - first) * _waves(points / self.period), 0, 1)
        if self.pattern == "grain":
            return first + (second - first) * _grain(points / self.period)[:, None]
        if self.pattern == "checker":
            # Without the offset an object's faces would be on planes between cubes, and rounding
            # would decide their colours.
            share = np.floor(2 * points / self.period + 0.37).sum(axis=-1) % 2
        elif self.pattern == "stripes":
            # Level ones would not show on a ring seen from above, nor on a box's lid.
            share = np.floor(2 * (points[:, 2] + _SLANT * points[:, 0]) / self.period + 0.37) % 2
        elif self.pattern == "dots":
            cells = points / self.period + 0.37
            share = np.linalg.norm(cells - np.round(cells), axis=-1) < _DOT_RADIUS
        else:
            share = np.zeros(len(points))
        return np.where(share[:, None] > 0, second, first)


def _waves(points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
    directions = np.array([[1.0, 0.3, 0.6], [-0.4, 1.0, 0.5], [0.5, -0.7, 1.0]])
    slow = np.sin(2 * np.pi * points @ directions.T)
    fast = np.sin(2 * np.pi * 2.3 * points @ directions[::-1].T + 1.0)
    return (0.5 + 0.35 * slow + 0.15 * fast).astype(np.float32)


def _grain(points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, " points"]:
    x, y, z = points.T
    bent = np.hypot(x + 1.7 + 0.2 * np.sin(1.3 * z), y + 0.6 + 0.15 * np.sin(0.9 * z + 2.0))
    return (0.5 + 0.4 * np.sin(2 * np.pi * bent) + 0.1 * np.sin(17.0 * bent + 3 * z)).astype(
        np.float32
    )


@dataclass(frozen=True)
class Part:
    """A shape at a place in the scene; parts of one name and instance are one object.

    Attributes:
        name: The object's name, which several objects may share.
        shape: The kind of shape.
        centre: Centre of its bounding box.
        half_size: Half its extent along x, y and z, before it is turned.
        texture: Its colours.
        yaw: Rotation about z, in radians.
        instance: Number of the object among those of its name.
    """

    name: str
    shape: Shape
    centre: Vector
    half_size: Vector
    texture: Texture
    yaw: float = 0.0
    instance: int = 0

    def mesh(self) -> Mesh:
        """Returns the triangles, in the scene's frame."""
        unit = unit_mesh(self.shape)
        vertices = unit.vertices * self.half_size @ self._turn.T + self.centre
        return Mesh(vertices.astype(np.float32), unit.triangles)

    def local(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        """Returns points of the scene in the part's own frame: its centre at 0, not turned."""
        return (points - self.centre) @ self._turn

    @property
    def _turn(self) -> Float64[np.ndarray, "3 3"]:
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@dataclass(frozen=True)
class Light:
    """A point light that casts shadows and does not fade with distance.

    Attributes:
        position: In metres.
        strength: Light that it adds to a surface that faces it.
        colour: Factor of the strength, per channel.
    """

    position: Vector
    strength: float
    colour: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class SceneSpec:
    """A scene to render.

    Attributes:
        name: Its kind, e.g. ``"tabletop"``.
        seed: The seed that it was drawn with.
        parts: All shapes.
        lights: All lamps.
        ambient: Light that reaches every surface, from all sides.
    """

    name: str
    seed: int
    parts: tuple[Part, ...]
    lights: tuple[Light, ...]
    ambient: float

    @property
    def objects(self) -> tuple[tuple[str, int], ...]:
        """Name and instance of each object; an object's id is its index here."""
        return tuple(dict.fromkeys((part.name, part.instance) for part in self.parts))


@dataclass(frozen=True)
class Description:
    """The words that describe an object.

    Attributes:
        shape: The kind of shape.
        colour: One of :data:`COLOURS`; None for a wooden object.
        material: One of :data:`MATERIALS`.
    """

    shape: Shape
    colour: str | None = None
    material: Material = "plain"

    @property
    def name(self) -> str:
        """The object's name, e.g. ``"striped red mug"`` or ``"wooden box"``."""
        material = "" if self.material == "plain" else self.material
        return " ".join(word for word in (material, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Placement:
    """The place of an object.

    Attributes:
        x: Of its centre, in metres.
        y: Of its centre, in metres.
        floor: Height of the surface below it, in metres.
        yaw: Rotation about z, in radians.
        instance: Number of the object among those of its name.
    """

    x: float
    y: float
    floor: float = 0.0
    yaw: float = 0.0
    instance: int = 0


def draw_description(rng: np.random.Generator, *, fancy: float = 0.5) -> Description:
    """Draws the words of an object.

    Args:
        rng: The random generator.
        fancy: Probability of a material other than plain.
    """
    material: Material = "plain"
    if rng.random() < fancy:
        material = MATERIALS[int(rng.integers(1, len(MATERIALS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    colour = None if material == "wooden" else str(rng.choice(list(COLOURS)))
    return Description(shape=shape, colour=colour, material=material)


def of_another_material(rng: np.random.Generator, own: Description) -> Description:
    """Returns an object that differs by material alone; both names say theirs.

    Args:
        rng: The random generator.
        own: An object that has a colour.
    """
    others = [material for material in TELLING_MATERIALS if material != own.material]
    return replace(own, material=others[int(rng.integers(len(others)))])


def build_part(
    description: Description,
    place: Placement,
    radius: float,
    rng: np.random.Generator,
    *,
    jitter: float = 0.0,
) -> Part:
    """Builds the shape of a described object.

    Args:
        description: Its words.
        place: Its place.
        radius: Half its larger width, in metres; a bottle gets 0.55 of it.
        rng: Draws the height and the texture's details.
        jitter: Largest difference of its colour from the named RGB, per channel.
    """
    wide = np.array({"mug": (1.0, 0.73)}.get(description.shape, (1.0, 1.0))) * radius
    if description.shape == "bottle":
        wide = wide * 0.55
    height = float(wide[0] * rng.uniform(*_HALF_HEIGHTS[description.shape]))
    return Part(
        name=description.name,
        shape=description.shape,
        centre=(place.x, place.y, place.floor + height),
        half_size=(float(wide[0]), float(wide[1]), height),
        texture=_texture(description, radius, rng, jitter),
        yaw=place.yaw,
        instance=place.instance,
    )


def _texture(
    description: Description, radius: float, rng: np.random.Generator, jitter: float
) -> Texture:
    period = radius * float(rng.uniform(0.7, 1.1))
    if description.colour is None:
        first, second = _WOODS[int(rng.integers(len(_WOODS)))]
        return Texture("grain", first, second, period=0.5 * period)
    first = np.clip(COLOURS[description.colour] + rng.uniform(-jitter, jitter, 3), 0, 1)
    lighter = description.colour not in _LIGHT and rng.random() < 0.5
    second = 0.35 * first + 0.6 if lighter or description.colour == "black" else 0.38 * first
    period *= {"dotted": 0.55, "striped": 0.8}.get(description.material, 1.0)
    return Texture(
        pattern=_PATTERNS.get(description.material, "plain"),
        first=_vector(first),
        second=_vector(second),
        period=period,
        gloss=_GLOSS if description.material == "shiny" else 0.0,
    )


def _vector(values: Float[np.ndarray, " 3"]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
