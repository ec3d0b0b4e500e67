"""What is in a generated scene: named objects with shapes, sizes, textures, and lights.

Lengths are metres, z points up, the top of the table lies at z = 0. Nothing here renders; see
:mod:`f3rm.evaluation.scene_render`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from f3rm.evaluation.raycast import Mesh, Shape, unit_mesh

Vector = tuple[float, float, float]
Pattern = Literal["plain", "checker", "stripes", "waves"]

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
}
"""Colours that objects are named by, as RGB in [0, 1]."""

SHAPES: tuple[Shape, ...] = ("box", "ball", "cylinder", "cone", "ring")

ROOM = "room"
"""Name of what surrounds everything; its id is 0."""

TABLE_HALF = 0.72
_ROOM_HALF = (2.4, 2.4, 1.6)
_CELL = 0.44
_JITTER = 0.04
_RING_FLATNESS = 0.36 / 1.36  # the tube's radius over the ring's: a round tube


@dataclass(frozen=True)
class Texture:
    """A colour for every point of space, relative to the middle of what wears it.

    Attributes:
        pattern: ``plain`` is the first colour; ``checker`` cubes and ``stripes`` along z alternate
            the two; ``waves`` blends smoothly between colours around the two, never constant.
        first: RGB in [0, 1].
        second: RGB in [0, 1].
        period: Length after which the pattern repeats.
    """

    pattern: Pattern
    first: Vector
    second: Vector
    period: float = 0.1

    def colours(self, points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
        """Returns the RGB of points."""
        first, second = np.array(self.first, np.float32), np.array(self.second, np.float32)
        if self.pattern == "waves":
            # Each channel has waves of its own, so that hue and brightness both vary.
            return np.clip(first + (second - first) * _waves(points / self.period), 0, 1)
        if self.pattern == "checker":
            # The offset keeps faces off the planes between cubes, where rounding would decide.
            share = np.floor(2 * points / self.period + 0.37).sum(axis=-1) % 2
        elif self.pattern == "stripes":
            share = np.floor(2 * points[:, 2] / self.period + 0.37) % 2
        else:
            share = np.zeros(len(points))
        return np.where(share[:, None] > 0, second, first)


def _waves(points: Float[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
    directions = np.array([[1.0, 0.3, 0.6], [-0.4, 1.0, 0.5], [0.5, -0.7, 1.0]])
    slow = np.sin(2 * np.pi * points @ directions.T)
    fast = np.sin(2 * np.pi * 2.3 * points @ directions[::-1].T + 1.0)
    return (0.5 + 0.35 * slow + 0.15 * fast).astype(np.float32)


@dataclass(frozen=True)
class Part:
    """A shape somewhere in the scene.

    Attributes:
        name: What it belongs to; parts of one name are one object.
        shape: Its kind.
        centre: Middle of its box.
        half_size: Half its extent along x, y and z, before it is turned.
        texture: Its colours.
        yaw: How far it is turned about z, in radians.
    """

    name: str
    shape: Shape
    centre: Vector
    half_size: Vector
    texture: Texture
    yaw: float = 0.0

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
    """A point light that casts shadows and does not fade with distance."""

    position: Vector
    strength: float


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
    def names(self) -> tuple[str, ...]:
        """The objects' names without repetition; an object's id is its index."""
        return tuple(dict.fromkeys(part.name for part in self.parts))


def tabletop(seed: int) -> SceneSpec:
    """Draws a table with six to nine objects in a closed room.

    The room's walls have no constant colour: before an opaque constant background Nerfacto grows
    floaters.

    Args:
        seed: The same seed gives the same scene.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 10))
    colours = rng.permutation(list(COLOURS))[:count]
    shapes = [SHAPES[i % len(SHAPES)] for i in rng.permutation(count)]
    cells = rng.permutation(9)[:count]
    objects = [
        _object(rng, str(colour), shape, int(cell), patterned=index % 3 == 0)
        for index, (colour, shape, cell) in enumerate(zip(colours, shapes, cells, strict=True))
    ]
    lights = (Light((1.4, -0.9, 1.9), 0.52), Light((-1.5, 1.2, 1.7), 0.30))
    parts = (*_surroundings(), *objects)
    return SceneSpec(name="tabletop", seed=seed, parts=parts, lights=lights, ambient=0.42)


def _object(
    rng: np.random.Generator, colour: str, shape: Shape, cell: int, *, patterned: bool
) -> Part:
    radius = float(rng.uniform(0.10, 0.13) if shape == "box" else rng.uniform(0.12, 0.16))
    half_height = float(rng.uniform(0.12, 0.18))
    if shape == "ball":
        half_height = radius
    elif shape == "ring":
        radius, half_height = 0.17, 0.17 * _RING_FLATNESS
    row, column = divmod(cell, 3)
    x, y = (np.array([column, row]) - 1) * _CELL + rng.uniform(-_JITTER, _JITTER, 2)
    first = COLOURS[colour]
    darker = tuple(0.45 * value for value in first)
    texture = Texture(
        pattern=("stripes" if shape in ("cone", "cylinder") else "checker")
        if patterned
        else "plain",
        first=first,
        second=(darker[0], darker[1], darker[2]),
        period=0.14,
    )
    return Part(
        name=f"{colour} {shape}",
        shape=shape,
        centre=(float(x), float(y), half_height),
        half_size=(radius, radius, half_height),
        texture=texture,
        yaw=float(rng.uniform(0, np.pi / 2)),
    )


def _surroundings() -> tuple[Part, ...]:
    """Returns the room and the table: a top on one leg."""
    walls = Texture("waves", (0.30, 0.38, 0.46), (0.86, 0.80, 0.72), period=1.9)
    wood = Texture("waves", (0.44, 0.33, 0.23), (0.68, 0.54, 0.41), period=0.5)
    return (
        Part(ROOM, "box", (0.0, 0.0, _ROOM_HALF[2] - 0.8), _ROOM_HALF, walls),
        Part("table", "box", (0.0, 0.0, -0.03), (TABLE_HALF, TABLE_HALF, 0.03), wood),
        Part("table", "cylinder", (0.0, 0.0, -0.43), (0.12, 0.12, 0.37), wood),
    )
