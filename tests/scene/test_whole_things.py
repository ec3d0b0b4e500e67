"""How far a thing goes of which the query is sure of a part: a wall of known relevancies."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.language.threshold import RELEVANCY_FLOOR
from f3rm.scene.finding.scored import score_surface, whole_threshold
from f3rm.scene.surface import Sightings, Surface, SurfacePoints
from tests.scene.test_certainty import ASKED, NEGATIVE, SPACING, answer, asked

SIDE = 60
"""Cells along each side of the wall."""
FACE, FUR, WALL = 0.85, 0.3, 0.05


def scoring(relevancy):
    """A unit feature of this relevancy."""
    angle = math.acos(math.log(relevancy / (1 - relevancy)) / 10 / math.sqrt(2)) - math.pi / 4
    return math.cos(angle) * ASKED + math.sin(angle) * NEGATIVE


def wall(*squares, background=WALL):
    """A wall around concentric squares, the largest first: cells along a side and relevancy."""
    centres = torch.arange(float(SIDE)) + 0.5
    where = SPACING * torch.cartesian_prod(centres, centres, torch.tensor([0.0]))
    from_middle = (where[:, :2] / SPACING - SIDE / 2).abs().amax(dim=1)
    hidden = scoring(background).repeat(len(where), 1)
    for side, relevancy in squares:
        hidden[from_middle < side / 2] = scoring(relevancy)
    counts = torch.ones(len(where), dtype=torch.long)
    points = SurfacePoints(where, torch.zeros_like(where), hidden, counts)
    return Surface(Sightings(points, 0 * counts, torch.tensor([[0.0, 0.0, -1.0]])), SPACING)


@settings(max_examples=15, deadline=None)
@given(fur=st.floats(0.38, 0.46), background=st.floats(0.01, 0.06), side=st.integers(9, 12))
def test_a_thing_is_found_whole_where_the_query_is_sure_of_its_face_alone(fur, background, side):
    found = answer(wall((2 * side, fur), (8, FACE), background=background))
    assert found.certainty == "found"
    assert len(found) == 1
    assert len(found[0].points) == pytest.approx((2 * side) ** 2, rel=0.25)


def test_what_is_sure_as_a_whole_keeps_its_threshold():
    assert score_surface(wall((20, FACE)), asked(), None).threshold == RELEVANCY_FLOOR


def test_less_than_half_of_a_thing_is_not_worth_another_threshold():
    found = answer(wall((20, FUR), (18, FACE)))
    assert len(found[0].points) == pytest.approx(18**2, rel=0.25)


def test_a_thing_of_which_nothing_is_sure_is_absent():
    assert answer(wall((20, FUR))).certainty == "absent"


@settings(max_examples=50, deadline=None)
@given(relevancies=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6))
def test_the_threshold_only_falls(relevancies):
    surface = wall((20, FUR))
    scores = torch.tensor(relevancies).repeat(SIDE**2)[: SIDE**2]
    threshold = whole_threshold(surface, scores, RELEVANCY_FLOOR)
    assert threshold <= RELEVANCY_FLOOR
    assert (scores >= threshold).sum() >= (scores >= RELEVANCY_FLOOR).sum()
