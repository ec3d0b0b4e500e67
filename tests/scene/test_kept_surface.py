"""A run's surface is sampled once, and anew where anything differs that decides its points."""

import os
import pickle
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from f3rm.scene.kept.kept_surface import KeptSurface
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.surface import Sightings, SurfacePoints
from tests.nerf_fixtures import camera


class _Sampler:
    """Draws points; remembers of how many rays."""

    def __init__(self):
        self.rays = []

    def __call__(self, num_rays, *, seed):
        self.rays.append(num_rays)
        torch.manual_seed(seed)
        hidden = torch.randn(num_rays, 4)
        counts = torch.arange(num_rays)
        points = SurfacePoints(torch.randn(num_rays, 3), torch.rand(num_rays, 3), hidden, counts)
        return Sightings(points, counts % 2, torch.randn(2, 3))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yml").write_text("near: 1")
    (tmp_path / "step-000000007.ckpt").write_bytes(b"weights")
    run = Mock(spec=LoadedRun)
    run.config_path, run.config, run.step = (
        tmp_path / "config.yml",
        SimpleNamespace(load_dir=tmp_path),
        7,
    )
    run.train = SimpleNamespace(cameras=camera())
    return run


def _columns(sightings):
    return [*vars(sightings.points).values(), sightings.views, sightings.eyes]


def test_another_process_reads_what_the_first_sampled(run):
    sampler = _Sampler()
    first = KeptSurface(run, sampler)(6, seed=1)
    second = KeptSurface(run, sampler)(6, seed=1)
    assert sampler.rays == [6]
    assert all(map(torch.equal, _columns(first), _columns(second)))
    assert all(
        kept.dtype == made.dtype
        for kept, made in zip(_columns(second), _columns(first), strict=True)
    )
    assert not [path for path in run.config_path.parent.iterdir() if path.name.startswith(".")]


def _train_on(run):
    run.step = 8
    (run.config_path.parent / "step-000000008.ckpt").write_bytes(b"weights")


def _replace_checkpoint(run):
    os.utime(run.config_path.parent / "step-000000007.ckpt", ns=(1, 1))


def _move_cameras(run):
    run.train.cameras = camera(width=14)


@pytest.mark.parametrize(
    "change",
    [
        _train_on,
        _replace_checkpoint,
        _move_cameras,
        lambda run: run.config_path.write_text("near: 2"),
    ],
)
def test_whatever_decides_the_points_samples_them_anew(run, change):
    sampler = _Sampler()
    kept = KeptSurface(run, sampler)
    kept(6, seed=1)
    change(run)
    kept(6, seed=1)
    kept(6, seed=2)
    kept(5, seed=2)
    assert len(sampler.rays) == 4
    assert len(kept(5, seed=2).views) == 5
    assert len(sampler.rays) == 4


class _Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", bytes(range(100)), pickle.dumps(_Trap())],
    ids=["empty", "text", "bytes", "pickle"],
)
def test_a_damaged_file_is_sampled_anew_and_replaced(run, content):
    sampler = _Sampler()
    kept = KeptSurface(run, sampler)
    kept.path.write_bytes(content)
    kept(6, seed=1)
    kept(6, seed=1)
    assert sampler.rays == [6]


def test_a_folder_that_cannot_be_written_to_is_no_trouble(run):
    sampler = _Sampler()
    kept = KeptSurface(run, sampler)
    kept.path.mkdir()  # of root, who may write anywhere, the only obstacle
    assert len(kept(6, seed=1).views) == 6
    (run.config_path.parent / "step-000000007.ckpt").unlink()
    kept(6, seed=1)
    assert sampler.rays == [6, 6]
    assert {path.name for path in run.config_path.parent.iterdir()} == {
        "config.yml",
        kept.path.name,
    }
