"""Who starts workers: this process, Ray, torchrun or Slurm; all do the same to the bit."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from f3rm.errors import ImageError
from f3rm.extract.engines import EngineError, run_with
from f3rm.extract.job import Job
from f3rm.store.device import is_first_rank, resolve_device
from f3rm.store.reader import FeatureStore
from tests.extract.toy import (
    ToyBackbone,
    files_of,
    folder_of,
    items_of,
    never,
    toy_spec,
    write_dataset,
)

NUM = 9


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "scene", [(24, 33)] * NUM)


def job(root: Path, model: str = "slow") -> Job:
    settings = {"shard_size": 2, "batch_size": 1, "device": "cpu", "progress": False}
    return Job(items_of(root), toy_spec(model), folder_of(root), **settings)


def test_two_processes_of_one_command(dataset, events, expected):
    store = run_with(job(dataset), workers=2, load=ToyBackbone.load)
    assert len(store) == NUM
    assert Counter(events())["run 1"] == NUM
    assert files_of(folder_of(dataset)) == expected


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    try:
        start(ray)
    except Exception as error:  # Ray gives its node 30 seconds, and raises no class of its own
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        start(ray)
    yield ray
    ray.shutdown()


def start(ray) -> None:
    root = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_two_ray_workers(cluster, dataset, expected):
    store = run_with(job(dataset), engine="ray", workers=2, load=ToyBackbone.load)
    assert len(store) == NUM
    assert files_of(folder_of(dataset)) == expected
    (dataset / "images/3.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"images/3\.png"):
        run_with(job(dataset), engine="ray", workers=2, load=ToyBackbone.load)
    assert len(FeatureStore.open(folder_of(dataset))) == NUM, "the old cache is as it was"


def test_ray_that_is_not_installed_is_said(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    with pytest.raises(EngineError, match=r"Install it: pip install 'ray>=2\.40' "):
        run_with(job(dataset), engine="ray", load=never)


def test_the_number_of_workers_is_checked(dataset):
    with pytest.raises(EngineError, match=r"^--workers must be at least 1, got 0"):
        run_with(job(dataset), workers=0, load=never)


@pytest.mark.parametrize(
    ("variables", "first", "gpu"),
    [
        ({}, True, "cuda"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, True, "cuda"),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, False, "cuda:1"),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}, False, "cuda:1"),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, True, "cuda"),
        ({"LOCAL_RANK": "2"}, False, "cuda:0"),
        ({"RANK": "x"}, True, "cuda"),
    ],
)
def test_launchers_choose_the_gpu_and_who_reports(monkeypatch, variables, first, gpu):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert is_first_rank() == first
    assert resolve_device("auto") == torch.device(gpu)
