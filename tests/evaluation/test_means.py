"""Laws of the means and of their intervals, on rows as an evaluation has them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from f3rm.evaluation.means import AUROCS, MEANS, mean_over
from f3rm.evaluation.metrics import auroc

SHARES = st.floats(0, 1, width=32)


def evaluation(seed, queries=8, absent=6, views=4):
    """Rows with random numbers."""
    rng = np.random.default_rng(seed)

    def answers(count):
        return {f"{who}max_relevancies": rng.random(count).tolist() for who in ("", "teacher_")}

    def query(number):
        scored = {"views": views, "point_iou": rng.random(), "instances": number % 3}
        for who in ("", "teacher_"):
            for name in ("localisation", "localisation_mask", "miou", "miou_minmax"):
                scored[f"{who}{name}"] = rng.random()
            scored |= {f"{who}miou_argmax": rng.random(), f"{who}average_precision": rng.random()}
            scored[f"{who}miou_boundary"] = rng.random()
        boxes = rng.random(int(rng.integers(1, 3))).tolist()
        scored |= {"box_ious": boxes, "box_iou_ceilings": boxes, "visible_ious": boxes}
        scored |= {"centre_error": rng.random(), "matched": len(boxes)}
        return {**scored, **answers(views)}

    def missing(number):
        share = {"found_share": rng.random(), "teacher_found_share": rng.random()}
        return {"kind": "swapped", "instances": number % 2, **share, **answers(views)}

    def view():
        cosines = {f"feature_cosine_{name}": rng.random() for name in ("bilinear", "constant")}
        return {"psnr": 20 + rng.random(), **cosines}

    return {
        "queries": [query(number) for number in range(queries)],
        "absent": [missing(number) for number in range(absent)],
        "views": [view() for _ in range(views)],
    }


@pytest.mark.parametrize("name", [*MEANS, *AUROCS])
@pytest.mark.parametrize("scenes", [1, 3])
def test_an_interval_is_around_its_mean_and_the_same_again(name, scenes):
    found = [evaluation(seed) for seed in range(scenes)]
    mean = mean_over(name, found)
    assert mean is not None
    assert mean.low <= mean.value <= mean.high
    assert mean.low < mean.high
    assert mean.count > 0
    assert mean_over(name, found) == mean


@pytest.mark.parametrize("name", ["miou", "localisation", "find_recall", "psnr", "presence_auroc"])
def test_more_of_the_same_narrows_an_interval(name):
    one = evaluation(0)
    several = {kind: rows * 9 for kind, rows in one.items()}
    few, many = mean_over(name, [one]), mean_over(name, [several])
    assert few is not None
    assert many is not None
    assert many.value == pytest.approx(few.value)
    assert many.count == 9 * few.count
    assert many.high - many.low < 0.6 * (few.high - few.low)  # a third, but for chance


@given(st.lists(st.tuples(SHARES, st.integers(1, 5)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_queries_weigh_the_same_and_pairs_too(scored):
    rows = [{"miou": value, "localisation": value, "views": views} for value, views in scored]
    values, weights = np.array(scored, float).T
    miou, localisation = (mean_over(name, [{"queries": rows}]) for name in ("miou", "localisation"))
    assert miou is not None
    assert localisation is not None
    assert (miou.value, miou.count) == (pytest.approx(values.mean(), abs=1e-6), len(rows))
    assert localisation.value == pytest.approx(np.average(values, weights=weights), abs=1e-6)
    assert localisation.count == weights.sum()


def test_equal_values_have_no_spread_and_a_pool_of_unequal_scenes_has():
    same = {"queries": [{"miou": 0.5}] * 4}
    mean = mean_over("miou", [same])
    assert mean is not None
    assert (mean.low, mean.value, mean.high) == (0.5, 0.5, 0.5)
    other = {"queries": [{"miou": 0.9}] * 4}
    pooled = mean_over("miou", [same, other])
    assert pooled is not None
    assert (pooled.low, pooled.high) == (pytest.approx(0.5), pytest.approx(0.9))


def test_an_interval_contains_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        rows = [{"miou": value} for value in rng.random(30)]
        mean = mean_over("miou", [{"queries": rows}])
        assert mean is not None
        hits += mean.low <= 0.5 <= mean.high
    assert 88 <= hits <= 100


@pytest.mark.parametrize("name", [*MEANS, *AUROCS, "nerfacto_psnr"])
def test_there_is_no_mean_over_nothing(name):
    nothing = {"queries": [{"text": "mug", "views": 0}], "absent": [], "views": []}
    assert mean_over(name, [nothing]) is None


def test_of_any_other_number_scenes_are_the_values():
    mean = mean_over("point_accuracy", [{"point_accuracy": value} for value in (0.5, 0.7, None)])
    assert mean is not None
    assert (mean.value, mean.count, mean.unit) == (pytest.approx(0.6), 2, "scenes")


def test_presence_is_the_auroc_of_all_pairs_and_of_the_best_of_each():
    found = evaluation(3)
    present, absent = (
        [row["max_relevancies"] for row in found[kind]] for kind in ("queries", "absent")
    )
    pairs, best = mean_over("presence_auroc", [found]), mean_over("presence_auroc_scene", [found])
    assert pairs is not None
    assert best is not None
    assert pairs.value == pytest.approx(auroc(np.ravel(present), np.ravel(absent)))
    maxima = (np.max(values, axis=1) for values in (present, absent))
    assert best.value == pytest.approx(auroc(*maxima))
