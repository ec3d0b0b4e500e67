"""Layouts of generated scenes: objects on a table or along a room's walls, furniture and lamps.

All of it is drawn from a seed. Lengths are metres, z points up. No surface has a constant colour,
because Nerfacto can hide floaters before a large surface of one colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np

from f3rm.synthetic.descriptions import draw_absent, draw_descriptions
from f3rm.synthetic.objects import (
    Description,
    Light,
    Part,
    Pattern,
    Placement,
    SceneSpec,
    Texture,
    Vector,
    build_part,
)
from f3rm.synthetic.truth import AbsentPrompt

SceneKind = Literal["tabletop", "room", "tabletop-distorted", "tabletop-mixed"]

SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)

_ON_THE_TABLE, _IN_THE_ROOM = (8, 12), (18, 22)
"""Fewest and most objects."""

_GAP = 0.03
"""Smallest gap between two objects, and to the table's edge."""
_TRIES = 100
_MIN_DOTTED = 0.08
"""Smallest share of dots on each side of a dotted box."""
_TABLE_RADII = (0.105, 0.16)

TABLE_HALF = 0.74
"""Half the width of the tabletop, whose upper side is at height 0."""

ROOM_HALF = 2.3
"""Half the width of the room, whose floor is at height 0."""

_HALL_HALF = 2.6
_TABLE_HEIGHT = 0.75
_THICK = 0.03
_LEG = 0.04

_FURNITURE_DEPTH, _FURNITURE_LENGTH = 0.5, 1.4  # half extents
_LOW_TABLE, _SHELF = 0.40, 0.70  # heights of the upper sides
_GROUP = 1.0
"""Half the length of a group of objects on furniture."""
_STAND_HALF = 0.27
_STANDS = (
    *((x, y, 0.42) for x, y in ((1.2, 0.0), (-1.2, 0.0), (0.0, 1.2), (0.0, -1.2))),
    *((x, y, 0.8) for x, y in product((-1.05, 1.05), repeat=2)),
)
"""x, y and height of the stands, which are between furniture and cameras."""
_LEAST_SEEN = 0.8
"""Share of the cameras' places from which an object's middle is in sight, if that can be."""

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
class Layout:
    """A scene and the words of its objects.

    Attributes:
        spec: The scene.
        descriptions: The words of each of the spec's objects; None for a surface.
        absent: Prompts that are true of no object of the scene.
    """

    spec: SceneSpec
    descriptions: tuple[Description | None, ...]
    absent: tuple[AbsentPrompt, ...]


def draw_layout(kind: SceneKind, seed: int) -> Layout:
    """Draws a scene; the three kinds of tabletop have the same objects at the same places."""
    # The order of the draws is part of a scene: another order gives other scenes for all seeds.
    rng = np.random.default_rng([seed, 33 if kind == "room" else 31])
    if kind == "room":
        described = draw_descriptions(rng, *_IN_THE_ROOM, doubles=2)
        surfaces, lights = _room_surfaces(rng), _draw_lights(rng, height=2.3, spread=0.9)
        stands = [part for part in surfaces if part.name == "table" and part.instance > 1]
        parts = _put_down(rng, described, _room_areas(rng))
        least = _LEAST_SEEN
        while parts is None or not _all_in_sight(parts, stands, least):
            parts = _put_down(rng, described, _room_areas(rng))
            least *= 0.996  # so that an end comes
    else:
        described = draw_descriptions(rng, *_ON_THE_TABLE)
        surfaces, lights = _table_surfaces(rng), _draw_lights(rng, height=1.55, spread=1.3)
        table = _Area((0.0, 0.0), (TABLE_HALF, TABLE_HALF), 0.0, _TABLE_RADII)
        parts = None
        while parts is None:
            parts = _put_down(rng, described, [table] * len(described))
    spec = SceneSpec(kind, seed, (*surfaces, *parts), lights, float(rng.uniform(0.42, 0.5)))
    words = {(part.name, part.instance): own for part, own in zip(parts, described, strict=True)}
    return Layout(spec, tuple(map(words.get, spec.objects)), draw_absent(rng, described))


def reach(part: Part) -> float:
    """Returns the radius of the circle around a part, seen from above, in metres."""
    x, y, _ = part.half_size
    return math.hypot(x, y) if part.shape == "box" else max(x, y)


