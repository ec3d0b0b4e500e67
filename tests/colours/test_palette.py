import torch
from hypothesis import given, strategies as st
from nerfstudio.utils.colormaps import apply_float_colormap

from f3rm.colours.palette import PALETTE, best_query_index, coloured, composite, palette, palette_of


@given(st.integers(0, 30))
def test_every_query_has_a_colour_of_its_own(count):
    colours = palette(count)
    assert colours.shape == (count, 3)
    assert len(colours.unique(dim=0)) == count
    first = torch.tensor(PALETTE[: min(count, 8)]).reshape(-1, 3) / 255
    torch.testing.assert_close(colours[:8], first)


def test_a_place_belongs_to_the_query_it_exceeds_most_or_to_none():
    scores = torch.tensor([[0.9, 0.6], [0.6, 0.8], [0.4, 0.4], [0.9, 0.9]])
    assert best_query_index(scores, (0.5, 0.5)).tolist() == [0, 1, -1, 0]
    assert best_query_index(scores, (float("inf"), 0.5)).tolist() == [1, 1, -1, 1]
    assert best_query_index(scores, (float("inf"), float("inf"))).tolist() == [-1] * 4


def test_more_queries_than_colours_can_be_laid_over_a_picture():
    scores = torch.eye(10)[None]
    shown = composite(torch.full((1, 10, 3), 0.5), scores, (0.5,) * 10)
    assert len(shown[0].unique(dim=0)) == 10


def test_scores_have_nerfstudios_turbo_and_one_scale():
    scores = torch.linspace(-0.5, 1.5, 301).reshape(7, 43)
    expected = apply_float_colormap(((scores - 0.2) / 0.6).clamp(0, 1)[..., None], "turbo")
    assert torch.equal(coloured(scores, 0.2, 0.8), expected)
    odd = coloured(torch.tensor([float("nan"), -torch.inf, torch.inf, 0.8]), 0.2, 0.8)
    assert torch.equal(odd[0], odd[1])
    assert torch.equal(odd[2], odd[3])
    assert torch.isfinite(coloured(scores, 0.5, 0.5)).all()


def test_a_query_has_the_colour_that_it_names_and_no_two_have_the_same():
    labels = ("a cone", "Orange box", "purple thing", "pink cone", "mug", "dark blue mug")
    colours = (palette_of(labels) * 255).round().int().tolist()
    assert [PALETTE.index(tuple(colour)) for colour in colours] == [1, 0, 4, 2, 3, 5]
    assert palette_of(()).shape == (0, 3)
    assert len({tuple(row) for row in palette_of(["cone"] * 11).tolist()}) == 11
