"""Scores of queries: a copy of the truth is right everywhere; means are taken as documented."""

from pathlib import Path

import numpy as np
import pytest

from f3rm.evaluation.query_scores import MIN_PIXELS, QueryScores, summarise
from f3rm.evaluation.vocabulary import Label, Vocabulary
from f3rm.synthetic.truth import ObjectKind, SceneTruth, TruthObject, TruthQuery

VOCABULARY = Vocabulary(
    queries=(Label("red mug", (0,)), Label("blue box", (1, 2)), Label("box", (1, 2, 3))),
    surfaces=(Label("table", (4,)),),
    absent=("green ring", "white cat"),
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


def test_a_copy_of_the_truth_gets_one_everywhere():
    answers = _answers([_ids(0), _ids(1)])
    means = summarise(answers.queries)
    minmax = means.pop("miou_minmax")
    assert means == dict.fromkeys(means, 1.0)
    assert minmax is not None
    assert minmax > 0.6  # LangSplat's smoothing rounds corners off even a perfect map
    assert answers.presence.per_view == answers.presence.per_scene == 1
    assert answers.presence.absent_share == 0


def test_the_inverse_of_the_truth_gets_nothing_right():
    answers = _answers([_ids(0)], change=lambda scores: 1 - scores)
    means = summarise(answers.queries)
    for name in ("localisation", "localisation_mask", "miou", "miou_argmax"):
        assert means[name] == 0
    assert answers.presence.absent_share == 1


def test_the_order_of_views_does_not_matter():
    def noisy(scores):
        noise = np.random.default_rng(int(scores.sum())).random(scores.shape)
        return (0.7 * scores + 0.3 * noise).astype(np.float32)

    views = [_ids(seed) for seed in range(3)]
    forwards, backwards = _answers(views, noisy), _answers(views[::-1], noisy)
    assert summarise(forwards.queries) == pytest.approx(summarise(backwards.queries))


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
    means = summarise(answers.queries)
    assert means["miou"] == pytest.approx((0 + 1 + 1) / 3)  # queries
    assert means["localisation"] == pytest.approx(4 / 5)  # pairs


def test_a_ring_is_found_in_its_hole_by_its_box_alone():
    ring = np.full((60, 70), -1)
    ring[10:30, 10:30] = 0
    ring[16:24, 16:24] = -1

    def sees_the_hole(scores):
        scores[0, 20, 20] = 0.97
        return scores

    means = summarise(_answers([ring], sees_the_hole).queries)
    assert means["localisation"] == 1
    assert means["localisation_mask"] == 0


def test_a_query_that_no_view_shows_has_no_numbers_and_spoils_no_mean():
    nothing = np.where(_ids(0) == 0, -1, _ids(0))
    answers = _answers([nothing])
    assert answers.queries[0].pairs == ()
    assert answers.queries[0].average_precision is None
    assert summarise(answers.queries)["miou"] == 1


def test_without_views_there_are_no_numbers():
    answers = QueryScores(VOCABULARY).answers()
    assert set(summarise(answers.queries).values()) == {None}
    assert answers.presence.per_view is None
    assert answers.presence.absent_share is None


def test_absent_phrases_are_judged_by_their_highest_scores():
    def finds_the_cat(scores):
        scores[-1, 0, :7] = 0.95
        return scores

    answers = _answers([_ids(0), _ids(1)], finds_the_cat)
    assert sorted(answers.presence.absent) == pytest.approx([0.1, 0.1, 0.95, 0.95])
    assert answers.presence.per_view == 0.5  # above one of the two absent phrases
    assert answers.presence.absent_share == pytest.approx(7 / (2 * 60 * 70))


def test_words_come_from_the_truth_and_rivals_share_no_object():
    def thing(number, name, kind: ObjectKind = "object"):
        centre = half = (0.0, 0.0, 0.0)
        return TruthObject(number, name, 0, kind, centre, half, 0.0)

    truth = SceneTruth(
        folder=Path(),
        kind="tabletop",
        seed=0,
        objects=(thing(0, "red mug"), thing(1, "wall", "surface"), thing(2, "wall", "surface")),
        queries=(TruthQuery("red mug", (0,)), TruthQuery("mug", (0,))),
        absent=("cat",),
        metres_from_dataset=np.eye(4),
    )
    words = Vocabulary.of(truth)
    assert words.texts == ("red mug", "mug", "wall", "cat")
    assert words.surfaces == (Label("wall", (1, 2)),)
    assert words.rivals(0) == [2]