@dataclass(frozen=True)
class _Area:
    """A level rectangle for objects.

    Attributes:
        centre: x and y.
        half: Half its extent along x and y.
        floor: Its height.
        radii: Smallest and largest radius of its objects.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    floor: float
    radii: tuple[float, float]


def _put_down(
    rng: np.random.Generator, described: Sequence[Description], areas: Sequence[_Area]
) -> list[Part] | None:
    """Puts each object into the area of its number; None if an area is full before."""
    parts: list[Part] = []
    for index, own in enumerate(described):
        area = areas[index]
        radius = float(rng.uniform(*area.radii))
        yaw = float(rng.uniform(0, 2 * math.pi))
        place = Placement(0.0, 0.0, area.floor, yaw, _instance(described, index))
        part = _set_down(rng, _build(rng, own, place, radius), parts, area)
        if part is None:
            return None
        parts.append(part)
    return parts


def _set_down(
    rng: np.random.Generator, part: Part, others: Sequence[Part], area: _Area
) -> Part | None:
    room = np.array(area.half) - _GAP - reach(part)
    for _ in range(_TRIES):
        x, y = (float(value) for value in area.centre + rng.uniform(-room, room))
        moved = replace(part, centre=(x, y, part.centre[2]))
        if not any(_collide(moved, other) for other in others):
            return moved
    return None


def _collide(part: Part, other: Part) -> bool:
    return math.dist(part.centre[:2], other.centre[:2]) <= reach(part) + reach(other) + _GAP


def _all_in_sight(parts: Sequence[Part], stands: Sequence[Part], least: float) -> bool:
    """Returns whether cameras that look across the room have each object's middle in sight.

    Args:
        parts: The objects.
        stands: What else can hide them.
        least: Share of the cameras that must.
    """
    blockers = [*parts, *stands]
    centres = np.array([part.centre for part in blockers])
    half_sizes = np.array([part.half_size for part in blockers])
    for index, part in enumerate(parts):
        bearing = math.atan2(part.centre[1], part.centre[0])
        eyes = np.array(
            [
                (away * math.cos(bearing + turn), away * math.sin(bearing + turn), height)
                for away, turn, height in product(
                    (0.3, 0.85), np.linspace(2.1, 4.2, 5), (0.75, 1.1)
                )
            ]
        )
        towards = part.centre - eyes  # (eyes, 3)
        to_centres = centres[:, :2] - eyes[:, None, :2]  # (eyes, blockers, 2)
        way = np.linalg.norm(towards[:, :2], axis=1)[:, None]
        along = np.einsum("ebi,ei->eb", to_centres, towards[:, :2]) / way**2
        aside = np.abs(np.cross(to_centres, towards[:, None, :2])) / way
        above = np.abs(eyes[:, 2:] + along * towards[:, 2:] - centres[:, 2])
        hit = (along > 0) & (along < 1) & (aside < half_sizes[:, 0]) & (above < half_sizes[:, 2])
        hit[:, index] = False
        if hit.any(axis=1).mean() > 1 - least:
            return False
    return True


def _build(rng: np.random.Generator, own: Description, place: Placement, radius: float) -> Part:
    """Builds an object that looks like its name: a dotted box has dots on all sides."""
    part = build_part(own, place, radius, rng)
    while own.shape == "box" and own.material == "dotted" and not _has_dots_all_around(part):
        part = build_part(own, place, radius, rng)
    return part


def _has_dots_all_around(box: Part) -> bool:
    dots = np.array(box.texture.second, np.float32)
    steps = np.linspace(-1, 1, 25)
    across, up = (grid.ravel() for grid in np.meshgrid(steps, steps))
    face = np.stack((np.ones_like(across), across, up), axis=-1)  # of the cube, towards x
    for order, side in product(((0, 1, 2), (1, 0, 2)), (1, -1)):
        points = face[:, order] * side * box.half_size
        bare = (box.texture.colours(points) == dots).all(axis=-1).mean() < _MIN_DOTTED
        if bare:
            return False
    return True


def _instance(described: Sequence[Description], index: int) -> int:
    return sum(own.name == described[index].name for own in described[:index])


def _table_surfaces(rng: np.random.Generator) -> list[Part]:
    """Returns a table in the middle of a hall."""
    floor = -_TABLE_HEIGHT
    board = _surface_texture(rng, _BOARDS, ("grain", "grain", "checker"), period=0.36)
    top = Part("table", "box", (0.0, 0.0, -_THICK), (TABLE_HALF, TABLE_HALF, _THICK), board)
    legs = _legs(top, floor)
    return [*_shell(rng, _HALL_HALF, floor=floor, ceiling=2.6), top, *legs]


def _room_surfaces(rng: np.random.Generator) -> list[Part]:
    """Returns a room with low tables at two walls, shelves at the others, and four stands."""
    parts = _shell(rng, ROOM_HALF, floor=0.0, ceiling=2.7)
    board = _surface_texture(rng, _BOARDS, ("grain",), period=0.5)
    for side in range(4):
        height, name = (_SHELF, "shelf") if side % 2 else (_LOW_TABLE, "table")
        x, y = _at_wall(side, _FURNITURE_DEPTH, 0.0)
        half = (_FURNITURE_DEPTH, _FURNITURE_LENGTH, _THICK)
        yaw = side * math.pi / 2
        top = Part(name, "box", (x, y, height - _THICK), half, board, yaw, instance=side // 2)
        parts.append(top)
        if name == "table":
            parts += _legs(top, floor=0.0)
    for index, (x, y, height) in enumerate(_STANDS):
        half = (_STAND_HALF, _STAND_HALF, height / 2)
        parts.append(Part("table", "box", (x, y, height / 2), half, board, instance=2 + index))
    return parts


def _room_areas(rng: np.random.Generator) -> list[_Area]:
    """Draws the areas of a room, each as often as it may hold an object, in random order.

    Objects stand in groups on the furniture and on stands before it: they hide parts of each other.
    """
    areas: list[_Area] = []
    for side in range(4):
        group = _at_wall(side, _FURNITURE_DEPTH, float(rng.uniform(-0.5, 0.5)))
        half = (_GROUP, _FURNITURE_DEPTH) if side % 2 else (_FURNITURE_DEPTH, _GROUP)
        height = _SHELF if side % 2 else _LOW_TABLE
        areas += 4 * [_Area(group, half, height, (0.18, 0.22))]
    stand = (_STAND_HALF, _STAND_HALF)
    areas += [_Area((x, y), stand, height, (0.14, 0.165)) for x, y, height in _STANDS]
    return [areas[index] for index in rng.permutation(len(areas))]


def _draw_lights(rng: np.random.Generator, *, height: float, spread: float) -> tuple[Light, Light]:
    """Returns a bright warm lamp on one side and a weaker cool one opposite.

    ``height`` is that of both, to 0.1 m; ``spread`` their distance from the centre, from above.
    """
    angle = float(rng.uniform(0, 2 * math.pi))
    lights: list[Light] = []
    for strength, warmth, turn in ((0.5, 0.05, 0.0), (0.26, -0.05, float(rng.uniform(2.2, 4.0)))):
        x, y = spread * math.cos(angle + turn), spread * math.sin(angle + turn)
        z = height + float(rng.uniform(-0.1, 0.1))
        lights.append(Light((x, y, z), strength, (1 + warmth, 1.0, 1 - warmth)))
    return lights[0], lights[1]


def _shell(rng: np.random.Generator, half: float, *, floor: float, ceiling: float) -> list[Part]:
    """Returns the walls with the ceiling, as the inside of one box, and the floor."""
    wall = _surface_texture(rng, _WALLS, ("waves",), period=float(rng.uniform(0.9, 1.4)))
    ground = _surface_texture(rng, _FLOORS, ("grain",), period=0.7)
    # The walls end below the floor: of two surfaces in one plane, rounding would choose per pixel.
    cellar = floor - 2 * _THICK
    middle, height = (ceiling + cellar) / 2, (ceiling - cellar) / 2
    behind = 1.01  # A second box just outside catches rays that slip through the first one's seams.
    return [
        Part("wall", "box", (0.0, 0.0, middle), (half, half, height), wall),
        Part(
            "wall", "box", (0.0, 0.0, middle), (behind * half, behind * half, behind * height), wall
        ),
        Part("floor", "box", (0.0, 0.0, floor - _THICK), (half, half, _THICK), ground),
    ]


def _legs(top: Part, floor: float) -> list[Part]:
    """Returns a table's four legs, which share its name and instance."""
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
    """Returns x and y of a point at a distance from a wall and from that wall's middle."""
    angle = side * math.pi / 2
    out = ROOM_HALF - away
    return (
        math.cos(angle) * out - math.sin(angle) * along,
        math.sin(angle) * out + math.cos(angle) * along,
    )


def _surface_texture(
    rng: np.random.Generator,
    colours: tuple[_Pair, ...],
    patterns: tuple[Pattern, ...],
    *,
    period: float,
) -> Texture:
    first, second = colours[int(rng.integers(len(colours)))]
    return Texture(patterns[int(rng.integers(len(patterns)))], first, second, period=period)
