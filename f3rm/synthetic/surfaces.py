"""What surrounds the things of the generated scenes: walls, floors, furniture and lamps.

Nothing here has a constant colour: before a large surface of one colour, Nerfacto can hide
floaters. Lengths are metres, z points up.
"""

import math
from dataclasses import dataclass

import numpy as np

from f3rm.synthetic.objects import Light, Part, Pattern, Texture, Vector

TABLE_HALF = 0.74
"""Half the width of the tabletop, which is at height 0."""

ROOM_HALF = 1.75
"""Half the width of the room that is seen from inside, whose floor is at height 0."""

_HALL_HALF = 2.6
_TABLE_HEIGHT = 0.75
_THICK = 0.03
_LEG = 0.04

_FURNITURE_DEPTH, _FURNITURE_LENGTH = 0.28, 0.88  # half extents
_LOW_TABLE, _SHELF = 0.42, 0.92  # heights of the upper sides
_FURNITURE_ALONG = (-0.62, 0.0, 0.62)
_FLOOR_ALONG = (-0.4, 0.4)

_Pair = tuple[Vector, Vector]
_WALLS: tuple[_Pair, ...] = (
    ((0.78, 0.75, 0.70), (0.64, 0.62, 0.58)),
    ((0.62, 0.68, 0.74), (0.49, 0.55, 0.60)),
    ((0.74, 0.68, 0.66), (0.60, 0.55, 0.54)),
    ((0.66, 0.71, 0.64), (0.53, 0.57, 0.52)),
)
_FLOORS: tuple[_Pair, ...] = (
    ((0.42, 0.40, 0.38), (0.28, 0.29, 0.31)),
    ((0.36, 0.39, 0.42), (0.48, 0.48, 0.46)),
    ((0.46, 0.42, 0.37), (0.34, 0.30, 0.27)),
)
_BOARDS: tuple[_Pair, ...] = (
    ((0.72, 0.66, 0.59), (0.60, 0.54, 0.48)),
    ((0.58, 0.56, 0.54), (0.70, 0.68, 0.66)),
    ((0.48, 0.43, 0.38), (0.58, 0.53, 0.47)),
)


@dataclass(frozen=True)
class Spot:
    """A free place in the room.

    Attributes:
        x: Of its middle.
        y: Of its middle.
        floor: Height of what is there to stand on.
        radii: Least and largest radius of a thing that fits.
    """

    x: float
    y: float
    floor: float
    radii: tuple[float, float]


def table_surfaces(rng: np.random.Generator) -> list[Part]:
    """Returns a table in the middle of a hall."""
    floor = -_TABLE_HEIGHT
    board = _texture(rng, _BOARDS, ("grain", "grain", "checker"), period=0.36)
    top = Part("table", "box", (0.0, 0.0, -_THICK), (TABLE_HALF, TABLE_HALF, _THICK), board)
    legs = _legs(top, floor)
    return [*_shell(rng, _HALL_HALF, floor=floor, ceiling=2.6), top, *legs]


