"""Interrupted runs, in processes of their own where only that is honest."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from f3rm.extract.extraction import extract_features
from f3rm.extract.locks.journal import Journal
from f3rm.store.chunks import publish, write_chunk
from f3rm.store.manifest import MANIFEST
from tests.extract.interrupted import (
    SCRIPT,
    StopError,
    extract,
    stop_before,
    undisturbed,
    wait_for,
)
from tests.extract.toy import (
    ToyBackbone,
    building_of,
    files_of,
    folder_of,
    items_of,
    notes_of,
    toy_spec,
    write_dataset,
)

NUM = 7


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "scene", [(24, 33)] * NUM)


def runs(events) -> int:
    return len([event for event in events() if event.startswith("run")])


@pytest.mark.parametrize("chunks_done", [0, 2])
def test_a_killed_run_goes_on_at_the_first_missing_chunk(dataset, events, python, chunks_done):
    expected = undisturbed(dataset)
    process = python("-c", SCRIPT, str(dataset), "")
    wait_for(lambda: len(notes_of(dataset)) >= chunks_done)
    wait_for(lambda: bool(list(building_of(dataset).glob("chunk_*.tmp"))))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = len(notes_of(dataset))
    assert not folder_of(dataset).exists()
    events()
    extract(dataset)
    assert runs(events) == NUM - 2 * done
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.parametrize(
    ("moment", "left"),
    [("before note", NUM), ("before manifest", 0), ("before swap", 0)],
)
def test_a_run_killed_at_the_worst_moments(dataset, events, python, moment, left):
    expected = undisturbed(dataset)
    process = python("-c", SCRIPT, str(dataset), moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not folder_of(dataset).exists()
    events()
    extract(dataset)
    assert runs(events) == left
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.parametrize("spoil", ["torn note", "bit", "cut", "gone", "swapped", "other run"])
def test_only_sound_chunks_of_an_interrupted_run_are_used(dataset, events, monkeypatch, spoil):
    expected = undisturbed(dataset)
    with monkeypatch.context() as patch:
        stop_before(patch, "chunk_0002.npy")
        with pytest.raises(StopError):
            extract(dataset)
    done = {path.stem for path in notes_of(dataset)} - {"chunk_0001"}
    left = NUM - sum(1 if name == "chunk_0003" else 2 for name in done)
    note = notes_of(dataset)[1]
    run = building_of(dataset) / "progress" / "run.json"
    chunk = building_of(dataset) / "chunk_0001.npy"
    content = chunk.read_bytes()
    if spoil == "torn note":
        note.write_text(note.read_text()[:-20])
    elif spoil == "bit":
        chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif spoil == "cut":
        chunk.write_bytes(content[:-1])
    elif spoil == "gone":
        chunk.unlink()
    elif spoil == "swapped":
        shutil.copy(chunk.with_name("chunk_0000.npy"), chunk)
    else:
        run.write_text(json.dumps({**json.loads(run.read_text()), "key": "another"}))
    events()
    extract(dataset)
    assert runs(events) == (NUM if spoil == "other run" else left)
    assert files_of(folder_of(dataset)) == expected


def test_a_damaged_journal_costs_the_run_and_nothing_else(dataset, monkeypatch):
    expected = undisturbed(dataset)
    for text in ("", "[]", '{"schema_version": 1}', '{"schema_version": 1, "chunks": [3]}'):
        with monkeypatch.context() as patch:
            stop_before(patch, "chunk_0002.npy")
            with pytest.raises(StopError):
                extract(dataset)
        (building_of(dataset) / "progress" / "run.json").write_text(text)
    extract(dataset)
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def test_two_interruptions_and_a_change_in_between_lose_nothing(dataset, events, monkeypatch):
    for file in ("chunk_0001.npy", "chunk_0003.npy"):
        with monkeypatch.context() as patch:
            stop_before(patch, file)
            with pytest.raises(StopError):
                extract(dataset)
    frames = json.loads((dataset / "transforms.json").read_text())
    frames["frames"].pop(0)
    (dataset / "transforms.json").write_text(json.dumps(frames))
    events()
    store = extract(dataset)
    assert runs(events) == 2, "the chunk that lost an image, and the one never made"
    fresh = extract(dataset, folder=dataset / "fresh")
    for index in range(len(store)):
        assert (store.feature_map(index) == fresh.feature_map(index)).all()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("property") / "scene", [(24, 33)] * NUM)
    return root, {size: plain(root, f"whole-{size}", size, None) for size in (1, 3)}


def plain(root: Path, name: str, shard_size: int, patch: pytest.MonkeyPatch | None):
    options = {"shard_size": shard_size, "batch_size": 2, "progress": False}
    folder = root / name
    load = ToyBackbone.load
    if patch is None:
        extract_features(items_of(root), toy_spec(), folder=folder, load=load, **options)
        return files_of(folder)
    with pytest.raises(StopError):
        extract_features(items_of(root), toy_spec(), folder=folder, load=load, **options)
    return {}


@given(st.sampled_from([1, 3]), st.lists(st.integers(0, 18), max_size=4))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_interruptions_end_with_the_same_bytes(scene, shard_size, stops):
    """Stops before the n-th write to the disk, several times in a row."""
    root, expected = scene
    shutil.rmtree(root / "cut", ignore_errors=True)
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            if stop_at_write(patch, stop, root, shard_size):
                break
    else:
        plain(root, "cut", shard_size, None)
    assert files_of(root / "cut") == expected[shard_size]
    assert not list(root.glob("cut.*"))


def stop_at_write(patch, stop: int, root: Path, shard_size: int) -> bool:
    """Runs until the write number ``stop``; returns whether there were fewer."""
    left = [stop]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise StopError
            return function(*arguments, **options)

        return call

    functions = {"write_chunk": write_chunk, "publish": publish, "Journal.add": Journal.add}
    for target, function in functions.items():
        patch.setattr(f"f3rm.extract.writer.{target}", counted(function))
    try:
        plain(root, "cut", shard_size, None)
    except StopError:
        return False
    return True


def test_the_writer_stops_with_the_run(dataset):
    """An error while computing leaves no thread waiting and no half chunk."""

    class Failing(ToyBackbone):
        def encode_image(self, images):
            if notes_of(dataset):
                raise StopError
            return super().encode_image(images)

    with pytest.raises(StopError):
        extract_features(
            items_of(dataset),
            toy_spec("slow"),
            folder=folder_of(dataset),
            shard_size=2,
            batch_size=1,
            load=Failing.load,
            progress=False,
        )
    assert not list(building_of(dataset).glob("*.tmp"))
    assert not (building_of(dataset) / MANIFEST).exists()
