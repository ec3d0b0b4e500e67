"""The far side of what is seen from one side, and things that views see apart."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from f3rm.scene.boxes import fit_box
from f3rm.scene.finding.completion import complete
from f3rm.scene.finding.pieces import connected, separated
from f3rm.scene.frames import Frame
from tests.scene.seen_boxes import seen

UP = np.array([0.0, 0.0, 1.0])
WIDTHS = st.floats(0.2, 0.6)
FRONT = [(2 * np.sin(a), -2 * np.cos(a), 0.7) for a in np.linspace(-0.5, 0.5, 5)]
AROUND = [(2 * np.sin(a), -2 * np.cos(a), 0.7) for a in np.linspace(0, 5.5, 9)]


def _completed(boxes, eyes, **options):
    surface, owner = seen(boxes, eyes, **options)
    piece = np.flatnonzero(owner == 0)
    box = fit_box(surface.points.positions[piece].double().numpy(), UP)
    return box, complete(box, surface, piece, Frame(np.eye(4)))


@settings(max_examples=6, deadline=None)
@given(WIDTHS, WIDTHS)
def test_what_is_seen_from_one_side_is_completed_to_be_as_deep_as_it_is_wide(width, height):
    half = width / 2
    front = ((-half, 0, 0), (half, width, height))
    visible, box = _completed([front], [(0.1, -2.0, 0.2), (-0.1, -2.0, 0.2)])
    assert visible.extent.min() < 0.05
    assert box is not None
    assert box.extent[:2] == pytest.approx(width, abs=0.06)
    assert box.centre == pytest.approx(np.mean(front, axis=0), abs=0.04)
    assert box.contains(visible.corners(), margin=0.03).all()  # nothing that is seen is lost


@settings(max_examples=6, deadline=None)
@given(st.floats(0.03, 0.5))
def test_completion_never_enters_space_that_views_see_through(depth):
    board = ((-0.3, 0.0, 0.0), (0.3, depth, 0.5))
    # The first camera sees the front, the others past the back.
    eyes = [(0.0, -2.5, 0.25), (2.5, depth, 0.25), (-2.5, depth, 0.25)]
    surface, owner = seen([board], eyes, rays=90)
    front = np.flatnonzero((owner == 0) & (surface.points.positions[:, 1].numpy() < 0.01))
    box = fit_box(surface.points.positions[front].double().numpy(), UP)
    completed = complete(box, surface, front, Frame(np.eye(4)))
    assert completed is not None
    back = completed.corners()[:, 1].max()
    assert back <= depth + 0.03  # two cells behind, one and a half beside a ray
    assert back >= depth - 0.6 / 6 - 0.03


def test_what_is_seen_from_all_sides_is_left_as_it_is():
    assert _completed([((-0.2, -0.1, 0), (0.2, 0.1, 0.2))], AROUND)[1] is None


def _things(boxes, eyes, **options):
    """How many points of each box are in each thing, of what is one piece by its points alone."""
    surface, owner = seen(boxes, eyes, **options)
    chosen = np.flatnonzero(owner >= 0)
    piece, *others = connected(chosen, surface.neighbours, len(owner))
    assert not others
    things = separated(surface, piece, least=12)
    assert sorted(np.concatenate(things)) == chosen.tolist()
    return [np.bincount(owner[thing], minlength=len(boxes)) for thing in things]


@settings(max_examples=4, deadline=None)
@given(st.floats(0.019, 0.022), st.floats(0.08, 0.12), st.floats(0.08, 0.12))
def test_two_boxes_that_nearly_touch_are_two_where_most_views_see_them_apart(gap, width, height):
    left = ((-width, 0, 0), (-gap / 2, width, height))
    right = ((gap / 2, 0, 0), (width, width, height))
    things = _things([left, right], FRONT, rays=64, spread=0.12)
    assert len(things) == 2
    for counts in things:
        assert counts.max() > 0.9 * counts.sum()
    assert {int(counts.argmax()) for counts in things} == {0, 1}


@settings(max_examples=4, deadline=None)
@given(st.floats(0.1, 0.5), st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.booleans())
def test_one_box_is_one_thing(width, depth, height, all_round):
    box = ((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height))
    assert len(_things([box], AROUND if all_round else FRONT)) == 1
