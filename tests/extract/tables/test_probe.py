"""Probes against scikit-learn's own answers, and through a file."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from f3rm.extract.tables.probe import Probe, ProbeError


def data(num_classes: int, seed: int = 0, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count) * 3 + 5  # labels need not be 0, 1, ...
    centres = rng.normal(size=(50, 2, 4))
    features = centres[labels] + 0.8 * rng.normal(size=(count, 2, 4))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_logistic_equals_scikit_learn(num_classes):
    features, labels = data(num_classes)
    probe = Probe("logistic", strength=0.5).fit(features[:80], labels[:80])
    scaler = StandardScaler().fit(features[:80].reshape(80, -1))
    model = LogisticRegression(C=0.5, max_iter=1000)
    model.fit(scaler.transform(features[:80].reshape(80, -1)), labels[:80])
    rest = scaler.transform(features[80:].reshape(40, -1))
    np.testing.assert_allclose(
        probe.probabilities(features[80:]), model.predict_proba(rest), atol=1e-3
    )
    np.testing.assert_array_equal(probe.predict(features[80:]).labels, model.predict(rest))


def test_ridge_and_knn_agree_with_scikit_learn():
    features, labels = data(3, count=200)
    scaler = StandardScaler().fit(features[:150].reshape(150, -1))
    known, rest = (
        scaler.transform(part.reshape(len(part), -1)) for part in (features[:150], features[150:])
    )
    ridge = np.asarray(RidgeClassifier(alpha=2.0).fit(known, labels[:150]).predict(rest))
    ours = Probe("ridge", strength=2.0).fit(features[:150], labels[:150])
    np.testing.assert_array_equal(ours.predict(features[150:]).labels, ridge)
    neighbours = KNeighborsClassifier(7, metric="cosine").fit(known, labels[:150])
    ours = Probe("knn", neighbours=7).fit(features[:150], labels[:150])
    np.testing.assert_allclose(
        ours.probabilities(features[150:]), neighbours.predict_proba(rest), atol=1e-5
    )


@pytest.mark.parametrize("kind", ["logistic", "ridge", "knn"])
def test_a_saved_probe_gives_the_same_answers_without_pickle(tmp_path, kind):
    features, labels = data(3)
    probe = Probe(kind).fit(features, labels)
    probe.save(tmp_path / "probe")
    assert sorted(p.name for p in (tmp_path / "probe").iterdir()) == [
        "probe.json",
        "probe.safetensors",
    ]
    again = Probe.load(tmp_path / "probe")
    np.testing.assert_array_equal(again.probabilities(features), probe.probabilities(features))


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_scores_are_scikit_learns(seed, num_classes):
    rng = np.random.default_rng(seed)
    features, labels = data(num_classes, seed, 40)
    other = rng.choice([*np.unique(labels), 99], size=40)  # an unseen class too
    probe = Probe("knn", neighbours=3).fit(features, labels) if len(set(labels)) > 1 else None
    if probe is None:
        return
    score = probe.score(features, other)
    predicted = probe.predict(features).labels
    assert score.top1 == pytest.approx((predicted == other).mean())
    expected = f1_score(other, predicted, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    assert score.macro_f1 == pytest.approx(expected)
    matrix = confusion_matrix(other, predicted, labels=score.classes)
    np.testing.assert_array_equal(score.confusion, matrix)


def test_probes_say_what_is_wrong(tmp_path):
    features, labels = data(2)
    with pytest.raises(ProbeError, match="neighbours positive"):
        Probe(neighbours=0)
    with pytest.raises(ProbeError, match="not fitted yet"):
        Probe().predict(features)
    with pytest.raises(ProbeError, match="at least two classes"):
        Probe().fit(features, np.zeros(len(labels), dtype=int))
    with pytest.raises(ProbeError, match="hold NaN or infinity"):
        Probe().fit(np.full_like(features, np.nan), labels)
    with pytest.raises(ProbeError, match="fitted to 8 values per item, got 4"):
        Probe("knn").fit(features, labels).predict(features[:, :1])
    (tmp_path / "probe.json").write_text('{"version": 99}')
    with pytest.raises(ProbeError, match="no usable saved probe"):
        Probe.load(tmp_path)
