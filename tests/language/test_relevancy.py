import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional

from f3rm.backbones.calibration import Calibration, read_calibration
from f3rm.language.relevancy import (
    averaged,
    make_query,
    mean_unit_feature,
    relevancy,
    similarity,
    similarity_from_hidden,
    to_hidden,
)


@pytest.mark.parametrize("num_negatives", [1, 4, 50])
def test_far_negatives_give_a_score_near_one_however_many(num_negatives):
    positive = torch.tensor([[1.0, 0.0, 0.0]])
    query = make_query(positive, -positive.expand(num_negatives, 3), temperature=0.1)
    score = similarity(positive, query)
    # Closed form: cosines +1 and -1, so sigmoid((1 - -1) / 0.1), never 1 / N.
    assert score.item() == pytest.approx(1 / (1 + math.exp(-20.0)), abs=1e-7)


def test_score_is_the_pairwise_softmax_against_the_strongest_negative():
    prompt, negatives = torch.tensor([[0.3]]), torch.tensor([[0.1, 0.25, -0.9]])
    pairs = [math.exp(3.0) / (math.exp(3.0) + math.exp(10 * n)) for n in (0.1, 0.25, -0.9)]
    assert relevancy(prompt, negatives, temperature=0.1).item() == pytest.approx(
        min(pairs), abs=1e-6
    )


def test_a_feature_as_near_to_a_negative_scores_one_half():
    query = make_query(torch.eye(3)[:1], torch.eye(3)[1:2])
    assert similarity(torch.tensor([[1.0, 1.0, 0.0]]), query).item() == pytest.approx(0.5)


def test_without_negatives_the_score_is_the_cosine_of_unnormalised_features():
    query = make_query(torch.tensor([[0.0, 2.0]]))
    scores = similarity(torch.tensor([[3.0, 3.0], [0.0, -5.0]]), query)
    torch.testing.assert_close(scores, torch.tensor([[math.sqrt(0.5)], [-1.0]]))


def test_positives_are_averaged_as_unit_vectors():
    query = make_query(averaged(torch.tensor([[10.0, 0.0], [0.0, 0.1]])))
    torch.testing.assert_close(query.prompts, torch.full((1, 2), math.sqrt(0.5)))


def test_every_prompt_has_the_score_that_it_has_alone():
    vectors = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    together = similarity(vectors, make_query(vectors[:3], vectors[3:5]))
    for number in range(3):
        alone = similarity(vectors, make_query(vectors[number : number + 1], vectors[3:5]))
        torch.testing.assert_close(together[:, number : number + 1], alone)


def test_inputs_are_left_alone():
    positives, negatives = torch.full((2, 4), 3.0), torch.full((1, 4), 5.0)
    features = torch.full((2, 4), 7.0)
    similarity(features, make_query(positives, negatives))
    assert (positives == 3).all()
    assert (negatives == 5).all()
    assert (features == 7).all()


def test_a_zero_feature_scores_without_nan():
    query = make_query(torch.eye(3)[:1], torch.eye(3)[1:])
    hidden = to_hidden(query, torch.eye(3))
    assert similarity(torch.zeros(1, 3), query).item() == pytest.approx(0.5)
    assert similarity_from_hidden(torch.zeros(1, 3), hidden).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("positives", "temperature", "message"),
    [(torch.zeros(0, 3), 0.1, "at least one embedding"), (torch.eye(3), 0.0, "must be positive")],
)
def test_impossible_queries_are_refused(positives, temperature, message):
    with pytest.raises(ValueError, match=message):
        make_query(positives, temperature=temperature)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    channels=st.sampled_from([3, 64, 768]),
    hidden=st.sampled_from([8, 64]),
    prompts=st.integers(1, 3),
    negatives=st.integers(0, 5),
    temperature=st.floats(0.05, 2.0),
    rule=st.sampled_from(["lerf", "scene", "backbone"]),
)
def test_hidden_form_equals_the_channel_form(
    seed, channels, hidden, prompts, negatives, temperature, rule
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, hidden, generator=generator, dtype=torch.float64)
    vectors = torch.rand(5, 7, hidden, generator=generator, dtype=torch.float64)
    phrases = torch.randn(prompts + negatives, channels, generator=generator, dtype=torch.float64)
    mean = mean_unit_feature(vectors.flatten(0, 1), weight) if rule == "scene" else None
    anything = torch.randn(40, channels, generator=generator, dtype=torch.float64)
    query = make_query(
        phrases[:prompts],
        phrases[prompts:],
        temperature=temperature,
        mean=mean,
        calibration=Calibration.of(anything) if rule == "backbone" else None,
    )
    expected = similarity(vectors @ weight.T, query)
    actual = similarity_from_hidden(vectors, to_hidden(query, weight))
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    single = similarity_from_hidden(vectors.float(), to_hidden(query, weight.float()))
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=0)


def test_a_calibrated_score_counts_deviations_from_features_of_anything(tmp_path):
    generator = torch.Generator().manual_seed(3)
    anything = 7 * torch.randn(500, 6, generator=generator)
    calibration = Calibration.of(anything)
    prompts = torch.randn(2, 6, generator=generator)
    query = make_query(prompts, calibration=calibration)
    assert query.has_negatives
    cosines = functional.normalize(anything, dim=-1) @ functional.normalize(prompts, dim=-1).T
    deviations = (cosines - cosines.mean(0)) / cosines.std(0, correction=0)
    scores = similarity(anything, query)
    torch.testing.assert_close(torch.logit(scores), deviations - 4.5, atol=1e-3, rtol=1e-3)
    assert calibration.write(tmp_path).parent == tmp_path
    back = read_calibration(tmp_path)
    assert back is not None
    assert torch.equal(back.mean, calibration.mean)
    assert torch.equal(back.moments, calibration.moments)
    assert read_calibration(tmp_path / "elsewhere") is read_calibration(None) is None


def test_what_all_of_a_scene_has_in_common_fits_no_phrase():
    common, own, other = torch.eye(3)
    features = torch.stack([common + 0.4 * own, common + 0.4 * other])
    mean = mean_unit_feature(features, torch.eye(3))
    torch.testing.assert_close(mean[1], mean[2])
    query = make_query(torch.stack([common + 0.4 * own]), mean=mean)  # no negatives: the cosine
    # The features lie on both sides of their mean, the prompt on the first one's.
    torch.testing.assert_close(similarity(features, query), torch.tensor([[1.0], [-1.0]]))
    plain = make_query(query.prompts)
    assert similarity(features, plain).min() > 0.8  # without contrast both are near to the prompt


def test_the_scenes_score_is_the_geometric_mean_of_relevancy_and_contrast():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    prompts, negatives, mean = features[:2], features[2:4], features[4] / 9
    plain = similarity(features, make_query(prompts, negatives))
    contrast = similarity(features, make_query(prompts, mean=mean)).clamp_min(0)
    scores = similarity(features, make_query(prompts, negatives, mean=mean))
    torch.testing.assert_close(scores.square(), plain * contrast)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_zero_feature_scores_without_nan_in_a_scene():
    query = make_query(torch.eye(3)[:1], torch.eye(3)[1:], mean=torch.full((3,), 0.5))
    hidden = similarity_from_hidden(torch.zeros(1, 3), to_hidden(query, torch.eye(3)))
    assert torch.isfinite(hidden).all()
    torch.testing.assert_close(similarity(torch.zeros(1, 3), query), hidden, atol=1e-6, rtol=0)
