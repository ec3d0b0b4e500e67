"""Found boxes are paired with true ones, and what is not found counts."""

import math

import numpy as np
import pytest
import torch

from f3rm.evaluation.finding import pair, true_box
from f3rm.scene.found import Instance
from f3rm.synthetic.truth import TruthObject


def _thing(centre, half_size=(0.1, 0.2, 0.3), yaw=0.4):
    return TruthObject(0, "mug", 0, "object", centre, half_size, yaw)


def _found(thing, shift=(0.0, 0.0, 0.0)):
    box = true_box(thing)
    moved = type(box)(box.centre + np.array(shift), box.axes, box.extent)
    return Instance(0.9, 1.0, moved, torch.zeros(0, 3), 0.01, "metres")


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
