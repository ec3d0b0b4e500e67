from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from f3rm.scene.find import connected, supported
from f3rm.scene.scored import smoothed
from f3rm.scene.surface import SurfacePoints, thinned


def _points(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 10, generator=generator)
    counts = torch.ones(count, dtype=torch.long)
    return SurfacePoints(rows[:, :3], rows[:, 3:6], rows[:, 6:], counts)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 200), st.integers(0, 9), st.floats(0.05, 2))
def test_thinning_keeps_means_and_leaves_one_point_per_cell(count, seed, spacing):
    points = _points(count, seed)
    thin = thinned(points, spacing)
    assert int(thin.counts.sum()) == count
    for name in ("positions", "colours", "hidden"):
        whole, values = getattr(points, name), getattr(thin, name)
        torch.testing.assert_close((values * thin.counts[:, None]).sum(0), whole.sum(0))
    cells = torch.floor(thin.positions.double() / spacing).long()
    assert len(cells.unique(dim=0)) == len(thin)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 9))
def test_pieces_are_what_gaps_leave_over(sizes, seed):
    rng = np.random.default_rng(seed)
    away = np.array([3.0, 0, 0])
    parts = [rng.uniform(0, 0.5, (size, 3)) + n * away for n, size in enumerate(sizes)]
    order = rng.permutation(sum(sizes))
    pieces = connected(np.concatenate(parts)[order], radius=1.0)
    found = sorted(sorted(order[piece].tolist()) for piece in pieces)
    starts = np.cumsum([0, *sizes])
    assert found == [list(range(a, b)) for a, b in pairwise(starts)]
    assert [len(piece) for piece in pieces] == sorted(sizes, reverse=True)


def test_a_single_bright_point_is_smoothed_away():
    positions = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    values = torch.zeros(len(positions))
    values[62] = 0.9
    smooth = smoothed(positions, values)
    assert float(smooth.max()) < 0.2
    assert torch.equal(smoothed(positions, torch.full((125,), 0.5)), torch.full((125,), 0.5))


def test_points_that_few_rays_hit_are_not_supported():
    wall = np.stack(np.meshgrid(range(10), range(10), [0]), axis=-1).reshape(-1, 3).astype(float)
    behind = np.array([[4.5, 4.5, 4.0], [1.0, 2.0, -5.0]])
    counts = np.array([3] * 100 + [1] * 2)
    kept = supported(np.concatenate((wall, behind)), counts, radius=2.0)
    assert kept[:100].all()
    assert not kept[100:].any()
    assert supported(behind, counts[100:], radius=2.0).all()  # all alike: none is left out
