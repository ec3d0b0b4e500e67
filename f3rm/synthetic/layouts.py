"""What stands where in the generated scenes: things on a table, or along the walls of a room.

Everything is drawn from a seed. Where the cameras are is said in
:mod:`f3rm.synthetic.cameras`. Lengths are metres, z points up.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np

from f3rm.synthetic.meshes import SHAPES
from f3rm.synthetic.objects import (
    COLOURS,
    Part,
    Place,
    SceneSpec,
    Thing,
    build_part,
    draw_thing,
)
from f3rm.synthetic.surfaces import (
    TABLE_HALF,
    draw_lights,
    room_spots,
    room_surfaces,
    table_surfaces,
)

SceneKind = Literal["tabletop", "room", "tabletop-distorted", "tabletop-mixed"]

SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)

LEAST_THINGS, MOST_THINGS = 8, 12
_LEAST_IN_ROOM = 10

_NUM_ABSENT = 8
_MOST_ALIKE = 2
"""How many things of a scene, twins counted once, may share a colour or a shape."""
_FANCY = 0.5
_GAP = 0.03
_TRIES = 200
_LEAST_DOTTED = 0.08
"""Share of each side of a dotted box that is to be dots, at least."""
_TABLE_RADII = (0.105, 0.16)


@dataclass(frozen=True)
class Layout:
    """A scene and what its objects are.

    Attributes:
        spec: What is rendered.
        things: The thing behind each of the spec's objects, None for a surface.
        absent: Names of things that could be in the scene, but are not.
    """

    spec: SceneSpec
    things: tuple[Thing | None, ...]
    absent: tuple[str, ...]


def draw_layout(kind: SceneKind, seed: int) -> Layout:
    """Draws a scene; the three kinds of tabletop have the same things at the same places.

    Args:
        kind: What sort of scene.
        seed: The same seed gives the same scene.
    """
    rng = np.random.default_rng([seed, 33 if kind == "room" else 31])
    things = draw_things(rng, least=_LEAST_IN_ROOM if kind == "room" else LEAST_THINGS)
    if kind == "room":
        surfaces, lights = room_surfaces(rng), draw_lights(rng, height=2.3, spread=0.9)
        parts = _along_the_walls(rng, things)
    else:
        surfaces, lights = table_surfaces(rng), draw_lights(rng, height=1.55, spread=1.3)
        parts = _on_the_table(rng, things)
    spec = SceneSpec(kind, seed, (*surfaces, *parts), lights, float(rng.uniform(0.42, 0.5)))
    named = {(part.name, part.instance): thing for part, thing in zip(parts, things, strict=True)}
    known = tuple(named.get(entry) for entry in spec.objects)
    return Layout(spec, known, draw_absent(rng, things))


def draw_things(rng: np.random.Generator, *, least: int = LEAST_THINGS) -> list[Thing]:
    """Draws a scene's things: the last one equals the first, all others have names of their own.

    No two names have colour and shape in common, so that none is part of another; and no colour and
    no shape is that of more than two names.

    Args:
        rng: Where chance comes from.
        least: The fewest things, twins counted twice; the most are :data:`MOST_THINGS`.
    """
    wanted = int(rng.integers(least, MOST_THINGS + 1)) - 1
    things: list[Thing] = []
    while len(things) < wanted:
        thing = draw_thing(rng, fancy=_FANCY)
        shapes = Counter(other.shape for other in things)
        colours = Counter(other.colour for other in things)
        pairs = {(other.colour, other.shape) for other in things}
        crowded = shapes[thing.shape] >= _MOST_ALIKE or colours[thing.colour] >= _MOST_ALIKE
        if not crowded and (thing.colour, thing.shape) not in pairs:
            things.append(thing)
    return [*things, things[0]]


def draw_absent(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[str, ...]:
    """Draws names of colour and shape that no thing has together, though some may have either.

    Args:
        rng: Where chance comes from.
        things: What is in the scene.
    """
    present = {(thing.colour, thing.shape) for thing in things}
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair not in present]
    chosen = rng.choice(len(pairs), size=_NUM_ABSENT, replace=False)
    return tuple(Thing(shape=pairs[i][1], colour=pairs[i][0]).name for i in sorted(chosen))


def reach(part: Part) -> float:
    """Returns how far a part extends from its middle, seen from above."""
    x, y, _ = part.half_size
    return math.hypot(x, y) if part.shape == "box" else max(x, y)


def _on_the_table(rng: np.random.Generator, things: Sequence[Thing]) -> list[Part]:
    while True:  # A table that is full before all things are on it is laid anew.
        parts: list[Part] = []
        for index, thing in enumerate(things):
            radius = float(rng.uniform(*_TABLE_RADII))
            yaw = float(rng.uniform(0, 2 * math.pi))
            place = Place(0.0, 0.0, yaw=yaw, instance=_instance(things, index))
            part = _set_down(rng, _build(rng, thing, place, radius), parts)
            if part is None:
                break
            parts.append(part)
        if len(parts) == len(things):
            return parts


def _set_down(rng: np.random.Generator, part: Part, others: Sequence[Part]) -> Part | None:
    """Returns a part at a free place of the table, or None if none was found."""
    room = TABLE_HALF - _GAP - reach(part)
    for _ in range(_TRIES):
        x, y = (float(value) for value in rng.uniform(-room, room, 2))
        gaps = (
            math.hypot(x - other.centre[0], y - other.centre[1]) - reach(part) - reach(other)
            for other in others
        )
        if all(gap > _GAP for gap in gaps):
            return replace(part, centre=(x, y, part.centre[2]))
    return None


def _along_the_walls(rng: np.random.Generator, things: Sequence[Thing]) -> list[Part]:
    spots = room_spots()
    order = rng.permutation(len(spots))[: len(things)]
    parts: list[Part] = []
    for index, (thing, spot) in enumerate(zip(things, (spots[i] for i in order), strict=True)):
        radius = float(rng.uniform(*spot.radii))
        x, y = (float(value) for value in np.array([spot.x, spot.y]) + rng.uniform(-0.05, 0.05, 2))
        place = Place(
            x,
            y,
            floor=spot.floor,
            yaw=float(rng.uniform(0, 2 * math.pi)),
            instance=_instance(things, index),
        )
        parts.append(_build(rng, thing, place, radius))
    return parts


def _build(rng: np.random.Generator, thing: Thing, place: Place, radius: float) -> Part:
    """Makes a thing that looks as it is called: all sides of a dotted box have dots."""
    part = build_part(thing, place, radius, rng)
    while thing.shape == "box" and thing.material == "dotted" and not _has_dots_all_around(part):
        part = build_part(thing, place, radius, rng)
    return part


def _has_dots_all_around(box: Part) -> bool:
    dots = np.array(box.texture.second, np.float32)
    steps = np.linspace(-1, 1, 25)
    across, up = (grid.ravel() for grid in np.meshgrid(steps, steps))
    face = np.stack((np.ones_like(across), across, up), axis=-1)  # of the cube, towards x
    for order, side in product(((0, 1, 2), (1, 0, 2)), (1, -1)):
        points = face[:, order] * side * box.half_size
        bare = (box.texture.colours(points) == dots).all(axis=-1).mean() < _LEAST_DOTTED
        if bare:
            return False
    return True


def _instance(things: Sequence[Thing], index: int) -> int:
    return sum(thing.name == things[index].name for thing in things[:index])
