import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.language.threshold import (
    CLOSE,
    automatic_threshold,
    found_from,
    otsu_threshold,
    presence,
    presence_threshold,
)


def _two_groups(low, high, share, pixels=4000, noise=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.full((pixels,), low)
    scores[: int(share * pixels)] = high
    return scores + noise * torch.randn(pixels, generator=generator)


def test_otsu_is_the_cut_with_the_largest_variance_between_the_sides():
    scores = torch.cat((torch.full((3,), 0.1), torch.full((1,), 0.3), torch.full((2,), 0.9)))

    def between(cut):
        below, above = scores[scores < cut], scores[scores >= cut]
        return len(below) * len(above) * float(above.mean() - below.mean()) ** 2

    best = max((between(cut), cut) for cut in (0.2, 0.6))[1]
    assert (otsu_threshold(scores) > 0.3) is (best > 0.3)
    assert 0.3 < otsu_threshold(scores) < 0.9


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_found_object_is_cut_out_whatever_its_size(share):
    scores = _two_groups(0.3, 0.9, share)
    threshold = automatic_threshold(scores)
    assert float((scores >= threshold).float().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("level", [0.2, 0.45, 0.5])
def test_an_absent_phrase_lights_nothing_up(level):
    scores = _two_groups(level - 0.1, level, 0.1, noise=0.005)
    assert automatic_threshold(scores) == math.inf


def test_the_floor_is_what_is_known_of_the_scores():
    scores = _two_groups(0.1, 0.3, 0.2)
    assert automatic_threshold(scores) == math.inf
    assert 0.15 <= automatic_threshold(scores, floor=0.15) < 0.25


def test_equal_scores_have_a_threshold():
    assert otsu_threshold(torch.full((10,), 0.7)) == pytest.approx(0.7)
    assert automatic_threshold(torch.full((10,), 0.7)) == pytest.approx(0.7)


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.1, 10.0),
    shift=st.floats(-5.0, 5.0),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**16),
)
def test_otsu_moves_and_stretches_with_the_scores(scale, shift, share, seed):
    scores = _two_groups(0.2, 0.8, share, seed=seed).double()
    expected = otsu_threshold(scores) * scale + shift
    assert otsu_threshold(scores * scale + shift) == pytest.approx(expected, abs=0.05 * scale)


@given(st.floats(0, 1), st.booleans())
def test_what_is_certain_agrees_with_the_threshold_and_what_is_near_it_is_not(best, compares):
    """Found has a threshold, absent has none, and between them lies a band around it."""
    chosen = found_from(torch.tensor([best, 0.0]), compares=compares)
    certainty = presence(best, compares=compares)
    near = abs(best - presence_threshold(compares=compares)) < CLOSE
    assert (certainty == "uncertain") == near
    assert near or (certainty == "found") == (chosen < math.inf)
