"""Laws of the metrics; where another implementation exists, equality with it."""

import inspect

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from f3rm.evaluation import metrics
from f3rm.evaluation.query_scores import QueryScores, mean_of
from f3rm.evaluation.vocabulary import Label, Vocabulary

SIDES = st.tuples(st.integers(8, 40), st.integers(8, 40))
SEEDS = st.integers(0, 1 << 30)


def _blob(seed, height=37, width=45):
    """A random rectangle as truth, at least 10 pixels on each side."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
    mask[top : top + rng.integers(10, 12), left : left + rng.integers(10, 12)] = True
    return mask


@given(SEEDS)
def test_a_perfect_map_gets_one_and_its_inverse_zero(seed):
    truth = _blob(seed)
    good = np.where(truth, 0.9, 0.1).astype(np.float32)
    bad = 1 - good
    assert metrics.iou(metrics.fixed_mask(good), truth) == 1
    assert metrics.is_localised(good, truth)
    assert metrics.average_precision(good.ravel(), truth.ravel()) == 1
    assert metrics.iou(metrics.fixed_mask(bad), truth) == 0
    assert not metrics.is_localised(bad, truth)
    share = truth.mean()
    lowest = metrics.average_precision(bad.ravel(), truth.ravel())
    assert lowest == pytest.approx(share)  # nothing true above, all pixels at the last threshold


@given(SEEDS, SEEDS)
def test_iou_is_symmetric_between_zero_and_one_and_blind_to_order(seed, other):
    one, two = _blob(seed), _blob(other)
    value = metrics.iou(one, two)
    assert 0 <= value <= 1
    assert value == metrics.iou(two, one)
    order = np.random.default_rng(seed).permutation(one.size)
    assert value == metrics.iou(one.ravel()[order], two.ravel()[order])


def test_iou_of_two_empty_masks_is_zero():
    empty = np.zeros((3, 4), dtype=bool)
    assert metrics.iou(empty, empty) == 0


def test_of_several_highest_pixels_all_must_lie_inside():
    truth = np.zeros((4, 5), dtype=bool)
    truth[1, 1:3] = True
    scores = np.zeros((4, 5), dtype=np.float32)
    scores[1, 1] = scores[1, 2] = 0.8
    assert metrics.is_localised(scores, truth)
    scores[3, 3] = 0.8
    assert not metrics.is_localised(scores, truth)
    assert not metrics.is_localised(np.zeros_like(scores), truth)


def test_each_object_has_a_box_of_its_own():
    ids = np.full((6, 9), -1, dtype=np.int32)
    ids[1, 1] = ids[3, 2] = 4  # two corners of a box of 3 x 2
    ids[5, 8] = 7
    region = metrics.box_region(ids, (4, 7, 9))
    assert region.sum() == 7
    assert region[2, 1]
    assert not region[4, 5]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 200), st.integers(1, 12), SEEDS)
def test_average_precision_is_scikit_learns(num, levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, num) / levels  # few levels: many equal scores
    truth = rng.random(num) < 0.3
    truth[rng.integers(num)] = True
    expected = average_precision_score(truth, scores)
    assert metrics.average_precision(scores, truth) == pytest.approx(expected)
    order = rng.permutation(num)
    assert metrics.average_precision(scores[order], truth[order]) == pytest.approx(expected)


def test_average_precision_without_anything_true_is_zero():
    assert metrics.average_precision(np.array([0.1, 0.2]), np.array([False, False])) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), SEEDS)
def test_auroc_is_scikit_learns(num_positive, num_negative, seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(0, 9, num_positive) / 9, rng.integers(0, 9, num_negative) / 9
    truth = np.concatenate((np.ones(num_positive), np.zeros(num_negative)))
    expected = roc_auc_score(truth, np.concatenate((positive, negative)))
    assert metrics.auroc(positive, negative) == pytest.approx(expected)
    swapped = metrics.auroc(negative, positive)
    assert swapped == pytest.approx(1 - expected)


def test_auroc_needs_both_sides():
    assert metrics.auroc(np.zeros(0), np.ones(3)) is None
    assert metrics.auroc(np.ones(3), np.zeros(0)) is None


def _langsplat_mask(scores):
    """LangSplat's rule, written as its script has it."""
    kernel = np.ones((30, 30)) / 900
    blended = 0.5 * (cv2.filter2D(scores.astype(np.float64), -1, kernel) + scores)
    stretched = blended - blended.min()
    stretched = stretched / (stretched.max() + 1e-9)
    stretched = np.clip(stretched * 2 - 1, 0, 1)
    return _slow_majority(stretched > 0.4)


