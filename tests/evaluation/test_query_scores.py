"""Scores of queries: a copy of the truth is right everywhere; means are taken as documented."""

from pathlib import Path

import numpy as np
import pytest

from f3rm.evaluation.held_out import HeldOutScores
from f3rm.evaluation.means import mean_over
from f3rm.evaluation.query_scores import MIN_PIXELS, QueryScores
from f3rm.evaluation.report import collect_rows
from f3rm.evaluation.surface_scores import SurfaceScores
from f3rm.evaluation.vocabulary import Label, Vocabulary
from f3rm.synthetic.truth import (
    AbsentPrompt,
    ObjectKind,
    SceneTruth,
    TruthObject,
    TruthQuery,
    TruthWords,
)

VOCABULARY = Vocabulary(
    queries=(Label("red mug", (0,)), Label("blue box", (1, 2)), Label("box", (1, 2, 3))),
    surfaces=(Label("table", (4,)),),
    absent=(AbsentPrompt("green ring", "absent_pair", 0), AbsentPrompt("cat", "unknown_word", 0)),
)


def _ids(seed, height=60, width=70):
    """Five objects as rectangles on nothing, each of at least 100 pixels."""
    rng = np.random.default_rng(seed)
    ids = np.full((height, width), -1, dtype=np.int32)
    for number in range(5):
        left = 14 * number
        top = rng.integers(0, height - 12)
        ids[top : top + 12, left : left + rng.integers(9, 13)] = number
    return ids


def _copy_of(ids, vocabulary=VOCABULARY):
    """Scores of a predictor that knows the truth, and that a box may be called a blue box."""
    scores = np.full((len(vocabulary.texts), *ids.shape), 0.1, dtype=np.float32)
    for number, label in enumerate(vocabulary.labels):
        scores[number][np.isin(ids, label.ids)] = 0.9
    return scores


def _answers(views, change=lambda scores: scores):
    collected = QueryScores(VOCABULARY)
    for number, ids in enumerate(views):
        collected.add(f"view {number}", ids, change(_copy_of(ids)))
    return collected.answers()


NAMES = (
    *("localisation", "localisation_mask", "miou", "miou_minmax", "miou_argmax"),
    "miou_boundary",
    *("average_precision", "absent_found", "presence_auroc", "presence_auroc_scene"),
)


def _means(answers):
    rows = collect_rows(HeldOutScores([], {}, answers, None), SurfaceScores(), None, [])
    means = {name: mean_over(name, [rows]) for name in NAMES}
    return {name: mean.value if mean else None for name, mean in means.items()}


def test_a_copy_of_the_truth_gets_one_everywhere():
    answers = _answers([_ids(0), _ids(1)])
    means = _means(answers)
    minmax = means.pop("miou_minmax")
    assert means.pop("absent_found") == 0
    assert means == dict.fromkeys(means, 1.0)
    assert minmax is not None
    assert minmax > 0.6  # LangSplat's smoothing rounds corners off even a perfect map


def test_the_inverse_of_the_truth_gets_nothing_right():
    answers = _answers([_ids(0)], change=lambda scores: 1 - scores)
    means = _means(answers)
    for name in ("localisation", "localisation_mask", "miou", "miou_argmax", "miou_boundary"):
        assert means[name] == 0
    assert means["absent_found"] == 1


def test_the_order_of_views_does_not_matter():
    def noisy(scores):
        noise = np.random.default_rng(int(scores.sum())).random(scores.shape)
        return (0.7 * scores + 0.3 * noise).astype(np.float32)

    views = [_ids(seed) for seed in range(3)]
    forwards, backwards = _answers(views, noisy), _answers(views[::-1], noisy)
    assert _means(forwards) == pytest.approx(_means(backwards))


def test_a_query_counts_only_where_enough_of_it_is_seen():
    seen = _ids(0)
    hidden = np.where(seen == 0, -1, seen)
    hidden[0, : MIN_PIXELS - 1] = 0
    answers = _answers([seen, hidden])
    assert [len(query.pairs) for query in answers.queries] == [1, 2, 2]
    enough = hidden.copy()
    enough[1, 0] = 0
    assert [len(query.pairs) for query in _answers([seen, enough]).queries] == [2, 2, 2]


def test_views_are_averaged_per_query_first_and_localisation_over_pairs():
    seen = _ids(0)
    without_mug = np.where(seen == 0, -1, seen)

    def blind_to_the_mug(scores):
        scores[0] = 0.2
        scores[0, 0, 0] = 0.3
        return scores

    answers = _answers([seen, without_mug], blind_to_the_mug)
    means = _means(answers)
    assert means["miou"] == pytest.approx((0 + 1 + 1) / 3)  # queries
    assert means["localisation"] == pytest.approx(4 / 5)  # pairs


def test_a_ring_is_found_in_its_hole_by_its_box_alone():
    ring = np.full((60, 70), -1)
    ring[10:30, 10:30] = 0
    ring[16:24, 16:24] = -1

    def sees_the_hole(scores):
        scores[0, 20, 20] = 0.97
        return scores

    means = _means(_answers([ring], sees_the_hole))
    assert means["localisation"] == 1
    assert means["localisation_mask"] == 0


def test_a_query_that_no_view_shows_has_no_numbers_and_spoils_no_mean():
    nothing = np.where(_ids(0) == 0, -1, _ids(0))
    answers = _answers([nothing])
    assert answers.queries[0].pairs == ()
    assert answers.queries[0].average_precision is None
    assert _means(answers)["miou"] == 1


def test_without_views_there_are_no_numbers():
    answers = QueryScores(VOCABULARY).answers()
    assert set(_means(answers).values()) == {None}


def test_absent_phrases_are_judged_by_their_highest_scores():
    def finds_the_cat(scores):
        scores[-1, 0, :7] = 0.95
        return scores

    answers = _answers([_ids(0), _ids(1)], finds_the_cat)
    ring, cat = answers.absent
    assert ring.max_relevancies == pytest.approx([0.1, 0.1])
    assert cat.max_relevancies == pytest.approx([0.95, 0.95])
    means = _means(answers)
    assert means["presence_auroc"] == 0.5  # above one of the two absent phrases
    assert means["absent_found"] == pytest.approx(7 / (2 * 60 * 70))


def test_words_come_from_the_truth_and_rivals_share_no_object():
    def thing(number, name, kind: ObjectKind = "object"):
        centre = half = (0.0, 0.0, 0.0)
        words = TruthWords("red", "plain", "mug") if kind == "object" else None
        return TruthObject(number, name, 0, kind, centre, half, 0.0, words)

    truth = SceneTruth(
        folder=Path(),
        kind="tabletop",
        seed=0,
        objects=(thing(0, "red mug"), thing(1, "wall", "surface"), thing(2, "wall", "surface")),
        queries=(TruthQuery("red mug", (0,)), TruthQuery("mug", (0,))),
        absent=(AbsentPrompt("cat", "unknown_word", 0),),
        metres_from_dataset=np.eye(4),
    )
    words = Vocabulary.of(truth)
    assert words.texts == ("red mug", "mug", "wall", "cat")
    assert words.surfaces == (Label("wall", (1, 2)),)
    assert words.rivals(0) == [2]
