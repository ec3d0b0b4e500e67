"""Interrupted and simultaneous runs, in processes of their own where only that is honest."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from f3rm.features.chunks import write_chunk
from f3rm.features.extraction import extract_features
from f3rm.features.manifest import MANIFEST
from f3rm.features.store import FeatureStore
from tests.features.toy import ToyBackbone, files_of, items_of, toy_spec, write_dataset

SCRIPT = """
import sys
from pathlib import Path
from f3rm._types import BackboneRef
from f3rm.features.extraction import extract_features
from f3rm.features.items import read_items
from f3rm.features.spec import FeatureSpec

root = Path(sys.argv[1])
spec = FeatureSpec("toy", BackboneRef("toy", "slow", "toy"), "final", 32)
options = {"shard_size": 2, "batch_size": 1, "device": "cpu", "progress": False}
store = extract_features(read_items(root), spec, folder=root / "features" / "toy", **options)
print(len(store))
"""
Start = Callable[..., "object"]


def extract(root: Path, **options) -> FeatureStore:
    settings = {"folder": root / "features" / "toy", "shard_size": 2, "batch_size": 1}
    return extract_features(
        items_of(root),
        toy_spec("slow"),
        load=ToyBackbone.load,
        progress=False,
        **settings,
        **options,
    )


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "scene", [(24, 33)] * 7)


def runs(events) -> int:
    return len([event for event in events() if event.startswith("run")])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def undisturbed(root: Path) -> dict[str, bytes]:
    """The files that an undisturbed run writes, from a copy elsewhere."""
    store = extract_features(
        items_of(root),
        toy_spec("slow"),
        folder=root.parent / "undisturbed",
        shard_size=2,
        batch_size=1,
        load=ToyBackbone.load,
        progress=False,
    )
    return files_of(store.folder)


@pytest.mark.parametrize("chunks_done", [0, 2])
def test_a_killed_run_goes_on_at_the_first_missing_chunk(dataset, events, python, chunks_done):
    expected = undisturbed(dataset)
    events()
    folder = dataset / "features" / "toy"
    process = python("-c", SCRIPT, str(dataset))
    wait_for(lambda: len(list(folder.glob("chunk_*.npy"))) >= chunks_done)
    wait_for(lambda: bool(list(folder.glob("chunk_*.tmp"))))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len((folder / "progress.jsonl").read_text().splitlines()) - 1
    assert not (folder / MANIFEST).exists()
    events()
    extract(dataset)
    assert runs(events) == 7 - 2 * done
    assert files_of(folder) == expected


def test_a_run_killed_before_the_manifest_only_writes_it(dataset, events, monkeypatch):
    expected = undisturbed(dataset)
    with monkeypatch.context() as patch:
        patch.setattr("f3rm.features.writer.CacheWriter.commit", fail)
        with pytest.raises(KeyboardInterrupt):
            extract(dataset)
    events()
    extract(dataset)
    assert runs(events) == 0
    assert files_of(dataset / "features" / "toy") == expected


def fail(*_, **__):
    raise KeyboardInterrupt


def interrupt_before(monkeypatch, file: str) -> None:
    def write(path, *arguments):
        if path.name == file:
            raise KeyboardInterrupt
        return write_chunk(path, *arguments)

    monkeypatch.setattr("f3rm.features.writer.write_chunk", write)


@pytest.mark.parametrize("spoil", ["torn line", "bit", "cut", "gone", "other journal"])
def test_only_sound_chunks_of_an_interrupted_run_are_used(dataset, events, monkeypatch, spoil):
    expected = undisturbed(dataset)
    folder = dataset / "features" / "toy"
    with monkeypatch.context() as patch:
        interrupt_before(patch, "chunk_0002.npy")
        with pytest.raises(KeyboardInterrupt):
            extract(dataset)
    chunk, journal = folder / "chunk_0001.npy", folder / "progress.jsonl"
    content = chunk.read_bytes()
    lines = journal.read_text()
    if spoil == "torn line":
        journal.write_text(lines[:-20])
    elif spoil == "bit":
        chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif spoil == "cut":
        chunk.write_bytes(content[:-1])
    elif spoil == "gone":
        chunk.unlink()
    else:
        header = {**json.loads(lines.splitlines()[0]), "key": "another"}
        journal.write_text("\n".join([json.dumps(header), *lines.splitlines()[1:]]))
    events()
    extract(dataset)
    assert runs(events) == (7 if spoil == "other journal" else 5)
    assert files_of(folder) == expected


def test_two_processes_at_once_extract_once(dataset, events, python):
    expected = undisturbed(dataset)
    events()
    processes = [python("-c", SCRIPT, str(dataset)) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["7\n", "7\n"]
    found = events()
    assert found.count("load") == 1
    assert len(found) == 8
    assert files_of(dataset / "features" / "toy") == expected
