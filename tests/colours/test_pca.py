import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.colours.pca import fit_pca, pca_colours, pca_colours_from_hidden


def _anisotropic(samples=400, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([20.0, 10.0, 5.0] + [0.1] * (channels - 3))
    return torch.randn(samples, channels, generator=generator) * scales + 3.0


def test_components_span_the_largest_variances_in_order():
    basis = fit_pca(_anisotropic())
    assert basis.components.abs().argmax(0).tolist() == [0, 1, 2]
    assert basis.components[basis.components.abs().argmax(0), torch.arange(3)].min() > 0
    torch.testing.assert_close(
        basis.components.T @ basis.components, torch.eye(3), atol=1e-4, rtol=0
    )


def test_range_covers_all_but_the_outlying_percents():
    features = _anisotropic()
    colours = pca_colours(features, fit_pca(features))
    inside = ((colours > 0) & (colours < 1)).float().mean(0)
    assert ((inside > 0.95) & (inside < 0.995)).all()


def test_fit_repeats_exactly_and_leaves_the_random_state_alone():
    features = _anisotropic()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = fit_pca(features), fit_pca(features)
    assert torch.equal(first.components, second.components)
    assert torch.equal(before, torch.get_rng_state())


def test_no_generator_is_seeded_but_the_fits_own(monkeypatch):
    seeded: list[str] = []

    def record(name: str):
        return lambda *arguments: seeded.append(name)

    for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, record(f"cuda.{name}"))
    monkeypatch.setattr(torch, "manual_seed", record("manual_seed"))
    monkeypatch.setattr(torch, "set_rng_state", record("set_rng_state"))
    fit_pca(_anisotropic())
    assert seeded == []


@pytest.mark.parametrize(("samples", "channels"), [(400, 12), (20, 300), (16, 16)])
def test_fit_spans_what_an_exact_decomposition_does(samples, channels):
    features = _anisotropic(samples, channels)
    basis = fit_pca(features)
    _, _, exact = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    cosines = (basis.components * exact[:3].T).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)


def test_constant_features_have_colours_without_nan():
    colours = pca_colours(torch.ones(4, 8), fit_pca(torch.ones(10, 8)))
    assert torch.isfinite(colours).all()


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 3 rows"):
        fit_pca(torch.zeros(2, 8))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([8, 384, 768]))
def test_hidden_form_equals_the_channel_form(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 64, generator=generator) / 8
    hidden = torch.rand(50, 64, generator=generator)
    basis = fit_pca(hidden @ weight.T)
    expected = pca_colours(hidden @ weight.T, basis)
    actual = pca_colours_from_hidden(hidden, weight, basis)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
