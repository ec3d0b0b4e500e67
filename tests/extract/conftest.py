"""Fixtures of the extraction tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.extract.interrupted import undisturbed
from tests.extract.toy import write_dataset

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "scene")


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns the toy backbone's loads and runs since the last call."""
    log = tmp_path / "events.log"
    monkeypatch.setenv("F3RM_TOY_LOG", str(log))

    def take() -> list[str]:
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    return take


@pytest.fixture
def expected(dataset: Path, events: Callable[[], list[str]]) -> dict[str, bytes]:
    """The files of an undisturbed run over the test's dataset, in a folder elsewhere."""
    files = undisturbed(dataset)
    events()
    return files


@pytest.fixture
def toy_plugin(tmp_path: Path) -> Path:
    """A folder for ``sys.path`` in which the toy backbone is an installed third-party adapter."""
    folder = tmp_path / "plugin"
    info = folder / "f3rm_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: f3rm-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[f3rm.backbones]\ntoy = f3rm_toy:ToyBackbone\n")
    shutil.copy(Path(__file__).with_name("toy.py"), folder / "f3rm_toy.py")
    return folder


@pytest.fixture
def python(toy_plugin: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process, e.g. with ``unshare``, that finds f3rm and the toy adapter."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, within: Sequence[str] = (), **variables: str
    ) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(REPOSITORY), str(toy_plugin)])
        process = subprocess.Popen(
            [*within, sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)
