"""Cluttered scenes that TINYCLIP learns from: things on tables and floors in all kinds of rooms.

They share the things (shapes, colours, materials) with the scenes of :mod:`f3rm.synthetic.scenes`,
but neither layout nor surroundings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from f3rm.synthetic.cameras import View, look_at
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
    draw_description,
    of_another_material,
)
from tools.tinyclip.words import is_unseen

_TRIES = 60
_FANCY = 0.7
"""Share of things of a material other than plain."""
_TWINS = 0.35
"""Share of things that are like another of their scene but for the material."""
_COLOUR_JITTER = 0.07
_SURFACE_PATTERNS: tuple[Pattern, ...] = ("waves", "waves", "grain", "plain", "checker", "stripes")


@dataclass(frozen=True)
class Clutter:
    """A scene and what its objects are.

    Attributes:
        spec: What is rendered.
        things: The thing behind each of the spec's objects, None for a surface.
    """

    spec: SceneSpec
    things: tuple[Description | None, ...]


def draw_clutter(seed: int, *, unseen: bool = False) -> Clutter:
    """Draws a scene.

    Args:
        seed: The same seed gives the same scene.
        unseen: Whether pairs of colour and shape that training leaves out may occur.
    """
    rng = np.random.default_rng([seed, 77])
    has_table = rng.random() < 0.6
    half = float(rng.uniform(0.45, 0.9))
    parts = _surfaces(rng, half if has_table else None)
    things: list[Description | None] = [None] * len(parts)
    taken: list[tuple[float, float, float]] = []
    for index in range(int(rng.integers(6, 15))):
        thing = _draw_thing(rng, things)
        while is_unseen(thing) and not unseen:
            thing = _draw_thing(rng, things)
        radius = float(rng.uniform(0.05, 0.16))
        spot = _free_spot(rng, taken, radius, half)
        if spot is None:
            continue
        place = Placement(*spot, yaw=float(rng.uniform(0, 2 * math.pi)), instance=index)
        parts.append(build_part(thing, place, radius, rng, jitter=_COLOUR_JITTER))
        things.append(thing)
    spec = SceneSpec("clutter", seed, tuple(parts), _lights(rng), float(rng.uniform(0.3, 0.6)))
    return Clutter(spec, tuple(things))


def _draw_thing(rng: np.random.Generator, others: Sequence[Description | None]) -> Description:
    """Draws a thing, often one that differs from another of the scene by material alone."""
    coloured = [other for other in others if other is not None and other.colour is not None]
    if coloured and rng.random() < _TWINS:
        return of_another_material(rng, coloured[int(rng.integers(len(coloured)))])
    return draw_description(rng, fancy=_FANCY)


def draw_view(rng: np.random.Generator, clutter: Clutter, height: int, width: int) -> View:
    """Draws a camera that looks at one of the things from somewhere above."""
    aims = [
        part.centre
        for part, thing in zip(clutter.spec.parts, clutter.things, strict=True)
        if thing is not None
    ]
    target = np.array(aims[int(rng.integers(len(aims)))]) + rng.uniform(-0.1, 0.1, 3)
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(8, 65))
    direction = np.array(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    distance = float(rng.uniform(0.55, 1.9))
    focal = float(rng.uniform(0.75, 1.15)) * width
    return View(look_at(target + distance * direction, target), focal, height, width)


def _free_spot(
    rng: np.random.Generator, taken: list[tuple[float, float, float]], radius: float, half: float
) -> tuple[float, float] | None:
    for _ in range(_TRIES):
        x, y = rng.uniform(-half + radius, half - radius, 2)
        if all(math.hypot(x - a, y - b) > 1.05 * (radius + c) for a, b, c in taken):
            taken.append((x, y, radius))
            return float(x), float(y)
    return None


def _surfaces(rng: np.random.Generator, table_half: float | None) -> list[Part]:
    """Returns wall, floor and perhaps a table whose top is at height 0."""
    floor = 0.0 if table_half is None else -float(rng.uniform(0.4, 0.9))
    room, height = float(rng.uniform(2.1, 3.2)), float(rng.uniform(1.6, 2.4))
    # The walls begin below the floor, so that no face of theirs lies in its plane.
    walls = (0.0, 0.0, floor + height - 0.1)
    parts = [
        Part("wall", "box", walls, (room, room, height), _surface(rng)),
        Part("floor", "box", (0.0, 0.0, floor - 0.02), (room, room, 0.02), _surface(rng)),
    ]
    if table_half is not None:
        texture = _surface(rng)
        depth = table_half * float(rng.uniform(0.9, 1.15))
        half_size = (table_half * 1.08, depth * 1.08, 0.03)
        parts.append(Part("table", "box", (0.0, 0.0, -0.03), half_size, texture))
    return parts


def _surface(rng: np.random.Generator) -> Texture:
    pattern = _SURFACE_PATTERNS[int(rng.integers(len(_SURFACE_PATTERNS)))]
    period = float(rng.uniform(0.3, 2.0))
    grey = float(rng.uniform(0.15, 0.8))
    other = grey + float(rng.uniform(-0.22, 0.22))
    return Texture(pattern, _muted(rng, grey), _muted(rng, other), period=period)


def _muted(rng: np.random.Generator, grey: float) -> Vector:
    """Returns a colour of little saturation, so that a surface is no coloured thing."""
    tint = rng.uniform(-0.12, 0.12, 3)
    x, y, z = (float(value) for value in np.clip(grey + tint, 0.03, 1))
    return x, y, z


def _lights(rng: np.random.Generator) -> tuple[Light, ...]:
    lights: list[Light] = []
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(-1.8, 1.8, 2)
        warmth = float(rng.uniform(-0.08, 0.08))
        colour = (1 + warmth, 1.0, 1 - warmth)
        height = float(rng.uniform(1.1, 1.7))
        lights.append(Light((float(x), float(y), height), float(rng.uniform(0.2, 0.6)), colour))
    return tuple(lights)
