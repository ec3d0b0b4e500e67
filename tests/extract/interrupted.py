"""Extractions that stop midway, and the undisturbed ones that they are compared with."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from f3rm.extract.extraction import extract_features
from f3rm.store.chunks import write_chunk
from f3rm.store.reader import FeatureStore
from tests.extract.toy import ToyBackbone, files_of, folder_of, items_of, toy_spec

SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from f3rm.errors import BackboneRef
from f3rm.extract import writer
from f3rm.extract.extraction import extract_features
from f3rm.extract.locks import file_locks
from f3rm.store.geometry import Prep
from f3rm.store.items import read_items
from f3rm.store.spec import FeatureSpec

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def hang_before(owner, name):
    function = getattr(owner, name)
    def hang(*arguments, **options):
        setattr(owner, name, function)
        # To this thread, which goes no further; another one would need a moment to stop it.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return function(*arguments, **options)
    setattr(owner, name, hang)

root, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "before manifest":
    writer.CacheWriter.commit = die
if moment == "before swap":
    writer.swap_in = die
if moment == "before note":
    writer.Journal.add = die
if moment == "together":
    write = writer.CacheWriter.write
    def write_together(self, *arguments, **options):
        while len(list(self.journal.folder.glob("worker-*"))) < 2:
            time.sleep(0.01)
        writer.CacheWriter.write = write
        return write(self, *arguments, **options)
    writer.CacheWriter.write = write_together
if moment == "hang before publishing":
    hang_before(writer.CacheWriter, "publish")
if moment == "hang with the lock":
    hang_before(writer, "publish")
file_locks.PATIENCE_SECONDS = float(os.environ.get("F3RM_TEST_PATIENCE", 120))
spec = FeatureSpec(
    BackboneRef("toy", "slow", "toy"), ("final",), Prep(size=32), precision="float32", codec="fp16"
)
options = {"shard_size": 2, "batch_size": 1, "device": "cpu", "progress": False}
store = extract_features(read_items(root), spec, folder=root / "features" / "toy", **options)
print(len(store))
"""
"""Extracts a dataset in a process of its own, which may kill or stop itself at a given moment.

``together``: two of them begin to write when both have joined.
"""


class StopError(Exception):
    """Stands for whatever stops a run."""


def extract(root: Path, **options) -> FeatureStore:
    """Runs the slow toy model over a dataset, two images to a chunk."""
    load = ToyBackbone.load
    defaults = {"folder": folder_of(root), "shard_size": 2, "batch_size": 1, "load": load}
    return extract_features(
        items_of(root),
        toy_spec("slow"),
        progress=False,
        **{**defaults, **options},
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits for another process, and fails after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Whether a process hangs: it was sent SIGSTOP."""
    status = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    return status.rpartition(")")[2].split()[0] == "T"


def undisturbed(root: Path) -> dict[str, bytes]:
    """The files that an undisturbed run writes, from the same dataset into a folder elsewhere."""
    return files_of(extract(root, folder=root.parent / "undisturbed").folder)


def stop_before(monkeypatch, file: str) -> None:
    """Has the run stop when it begins to write a file."""

    def write(path, *arguments):
        if path.name.startswith(file):
            raise StopError
        return write_chunk(path, *arguments)

    monkeypatch.setattr("f3rm.extract.writer.write_chunk", write)
