import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from f3rm.scene.finding.pieces import area, connected, supported
from f3rm.scene.surface import Sightings, Surface, SurfacePoints, thinned


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


AWAY = np.array([3.0, 0.0, 0.0])


def _surface(positions, views=None, eyes=((0.0, 0.0, 9.0),), spacing=0.01):
    """A surface of given points."""
    where = torch.as_tensor(np.asarray(positions)).float()
    ones = torch.ones(len(where), dtype=torch.long)
    points = SurfacePoints(where, 0 * where, torch.zeros(len(where), 1), ones)
    seen = 0 * ones if views is None else torch.as_tensor(views)
    return Surface(Sightings(points, seen, torch.tensor(eyes)), spacing)


def _pieces(surface, chosen=None):
    """Positions of each connected piece, in an order of their own."""
    total = len(surface.points)
    chosen = np.arange(total) if chosen is None else chosen
    pieces = connected(chosen, surface.neighbours, total)
    assert [len(piece) for piece in pieces] == sorted(map(len, pieces), reverse=True)
    assert sorted(np.concatenate(pieces)) == sorted(chosen)
    return sorted(sorted(map(tuple, surface.points.positions[piece].tolist())) for piece in pieces)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(20, 60), min_size=1, max_size=5), st.floats(0.1, 10), st.integers(0, 9))
def test_pieces_are_what_gaps_leave_over_however_densely_they_are_sampled(sizes, scale, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(0, 0.5, (n, 3)) + k * AWAY for k, n in enumerate(sizes)]
    surface = _surface(scale * np.concatenate(parts), spacing=1e-3 * scale)
    assert [len(piece) for piece in _pieces(surface)] == sizes


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(0, 9))
def test_the_order_of_points_changes_nothing(count, seed):
    rng = np.random.default_rng(seed)
    positions, views = rng.random((count, 3)), rng.integers(0, 2, count)
    eyes = ((0.0, 0.0, 9.0), (9.0, 0.0, 0.0))
    order = rng.permutation(count)
    surface = _surface(positions, views, eyes)
    other = _surface(positions[order], views[order], eyes)
    assert _pieces(surface) == _pieces(other)
    inside = rng.random((20, 3))
    assert surface.seen_through(inside).tolist() == other.seen_through(inside).tolist()
    values = surface.points.positions[:, 0]
    there = other.smoothed(other.points.positions[:, 0])
    torch.testing.assert_close(surface.smoothed(values).sort()[0], there.sort()[0])


def test_a_single_bright_point_is_smoothed_away():
    surface = _surface(torch.cartesian_prod(*[torch.arange(5.0)] * 3))
    values = torch.zeros(125)
    values[62] = 0.9
    assert float(surface.smoothed(values).max()) < 0.2
    assert torch.equal(surface.smoothed(torch.full((125,), 0.5)), torch.full((125,), 0.5))


def test_points_that_few_rays_hit_are_not_supported():
    wall = np.stack(np.meshgrid(range(10), range(10), [0]), axis=-1).reshape(-1, 3).astype(float)
    behind = np.array([[4.5, 4.5, 4.0], [1.0, 2.0, -5.0]])
    counts = np.array([3] * 100 + [1] * 2)
    kept = supported(np.concatenate((wall, behind)), counts)
    assert kept[:100].all()
    assert not kept[100:].any()
    assert supported(behind, counts[100:]).all()  # all alike: none is left out


@settings(max_examples=20, deadline=None)
@given(st.integers(200, 2000), st.floats(0.1, 10), st.integers(0, 9))
def test_the_area_of_points_is_that_of_their_surface_however_dense_they_are(count, side, seed):
    flat = np.random.default_rng(seed).uniform(0, side, (count, 2))
    assert area(np.pad(flat, ((0, 0), (0, 1)))) == pytest.approx(side**2, rel=0.3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 2.9), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_what_a_ray_passed_is_free_and_its_end_and_all_behind_is_not(along, x, y):
    surface = _surface([[x, y, 0.0]], eyes=((0.0, 0.0, 3.0),))
    eye, end = np.array([0.0, 0.0, 3.0]), np.array([x, y, 0.0])
    before = eye + (end - eye) * along / 3
    beside = before + np.array([1.0, 0.0, 1.0])
    behind = end + 0.1 * (end - eye)
    assert surface.seen_through(np.stack((before, end, behind, beside))).tolist() == [
        *(True, False, False, False)
    ]
