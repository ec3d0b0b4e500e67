"""Flat Gaussians on points of known surfaces."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from f3rm.splats.gaussians import scaled_axes
from f3rm.splats.rasterizer import Rasterizer
from f3rm.splats.surfels import _quaternions, surfels
from tests.splats.scenes import ring_of_cameras


def test_quaternions_are_those_of_scipy():
    rotations = Rotation.from_quat(np.random.default_rng(0).standard_normal((200, 4)))
    half_turns = Rotation.from_rotvec(np.pi * np.eye(3))
    for each in (rotations, half_turns, Rotation.identity(1)):
        found = _quaternions(each.as_matrix())
        back = Rotation.from_quat(found[:, [1, 2, 3, 0]])
        assert (back * each.inv()).magnitude().max() < 1e-6


def sphere(count=4000):
    """Evenly spread points, coloured by their place."""
    number = np.arange(count) + 0.5
    z, turn = 1 - 2 * number / count, np.pi * (1 + 5**0.5) * number
    flat = np.sqrt(1 - z * z)
    points = torch.from_numpy(np.stack((flat * np.cos(turn), flat * np.sin(turn), z), axis=1))
    return 0.6 * points.float(), (0.5 + 0.45 * points).float()


def test_gaussians_lie_flat_on_their_surface():
    points, colours = sphere()
    found = surfels(points, colours)
    normals = scaled_axes(found.quats, torch.ones(len(points), 3))[:, :, 0]
    along = (normals * torch.nn.functional.normalize(points, dim=1)).sum(dim=1).abs()
    assert along.min() > 0.99
    assert torch.equal(found.means, points)
    assert (found.scales[:, 1] / found.scales[:, 0]).sub(10).abs().max() < 1e-3
    torch.testing.assert_close(found.colours(torch.zeros(3)), colours)


def test_a_sphere_of_them_is_closed_and_shows_its_colours():
    points, colours = sphere()
    gaussians = surfels(points, colours)
    camera = ring_of_cameras(1)[0]
    drawing = Rasterizer(gaussians, camera, implementation="torch")
    where = drawing.composite(points)
    inside = drawing.accumulation > 0.5
    radius = where[inside].norm(dim=1) / drawing.accumulation[inside]
    share = inside.float().mean() * inside.numel() / (np.pi * (60 * 0.6 / 3) ** 2)
    assert 0.95 < share < 1.3
    assert radius.median() == pytest.approx(0.6, abs=0.02)
    middle = tuple(each // 2 for each in camera.size)
    assert drawing.accumulation[middle] > 0.99
    shown = drawing.composite(colours)[middle]
    nearest = torch.nn.functional.normalize(camera.eye, dim=0) * 0.6
    torch.testing.assert_close(shown, 0.5 + 0.45 * nearest / 0.6, atol=0.05, rtol=0)


def test_lone_points_become_no_sheets():
    points, colours = sphere(500)
    points = torch.cat((points, torch.tensor([[30.0, 0, 0]])))
    found = surfels(points, torch.cat((colours, colours[:1])))
    assert found.scales.max() < 4 * found.scales.max(dim=1).values.median()
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        surfels(points[:3], colours[:3])