def _slow_majority(mask):
    height, width = mask.shape
    smooth = mask.copy()
    for i in range(height):
        for j in range(width):
            rows = slice(max(0, i - 3), min(i + 4, height - 1))
            square = mask[rows, max(0, j - 3) : min(j + 4, width - 1)]
            smooth[i, j] = np.argmax(np.bincount(square.reshape(-1).astype(int)))
    return smooth


@settings(max_examples=15, deadline=None)
@given(SIDES, SEEDS)
def test_the_majority_is_the_loops(size, seed):
    mask = np.random.default_rng(seed).random(size) < 0.5
    assert np.array_equal(metrics.majority(mask), _slow_majority(mask))


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_minmax_mask_is_langsplats(seed):
    coarse = np.random.default_rng(seed).random((6, 8)).astype(np.float32)
    scores = cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(metrics.minmax_mask(scores), _langsplat_mask(scores))


def test_the_minmax_mask_depends_on_neither_offset_nor_scale_and_is_empty_for_a_constant():
    scores = np.random.default_rng(0).random((50, 60))
    assert np.array_equal(metrics.minmax_mask(scores), metrics.minmax_mask(0.125 * scores + 0.25))
    assert not metrics.minmax_mask(np.full((50, 60), 0.3)).any()


@settings(max_examples=15, deadline=None)
@given(SIDES, SEEDS, st.integers(1, 4))
def test_the_boundary_is_a_mask_less_its_erosion(size, seed, grain):
    grains = np.random.default_rng(seed).random(size) < 0.7
    mask = np.kron(grains, np.ones((8 * grain, 8 * grain), bool))
    width = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = np.pad(mask.astype(np.uint8), 1)  # the picture's border is a border of the mask
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    assert np.array_equal(metrics.boundary(mask), mask & (inside == 0))


@given(arrays.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)))
def test_the_exclusive_mask_gives_a_pixel_to_one_phrase_at_most(scores):
    masks = [
        metrics.exclusive_mask(scores, wanted, [i for i in range(3) if i != wanted])
        for wanted in range(3)
    ]
    total = np.sum(masks, axis=0)
    assert total.max() <= 1
    assert not total[(scores <= metrics.RELEVANCY_THRESHOLD).all(axis=0)].any()


BROKEN = [np.nan, np.inf, -np.inf]
SCORED = {
    "is_localised": metrics.is_localised,
    "fixed_mask": lambda scores, mask: metrics.fixed_mask(scores),
    "minmax_mask": lambda scores, mask: metrics.minmax_mask(scores),
    "exclusive_mask": lambda scores, mask: metrics.exclusive_mask(
        np.stack([np.zeros_like(scores), scores]), 0, [1]
    ),
    "average_precision": lambda scores, mask: metrics.average_precision(
        scores.ravel(), mask.ravel()
    ),
    "auroc": lambda scores, mask: metrics.auroc(scores[mask], scores[~mask]),
    "mean_of": lambda scores, mask: mean_of(scores.ravel().tolist()),
}


def test_every_metric_of_scores_is_listed():
    taking = {
        name
        for name, function in vars(metrics).items()
        if inspect.isfunction(function)
        and function.__module__ == metrics.__name__
        and not name.startswith("_")
        and {"scores", "positive"} & set(inspect.signature(function).parameters)
    }
    assert taking - {"require_finite"} == set(SCORED) - {"mean_of"}


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 40), broken=st.sampled_from(BROKEN))
def test_broken_scores_are_an_error_and_whole_ones_none(name, seed, count, broken):
    rng = np.random.default_rng(seed)
    scores = rng.random((32, 40))
    mask = rng.random((32, 40)) > 0.5
    SCORED[name](scores, mask)
    scores.ravel()[rng.integers(0, scores.size, count)] = broken
    with pytest.raises(metrics.ScoreError, match="must be finite"):
        SCORED[name](scores, mask)


def test_a_broken_map_is_named_by_its_view():
    vocabulary = Vocabulary((Label("mug", (1,)),), (), ())
    scores = np.full((1, 16, 16), np.nan, dtype=np.float32)
    with pytest.raises(metrics.ScoreError, match="view 'frame_3'"):
        QueryScores(vocabulary).add("frame_3", np.ones((16, 16), dtype=np.int64), scores)