def room_surfaces(rng: np.random.Generator) -> list[Part]:
    """Returns a room with low tables at two of its walls and shelves at the others."""
    parts = _shell(rng, ROOM_HALF, floor=0.0, ceiling=2.7)
    board = _texture(rng, _BOARDS, ("grain",), period=0.5)
    for side in range(4):
        height, name = (_SHELF, "shelf") if side % 2 else (_LOW_TABLE, "table")
        x, y = _at_wall(side, _FURNITURE_DEPTH, 0.0)
        half = (_FURNITURE_DEPTH, _FURNITURE_LENGTH, _THICK)
        yaw = side * math.pi / 2
        top = Part(name, "box", (x, y, height - _THICK), half, board, yaw, instance=side // 2)
        parts.append(top)
        if name == "table":
            parts += _legs(top, floor=0.0)
    return parts


def room_spots() -> list[Spot]:
    """Returns where things may stand: on tables and shelves, under these, and in the corners."""
    spots: list[Spot] = []
    for side in range(4):
        height = _SHELF if side % 2 else _LOW_TABLE
        upon = [_at_wall(side, _FURNITURE_DEPTH, along) for along in _FURNITURE_ALONG]
        spots += [Spot(x, y, height, (0.12, 0.165)) for x, y in upon]
        if side % 2:
            under = [_at_wall(side, 0.38, along) for along in _FLOOR_ALONG]
            spots += [Spot(x, y, 0.0, (0.15, 0.21)) for x, y in under]
        spots.append(Spot(*_at_wall(side, 0.42, ROOM_HALF - 0.42), 0.0, (0.19, 0.25)))
    return spots


def draw_lights(rng: np.random.Generator, *, height: float, spread: float) -> tuple[Light, Light]:
    """Returns a bright lamp on one side and a weaker one opposite, one warm and one cool.

    Args:
        rng: Draws where they are.
        height: Of both, about.
        spread: How far they are from the middle, seen from above.
    """
    angle = float(rng.uniform(0, 2 * math.pi))
    lights: list[Light] = []
    for strength, warmth, turn in ((0.5, 0.05, 0.0), (0.26, -0.05, float(rng.uniform(2.2, 4.0)))):
        x, y = spread * math.cos(angle + turn), spread * math.sin(angle + turn)
        z = height + float(rng.uniform(-0.1, 0.1))
        lights.append(Light((x, y, z), strength, (1 + warmth, 1.0, 1 - warmth)))
    return lights[0], lights[1]


def _shell(rng: np.random.Generator, half: float, *, floor: float, ceiling: float) -> list[Part]:
    """Returns walls, with ceiling, and a floor.

    The walls end below the floor: two surfaces at one place would show in turns. A second wall just
    behind the first catches rays that slip through the seam of two sides.
    """
    wall = _texture(rng, _WALLS, ("waves",), period=float(rng.uniform(0.9, 1.4)))
    ground = _texture(rng, _FLOORS, ("grain", "checker"), period=0.7)
    cellar = floor - 2 * _THICK
    middle, height = (ceiling + cellar) / 2, (ceiling - cellar) / 2
    behind = 1.01
    return [
        Part("wall", "box", (0.0, 0.0, middle), (half, half, height), wall),
        Part(
            "wall", "box", (0.0, 0.0, middle), (behind * half, behind * half, behind * height), wall
        ),
        Part("floor", "box", (0.0, 0.0, floor - _THICK), (half, half, _THICK), ground),
    ]


def _legs(top: Part, floor: float) -> list[Part]:
    """Returns a table's four legs; they belong to it by name and instance."""
    below = top.centre[2] - top.half_size[2]
    cos, sin = math.cos(top.yaw), math.sin(top.yaw)
    parts: list[Part] = []
    for right, back in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        x, y = right * (top.half_size[0] - 2 * _LEG), back * (top.half_size[1] - 2 * _LEG)
        centre = (
            top.centre[0] + cos * x - sin * y,
            top.centre[1] + sin * x + cos * y,
            (below + floor) / 2,
        )
        half = (_LEG, _LEG, (below - floor) / 2)
        parts.append(
            Part(top.name, "box", centre, half, top.texture, top.yaw, instance=top.instance)
        )
    return parts


def _at_wall(side: int, away: float, along: float) -> tuple[float, float]:
    """Returns the point at some distance from a wall and from that wall's middle."""
    angle = side * math.pi / 2
    out = ROOM_HALF - away
    return (
        math.cos(angle) * out - math.sin(angle) * along,
        math.sin(angle) * out + math.cos(angle) * along,
    )


def _texture(
    rng: np.random.Generator,
    colours: tuple[_Pair, ...],
    patterns: tuple[Pattern, ...],
    *,
    period: float,
) -> Texture:
    first, second = colours[int(rng.integers(len(colours)))]
    return Texture(patterns[int(rng.integers(len(patterns)))], first, second, period=period)
