import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from f3rm.errors import F3rmError
from f3rm.scene.boxes import OrientedBox, box_iou, fit_box, meeting, upright_axes

UP = np.array([0.0, 0.0, 1.0])
SIZES = st.tuples(*[st.floats(0.1, 3)] * 3)
SHIFTS = st.tuples(*[st.floats(-2, 2)] * 3)
YAWS = st.floats(-3, 3)


def _box(size, shift, yaw):
    cos, sin = np.cos(yaw), np.sin(yaw)
    axes = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    return OrientedBox(np.array(shift, float), axes, np.array(size, float))


BOXES = st.builds(_box, SIZES, SHIFTS, YAWS)


def _filled(box, count=4000, seed=0):
    local = np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 3)) * box.extent
    return box.centre + local @ box.axes.T


@settings(max_examples=20, deadline=None)
@given(BOXES, st.integers(0, 9))
def test_the_box_of_a_filled_box_is_that_box(box, seed):
    up = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    up = up * np.sign(np.linalg.det(up))  # a frame in which up is another direction
    fitted = fit_box(_filled(box) @ up.T, up[:, 2])
    np.testing.assert_allclose(fitted.centre @ up, box.centre, atol=0.05)
    np.testing.assert_allclose(fitted.volume, box.volume, rtol=0.2)
    np.testing.assert_allclose(fitted.axes.T @ fitted.axes, np.eye(3), atol=1e-9)
    assert np.linalg.det(fitted.axes) == pytest.approx(1)
    np.testing.assert_allclose(fitted.axes[:, 2], up[:, 2], atol=1e-9)


def test_a_stray_point_does_not_decide():
    box = _box((1, 0.5, 0.3), (0, 0, 0), 0.4)
    points = np.concatenate((_filled(box), [[5.0, 5.0, 5.0]]))
    assert box_iou(fit_box(points, UP), box) > 0.9


@settings(max_examples=20, deadline=None)
@given(BOXES, BOXES)
def test_the_overlap_is_that_of_random_points(first, second):
    points = _filled(first, count=20_000)
    shared = second.contains(points).mean() * first.volume
    expected = shared / (first.volume + second.volume - shared)
    assert box_iou(first, second) == pytest.approx(expected, abs=0.02)
    assert box_iou(first, second) == pytest.approx(box_iou(second, first), abs=1e-4)
    assert box_iou(first, first) == pytest.approx(1, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(BOXES, SHIFTS, st.floats(0, 0.2))
def test_a_ray_meets_a_box_where_one_of_its_points_is_inside(box, eye, margin):
    towards = np.random.default_rng(0).normal(size=(20, 10, 3))
    towards[0, :6] = np.concatenate((np.eye(3), -np.eye(3)))  # along faces
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    lines = np.broadcast_to(np.array(eye, float), towards.shape), towards
    along = np.linspace(0, 10, 1001)[:, None]
    for origin, direction, meets in zip(
        *(each.reshape(-1, 3) for each in lines),
        meeting(box, *lines, margin=margin).ravel(),
        strict=True,
    ):
        points = origin + along * direction
        if meets:  # the points are steps apart
            assert box.contains(points, margin=margin + 0.01).any()
        else:
            assert not box.contains(points, margin=margin - 1e-9).any()


def test_corners_lie_on_the_box_and_boxes_one_above_the_other_share_nothing():
    box = _box((1, 2, 3), (1, 1, 1), 0.7)
    corners = box.corners()
    assert box.contains(corners, margin=1e-9).all()
    assert not box.contains(box.centre + 1.01 * (corners - box.centre)).any()
    assert box.yaw == pytest.approx(0.7)
    assert box_iou(box, _box((1, 2, 3), (1, 1, 4.1), 0.7)) == 0
    assert box.to_dict()["extent"] == [1, 2, 3]


def test_points_on_a_line_have_a_box_and_too_few_have_none():
    line = np.linspace([0, 0, 0], [1, 0, 0], 10)
    np.testing.assert_allclose(fit_box(line, UP).extent, [1, 0, 0], atol=0.03)
    with pytest.raises(F3rmError, match=r"A box needs at least three points .* got 2 points"):
        fit_box(line[:2], UP)
    with pytest.raises(F3rmError, match=r"up vector that is not zero.*up=\[0.0, 0.0, 0.0\]"):
        fit_box(line, np.zeros(3))
    tilted = fit_box(line, np.array([1.0, 0, 0]))
    with pytest.raises(F3rmError, match="same up axis"):
        box_iou(tilted, fit_box(line, UP))


@settings(max_examples=20, deadline=None)
@given(st.integers(300, 3000), st.floats(0.3, 1.5), st.integers(0, 9))
def test_the_tip_of_a_cone_is_in_its_box(count, height, seed):
    rng = np.random.default_rng(seed)
    down, turn = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)  # even by area
    radius = 0.3 * down
    cone = np.stack((radius * np.cos(turn), radius * np.sin(turn), height * (1 - down)), axis=-1)
    assert fit_box(cone, UP).extent[2] > 0.9 * height  # 0.94 of 300 points, in the mean
    assert fit_box(cone[np.argsort(turn)], UP).extent == pytest.approx(fit_box(cone, UP).extent)


def test_the_handle_of_a_mug_is_in_its_box():
    rng = np.random.default_rng(0)
    turn, height = rng.uniform(0, 2 * np.pi, 3000), rng.uniform(0, 0.2, 3000)
    mug = np.stack((0.1 * np.cos(turn), 0.1 * np.sin(turn), height), axis=-1)
    angle = rng.uniform(-1.5, 1.5, 60)  # one point in fifty
    handle = np.stack((0.1 + 0.05 * np.cos(angle), 0 * angle, 0.1 + 0.05 * np.sin(angle)), axis=-1)
    box = fit_box(np.concatenate((mug, handle)), UP)
    assert box.contains(handle, margin=1e-6).all()


def test_a_box_that_is_moved_has_the_moved_corners():
    box = OrientedBox(np.array([0.2, -0.1, 0.5]), upright_axes(UP), np.array([0.3, 0.2, 0.1]))
    turn, _ = cv2.Rodrigues(np.array([0.2, -0.4, 1.1]))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2.5 * turn, [1.0, 2.0, -3.0]
    moved = box.moved(matrix)
    expected = box.corners() @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(moved.corners(), expected, atol=1e-12)
    back = moved.moved(np.linalg.inv(matrix))
    np.testing.assert_allclose(back.corners(), box.corners(), atol=1e-12)
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    for bad in (sheared, np.diag([1.0, 1, -1, 1])):
        with pytest.raises(F3rmError, match="other_from_here must"):
            box.moved(bad)
