"""Found boxes are paired with true ones, and what is not found counts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.evaluation.finding import ROUND_SHAPES, overlap, pair, true_box
from f3rm.scene.boxes import OrientedBox, box_iou
from f3rm.scene.found import Instance
from f3rm.synthetic.objects import SHAPES
from f3rm.synthetic.truth import TruthObject, TruthWords

ANGLES = st.floats(-10, 10)
LENGTHS = st.floats(0.05, 0.5)


def _thing(centre, half_size=(0.1, 0.2, 0.3), yaw=0.4, shape="mug"):
    words = TruthWords("red", "plain", shape)
    return TruthObject(0, "mug", 0, "object", centre, half_size, yaw, words)


def _found(thing, shift=(0.0, 0.0, 0.0)):
    box = true_box(thing)
    moved = type(box)(box.centre + np.array(shift), box.axes, box.extent)
    return Instance(0.9, 1.0, moved, torch.zeros(0, 3), 0.01, "metres")


def _box(yaw, *half_size):
    return true_box(_thing((0.02, -0.03, 0.01), half_size, yaw))


def test_a_true_box_has_its_corners_where_the_thing_ends():
    box = true_box(_thing((1.0, 2.0, 3.0), yaw=math.pi / 2))
    np.testing.assert_allclose(box.corners().max(axis=0), [1.2, 2.1, 3.3], atol=1e-9)


def test_the_nearest_are_paired_and_a_missing_one_has_no_overlap():
    near, far = _thing((0.0, 0.0, 0.0)), _thing((5.0, 0.0, 0.0))
    paired = pair([_found(far, (0.03, 0.04, 0.0)), _found(near)], [near, far])
    assert paired.ious[0] == pytest.approx(1, abs=1e-4)
    assert 0.3 < paired.ious[1] < 1
    assert paired.errors == pytest.approx([0, 0.05])
    alone = pair([_found(near)], [far, near])
    assert alone.ious == pytest.approx([0, 1], abs=1e-4)
    assert pair([], [near]).ious == [0.0]
    surplus = pair([_found(near), _found(far)], [near])
    assert (surplus.found, len(surplus.errors)) == (2, 1)


@given(st.sampled_from(SHAPES), ANGLES, ANGLES, LENGTHS, LENGTHS, LENGTHS)
@settings(max_examples=50, deadline=None)
def test_the_best_yaw_is_never_worse_than_the_true_one(shape, yaw, other, width, depth, height):
    true = _thing((0.0, 0.0, 0.0), (width, width, height), yaw, shape)
    box = _box(other, depth, width, height)
    plain = box_iou(true_box(true), box)
    best = overlap(true, box)
    assert plain <= best <= 1 + 1e-4
    if shape not in ROUND_SHAPES:
        assert best == plain


@given(st.sampled_from(ROUND_SHAPES), ANGLES, ANGLES, LENGTHS, LENGTHS)
@settings(max_examples=50, deadline=None)
def test_the_same_round_thing_overlaps_wholly_at_any_yaw(shape, yaw, other, width, height):
    true = _thing((0.3, 0.1, 0.2), (width, width, height), yaw, shape)
    turned = true_box(_thing(true.centre, true.half_size, other))
    assert overlap(true, turned) == pytest.approx(1, abs=1e-3)


def test_a_yaw_that_can_be_seen_counts():
    box = OrientedBox(np.zeros(3), np.eye(3), np.array([0.2, 0.2, 0.2]))
    turned = _thing((0.0, 0.0, 0.0), (0.1, 0.1, 0.1), math.pi / 4, "box")
    shared = 2 * (math.sqrt(2) - 1)  # the octagon of two unit squares, one turned by 45 degrees
    assert overlap(turned, box) == pytest.approx(shared / (2 - shared), abs=1e-3)
