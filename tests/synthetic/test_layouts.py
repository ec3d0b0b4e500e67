import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from f3rm.synthetic.layouts import ROOM_HALF, SCENE_KINDS, TABLE_HALF, Layout, draw_layout, reach
from f3rm.synthetic.objects import COLOURS, MATERIALS, SHAPES, TELLING_MATERIALS, Part

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(SCENE_KINDS)
several = settings(max_examples=40, deadline=None)


def thing_parts(layout: Layout) -> list[Part]:
    things = {
        entry
        for entry, thing in zip(layout.spec.objects, layout.descriptions, strict=True)
        if thing
    }
    return [part for part in layout.spec.parts if (part.name, part.instance) in things]


@given(seed=SEEDS, kind=KINDS)
@several
def test_a_scene_has_its_number_of_things_and_of_twins(seed, kind):
    layout = draw_layout(kind, seed)
    things = [thing for thing in layout.descriptions if thing]
    least, most, twins = (18, 22, 2) if kind == "room" else (8, 12, 1)
    assert least <= len(things) <= most
    assert len(thing_parts(layout)) == len(things)
    names = Counter(thing.name for thing in things)
    assert sorted(names.values()) == [1] * (len(things) - 2 * twins) + [2] * twins
    for twin in (name for name, count in names.items() if count == 2):
        assert [number for name, number in layout.spec.objects if name == twin] == [0, 1]


@given(seed=SEEDS, kind=KINDS)
@several
def test_names_tell_things_apart_and_some_by_the_material_alone(seed, kind):
    things = {thing.name: thing for thing in draw_layout(kind, seed).descriptions if thing}
    alike = defaultdict(set)
    for thing in things.values():
        alike[thing.colour, thing.shape].add(thing.material)
    pairs = [materials for materials in alike.values() if len(materials) > 1]
    assert [len(materials) for materials in pairs] == ([2, 2] if kind == "room" else [2])
    assert all(materials <= set(TELLING_MATERIALS) for materials in pairs)
    for name in things:
        words = set(name.split())
        assert not any(words < set(other.split()) for other in things)


@given(seed=SEEDS, kind=KINDS)
@several
def test_absent_prompts_of_every_kind_are_true_of_nothing_there(seed, kind):
    layout = draw_layout(kind, seed)
    names = [set(thing.name.split()) for thing in layout.descriptions if thing]
    said = {word for name in names for word in name}
    known = {*COLOURS, *SHAPES, *MATERIALS}
    looks = {(thing.colour, thing.shape) for thing in layout.descriptions if thing}
    assert len({prompt.text for prompt in layout.absent}) == len(layout.absent) == 14
    for prompt in layout.absent:
        words = set(prompt.text.split())
        assert not any(words <= name for name in names)
        assert prompt.shared_words == max(len(words & name) for name in names) < len(words)
        *_, colour, shape = ("", *prompt.text.split())
        assert (words <= known) == (prompt.kind != "unknown_word")
        if prompt.kind == "absent_word":
            assert words - said
        elif prompt.kind != "unknown_word":
            assert words - set(TELLING_MATERIALS) <= said
            assert ((colour, shape) in looks) == (prompt.kind == "wrong_material")
    kinds = Counter(prompt.kind for prompt in layout.absent)
    assert kinds == {
        "unknown_word": 2,
        "absent_word": 3,
        "swapped": 2,
        "absent_pair": 3,
        "wrong_material": 4,
    }


@given(seed=SEEDS)
@several
def test_things_are_apart_on_the_table(seed):
    parts = thing_parts(draw_layout("tabletop", seed))
    for index, part in enumerate(parts):
        assert part.centre[2] == pytest.approx(part.half_size[2])
        assert np.abs(part.centre[:2]).max() + reach(part) < TABLE_HALF
        assert 0.05 < max(part.half_size[:2]) < 0.17
        for other in parts[:index]:
            gap = math.dist(part.centre[:2], other.centre[:2])
            assert gap > reach(part) + reach(other)


@given(seed=SEEDS)
@several
def test_things_are_apart_in_the_room_and_stand_on_something(seed):
    layout = draw_layout("room", seed)
    parts = thing_parts(layout)
    furniture = [part for part in layout.spec.parts if part.name in ("table", "shelf", "floor")]
    for index, part in enumerate(parts):
        assert np.abs(part.centre[:2]).max() + reach(part) < ROOM_HALF + 1e-6
        below = part.centre[2] - part.half_size[2]
        tops = [other for other in furniture if abs(top(other) - below) < 1e-6]
        assert any(
            (np.abs(other.local(np.array([part.centre]))[0, :2]) < other.half_size[:2]).all()
            for other in tops
        )
        for other in parts[:index]:
            low, high = sorted((part, other), key=lambda entry: entry.centre[2])
            apart = math.dist(part.centre[:2], other.centre[:2]) > reach(part) + reach(other)
            assert apart or top(low) < high.centre[2] - high.half_size[2]


def top(part: Part) -> float:
    return part.centre[2] + part.half_size[2]


@given(seed=SEEDS, kind=KINDS)
@several
def test_no_surface_has_one_colour_and_no_two_are_in_one_plane(seed, kind):
    layout = draw_layout(kind, seed)
    things = {part.name for part in thing_parts(layout)}
    surfaces = [part for part in layout.spec.parts if part.name not in things]
    assert {part.name for part in surfaces} <= {"wall", "floor", "table", "shelf"}
    assert all(part.texture.pattern != "plain" for part in surfaces)
    floor = next(part for part in surfaces if part.name == "floor")
    for wall in (part for part in surfaces if part.name == "wall"):
        assert wall.centre[2] - wall.half_size[2] < floor.centre[2] - 0.01


@given(seed=SEEDS)
@several
def test_the_kinds_of_tabletop_have_the_same_things(seed):
    plain = draw_layout("tabletop", seed)
    for kind in ("tabletop-distorted", "tabletop-mixed"):
        other = draw_layout(kind, seed)
        assert (other.spec.parts, other.absent) == (plain.spec.parts, plain.absent)
        assert other.spec.name == kind


def test_all_sides_of_dotted_boxes_have_dots():
    found = 0
    for seed in range(60):
        for part in thing_parts(draw_layout("tabletop", seed)):
            if part.shape != "box" or part.texture.pattern != "dots":
                continue
            found += 1
            spread = np.random.default_rng(0).uniform(-1, 1, (4, 400, 2))
            for side, (across, up) in enumerate(np.moveaxis(spread, 2, 1)):
                points = np.stack((np.ones(400), across, up), axis=-1) * (-1) ** (side % 2)
                points = (points if side < 2 else points[:, [1, 0, 2]]) * part.half_size
                colours = part.texture.colours(points)
                assert 0.02 < (colours == colours[0]).all(axis=-1).mean() < 0.98
    assert found > 3
