"""What generated scenes are made of: named things with shapes, sizes and textures, and lights.

Lengths are metres, z points up. Nothing here renders; see :mod:`f3rm.synthetic.render`.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from f3rm.synthetic.meshes import RING_FLATNESS, SHAPES, Mesh, Shape, unit_mesh

Vector = tuple[float, float, float]
Pattern = Literal["plain", "checker", "stripes", "dots", "waves", "grain"]
Material = Literal["plain", "shiny", "striped", "checkered", "dotted", "wooden"]

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
"""Colours that things are named by, as RGB in [0, 1]."""

MATERIALS: tuple[Material, ...] = ("plain", "shiny", "striped", "checkered", "dotted", "wooden")
"""What things are made of; ``plain`` is not said in a name, ``wooden`` stands for a colour."""

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
"""Least and largest half height of each shape over its half width."""


@dataclass(frozen=True)
class Texture:
    """A colour for every point of space, relative to the middle of what wears it.

    Attributes:
        pattern: ``plain`` is the first colour; ``checker`` cubes, ``stripes`` along z and ``dots``
            alternate the two; ``waves`` blends smoothly between colours around the two, never
            constant; ``grain`` blends them in rings about a vertical axis, like wood.
        first: RGB in [0, 1].
        second: RGB in [0, 1].
        period: Length after which the pattern repeats.
        gloss: How strongly lights are mirrored, 0 for a matte surface.
    """

    pattern: Pattern
    first: Vector
    second: Vector
    period: float = 0.1
    gloss: float = 0.0

    def colours(self, points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
        """Returns the RGB of points."""
        first, second = np.array(self.first, np.float32), np.array(self.second, np.float32)
        if self.pattern == "waves":
            # Each channel has waves of its own, so that hue and brightness both vary.
            return np.clip(first + (second - first) * _waves(points / self.period), 0, 1)
        if self.pattern == "grain":
            return first + (second - first) * _grain(points / self.period)[:, None]
        if self.pattern == "checker":
            # The offset keeps faces off the planes between cubes, where rounding would decide.
            share = np.floor(2 * points / self.period + 0.37).sum(axis=-1) % 2
        elif self.pattern == "stripes":
            share = np.floor(2 * points[:, 2] / self.period + 0.37) % 2
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
    """A shape somewhere in the scene.

    Attributes:
        name: What it is called; several objects may share a name.
        shape: Its kind.
        centre: Middle of its box.
        half_size: Half its extent along x, y and z, before it is turned.
        texture: Its colours.
        yaw: How far it is turned about z, in radians.
        instance: Tells objects of one name apart; parts of one name and instance are one object.
    """

    name: str
    shape: Shape
    centre: Vector
    half_size: Vector
    texture: Texture
    yaw: float = 0.0
    instance: int = 0

    def mesh(self) -> Mesh:
        """Returns the triangles in the scene."""
        unit = unit_mesh(self.shape)
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        vertices = unit.vertices * self.half_size @ turn.T + self.centre
        return Mesh(vertices.astype(np.float32), unit.triangles)

    def local(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        """Returns points of the scene relative to the middle, turned with the part."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return (points - self.centre) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@dataclass(frozen=True)
class Light:
    """A point light that casts shadows and does not fade with distance.

    Attributes:
        position: Where it is.
        strength: How bright it makes a surface that faces it.
        colour: What it is multiplied by per channel.
    """

    position: Vector
    strength: float
    colour: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class SceneSpec:
    """A scene to render.

    Attributes:
        name: Its kind, e.g. ``"tabletop"``.
        seed: What it was drawn from.
        parts: All surfaces.
        lights: What lights them.
        ambient: Light that reaches every surface.
    """

    name: str
    seed: int
    parts: tuple[Part, ...]
    lights: tuple[Light, ...]
    ambient: float

    @property
    def objects(self) -> tuple[tuple[str, int], ...]:
        """The objects, each by name and instance; an object's id is its index here."""
        return tuple(dict.fromkeys((part.name, part.instance) for part in self.parts))


@dataclass(frozen=True)
class Thing:
    """An object by the words that describe it.

    Attributes:
        shape: Its kind.
        colour: One of :data:`COLOURS`, or None where it is wooden.
        material: What it is made of.
    """

    shape: Shape
    colour: str | None = None
    material: Material = "plain"

    @property
    def name(self) -> str:
        """What it is called, e.g. ``"striped red mug"`` or ``"wooden box"``."""
        material = "" if self.material == "plain" else self.material
        return " ".join(word for word in (material, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Place:
    """Where a thing stands.

    Attributes:
        x: Of its middle.
        y: Of its middle.
        floor: Height of what it stands on.
        yaw: How far it is turned about z, in radians.
        instance: Tells it from others of its name.
    """

    x: float
    y: float
    floor: float = 0.0
    yaw: float = 0.0
    instance: int = field(default=0)


def draw_thing(rng: np.random.Generator, *, fancy: float = 0.5) -> Thing:
    """Draws a thing.

    Args:
        rng: Where chance comes from.
        fancy: How likely it is to be of a material other than plain.
    """
    material: Material = "plain"
    if rng.random() < fancy:
        material = MATERIALS[int(rng.integers(1, len(MATERIALS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    colour = None if material == "wooden" else str(rng.choice(list(COLOURS)))
    return Thing(shape=shape, colour=colour, material=material)


def build_part(
    thing: Thing, place: Place, radius: float, rng: np.random.Generator, *, jitter: float = 0.0
) -> Part:
    """Makes a thing of a size.

    Args:
        thing: What it is.
        place: Where it stands.
        radius: Half its larger width, in metres.
        rng: Draws the height and the texture's details.
        jitter: How far its colour may be from the colour's usual RGB, per channel.
    """
    wide = np.array({"mug": (1.0, 0.73)}.get(thing.shape, (1.0, 1.0))) * radius
    if thing.shape == "bottle":
        wide = wide * 0.55
    height = float(wide[0] * rng.uniform(*_HALF_HEIGHTS[thing.shape]))
    return Part(
        name=thing.name,
        shape=thing.shape,
        centre=(place.x, place.y, place.floor + height),
        half_size=(float(wide[0]), float(wide[1]), height),
        texture=_texture(thing, radius, rng, jitter),
        yaw=place.yaw,
        instance=place.instance,
    )


def _texture(thing: Thing, radius: float, rng: np.random.Generator, jitter: float) -> Texture:
    period = radius * float(rng.uniform(0.7, 1.1))
    if thing.colour is None:
        first, second = _WOODS[int(rng.integers(len(_WOODS)))]
        return Texture("grain", first, second, period=0.5 * period)
    first = np.clip(COLOURS[thing.colour] + rng.uniform(-jitter, jitter, 3), 0, 1)
    lighter = rng.random() < 0.5
    second = 0.35 * first + 0.6 if lighter or thing.colour == "black" else 0.38 * first
    if thing.colour == "white":
        second = 0.42 * first
    if thing.material == "dotted":
        period *= 0.55
    return Texture(
        pattern=_PATTERNS.get(thing.material, "plain"),
        first=_vector(first),
        second=_vector(second),
        period=period,
        gloss=_GLOSS if thing.material == "shiny" else 0.0,
    )


def _vector(values: Float[np.ndarray, " 3"]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
