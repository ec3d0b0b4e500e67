import torch
from hypothesis import given, strategies as st

from f3rm.colours.palette import PALETTE, best_query_index, composite, palette


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
