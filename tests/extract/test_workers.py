"""Several workers on one cache: locks, processes that die or hang, processes that share."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from f3rm.errors import CacheError
from f3rm.extract.engines import run_with
from f3rm.extract.extraction import extract_features
from f3rm.extract.job import Job
from f3rm.extract.locks import file_locks, folders
from f3rm.extract.locks.file_locks import WorkerLocks, living, try_lock, unlock
from f3rm.extract.locks.folders import feature_lock
from f3rm.extract.membership import CacheRequest, join_run
from f3rm.extract.plan import Group, InputKind, plan_chunks
from f3rm.store.chunks import verify_chunk
from f3rm.store.images import inspect_images
from tests.extract.interrupted import SCRIPT, extract, is_stopped, wait_for
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

NUM = 13
CHUNKS = 7

OTHER_NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Runs a process as containers do: its process numbers and network interfaces are its own."""


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "scene", [(24, 33)] * NUM)


@pytest.fixture
def progress(tmp_path):
    folder = tmp_path / "toy.building" / "progress"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def other_namespaces():
    try:
        subprocess.run([*OTHER_NAMESPACES, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"namespaces need root: {error}")
    return OTHER_NAMESPACES


def test_exactly_one_of_many_takes_a_lock(progress):
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        everyone = [stack.enter_context(WorkerLocks(progress.parent)) for _ in range(8)]
        for number in range(20):
            name = f"chunk_{number}"
            taken = list(pool.map(lambda worker, name=name: worker.take(name), everyone))
            assert sum(taken) == 1
            assert everyone[taken.index(True)].take(name), "it has it already"
            everyone[taken.index(True)].release(name)
            assert sum(pool.map(lambda worker, name=name: worker.take(name), everyone)) == 1
        assert len(living(progress)) == 8
    assert not list(progress.glob("worker-*"))
    with WorkerLocks(progress.parent) as worker:
        assert worker.take("chunk_0"), "locks end with their worker"


def test_the_locks_of_a_killed_process_are_free_at_once(progress, python):
    script = """
import sys, time
from pathlib import Path
from f3rm.extract.locks.file_locks import WorkerLocks
with WorkerLocks(Path(sys.argv[1])) as worker:
    print(worker.take("chunk"), worker.name, flush=True)
    time.sleep(600)
"""
    process = python("-c", script, str(progress.parent))
    taken, name = process.stdout.readline().split()
    with WorkerLocks(progress.parent) as worker:
        assert (taken, worker.take("chunk")) == ("True", False)
        assert sorted(living(progress)) == sorted([name, worker.name])
        assert f"{socket.gethostname()}-{process.pid}-" in name, "people see who it is"
        process.kill()
        process.communicate(timeout=60)
        assert worker.take("chunk")
        assert living(progress) == [worker.name]


def test_a_process_number_that_was_given_out_again_is_another_process(progress):
    (progress / f"worker-{socket.gethostname()}-{os.getpid()}-00000000").touch()
    assert living(progress) == []


def test_a_file_system_without_locks_is_said(dataset, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CacheError, match=r"Cannot lock .*/\.toy\.lock'.* a file system that supp"):
        extract(dataset)


def test_two_writers_of_one_chunk_leave_the_file_and_the_record_of_the_first(dataset):
    """As when one of them was taken to hang: their bits may differ, on different devices."""
    images = inspect_images(items_of(dataset), progress=False, failed=None)
    kind = InputKind((32, 44), (32, 44))
    plans = plan_chunks([Group(kind, (8, 11), 2, images)])
    request = CacheRequest(folder_of(dataset), ("k",), False, 3, lambda _: plans, lambda: False)
    plan = plans[0]

    def write(writer, value):
        rows = torch.full((2, *plan.grid, 3), value, dtype=torch.float16).numpy()
        return writer.write(plan, [rows], dtype="float16", taps={"final": (*plan.grid, 3)})

    with join_run(request) as one, join_run(request) as two:
        assert one is not None
        assert two is not None
        records = [write(one.writer, 1.0), write(two.writer, 2.0)]
        assert records[0].checksum != records[1].checksum
        assert two.writer.publish(plan, records[1]) == records[1]
        assert one.writer.publish(plan, records[0]) == records[1]
        assert one.writer.find(plan) == records[1]
        verify_chunk(building_of(dataset), records[1])
        assert not list(building_of(dataset).glob("*.tmp"))


@pytest.mark.parametrize("where", ["the same machine", "containers"])
def test_two_processes_share_the_chunks(dataset, events, python, expected, where, request):
    containers = where == "containers"
    within = [request.getfixturevalue("other_namespaces") if containers else (), ()]
    processes = [python("-c", SCRIPT, str(dataset), "together", within=how) for how in within]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out for out, _ in outputs] == [f"{NUM}\n"] * 2
    assert Counter(events())["run 1"] == NUM, "no image is computed twice"
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.parametrize(
    "where", ["the same machine", pytest.param("containers", marks=pytest.mark.nightly)]
)
def test_a_killed_worker_is_replaced_by_the_one_that_lives(
    dataset, events, python, expected, where, request
):
    """The chunks of the dead are taken over at once, and the result is the same to the bit."""
    containers = where == "containers"
    within = [request.getfixturevalue("other_namespaces") if containers else (), ()]
    processes = [python("-c", SCRIPT, str(dataset), "together", within=how) for how in within]
    wait_for(lambda: len(notes_of(dataset)) >= 1)
    processes[0].send_signal(signal.SIGKILL)
    started = time.monotonic()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert time.monotonic() - started < file_locks.PATIENCE_SECONDS / 4
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0], outputs
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def in_threads(count: int, work) -> list:
    with ThreadPoolExecutor(count) as pool:
        return [future.result(timeout=120) for future in [pool.submit(work) for _ in range(count)]]


def test_many_workers_force_together_and_replace_once(dataset, events, expected):
    extract(dataset)
    events()
    in_threads(3, lambda: extract(dataset, force=True))
    assert Counter(events())["run 1"] == NUM
    assert files_of(folder_of(dataset)) == expected


def test_clocks_do_not_matter(dataset, events, expected, monkeypatch):
    """Neither that of the machine nor the times of files, which other machines write."""
    done = threading.Event()
    clocks = [0.0, 4e9, 5.0, 1e9]

    def jump() -> None:
        while not done.wait(0.005):
            clocks.append(clocks.pop(0))
            with contextlib.suppress(FileNotFoundError):  # what is listed may be gone meanwhile
                for path in building_of(dataset).rglob("*"):
                    os.utime(path, (clocks[0], clocks[0]))

    monkeypatch.setattr(time, "time", lambda: clocks[0])
    thread = threading.Thread(target=jump)
    thread.start()
    try:
        in_threads(2, lambda: extract(dataset))
    finally:
        done.set()
        thread.join()
    assert Counter(events())["run 1"] == NUM
    assert files_of(folder_of(dataset)) == expected


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_what_a_worker_that_hangs_has_locked_is_made_by_others(
    dataset, events, monkeypatch, caplog, codec
):
    """Its lock is waited for, by the clock of the one that waits, and then broken."""
    options = {"load": ToyBackbone.load, "shard_size": 2, "batch_size": 1, "progress": False}
    spec = toy_spec("slow", codec=codec)
    fresh = extract_features(items_of(dataset), spec, folder=dataset / "fresh", **options)
    alone = Counter(events())["run 1"]
    monkeypatch.setattr(file_locks, "PATIENCE_SECONDS", 0.5)
    locks = []

    def hang(*names):
        progress = building_of(dataset) / "progress"
        locks.extend(try_lock(progress / name) for name in names)

    entered = WorkerLocks.__enter__

    def enter(self):
        if not locks:
            hang("worker-far-1-0", "chunk_0005.npy.lock", "codec.lock")
        return entered(self)

    monkeypatch.setattr(WorkerLocks, "__enter__", enter)
    store = extract_features(items_of(dataset), spec, folder=folder_of(dataset), **options)
    assert "making the chunks of workers that hang: far-1-0" in caplog.text
    assert Counter(events())["run 1"] == alone
    assert files_of(store.folder) == files_of(fresh.folder)
    for lock in locks:
        unlock(lock)


def test_slow_is_not_hanging(progress, monkeypatch):
    monkeypatch.setattr(file_locks, "PATIENCE_SECONDS", 0.3)
    with WorkerLocks(progress.parent) as slow, WorkerLocks(progress.parent) as idle:
        assert slow.take("chunk_0000.npy")
        part = progress.parent / "chunk_0000.npy.slow.tmp"
        for size in range(5):
            part.write_bytes(b"\0" * size)
            idle.wait()
            assert not idle.take("chunk_0000.npy"), "its part grows"
        wait_for(lambda: idle.wait() or idle.take("chunk_0000.npy"))


def test_a_process_that_hangs_and_returns_late_finds_the_cache_complete(dataset, python, expected):
    hanging = python("-c", SCRIPT, str(dataset), "hang before publishing")
    wait_for(lambda: is_stopped(hanging))
    other = python("-c", SCRIPT, str(dataset), "", F3RM_TEST_PATIENCE="0.5")
    out, err = other.communicate(timeout=60)
    assert (other.returncode, out) == (0, f"{NUM}\n"), err
    assert files_of(folder_of(dataset)) == expected
    hanging.send_signal(signal.SIGCONT)
    out, err = hanging.communicate(timeout=60)
    assert (hanging.returncode, out) == (0, f"{NUM}\n"), err
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.nightly
@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_a_process_that_hangs_with_the_lock_is_waited_for(dataset, python, expected, end):
    hanging = python("-c", SCRIPT, str(dataset), "hang with the lock")
    wait_for(lambda: is_stopped(hanging))
    other = python("-c", SCRIPT, str(dataset), "", F3RM_TEST_PATIENCE="0.5")
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=10)
    assert not folder_of(dataset).exists()
    hanging.send_signal(end)
    out, err = other.communicate(timeout=60)
    assert (other.returncode, out) == (0, f"{NUM}\n"), err
    hanging.communicate(timeout=60)
    assert hanging.returncode == (0 if end == signal.SIGCONT else -end)
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def test_who_has_the_lock_is_said_if_it_takes_long(progress, monkeypatch, caplog):
    monkeypatch.setattr(folders, "PATIENCE_SECONDS", 0.05)

    def lock_and_unlock() -> None:
        with feature_lock(progress.parent.with_name("toy")):
            pass

    with WorkerLocks(progress.parent) as worker, ThreadPoolExecutor(1) as pool:
        with feature_lock(progress.parent.with_name("toy")):
            waiting = pool.submit(lock_and_unlock)
            wait_for(lambda: f"is locked by one of: {worker.name}. If it hangs" in caplog.text)
            assert not waiting.done()
        waiting.result(timeout=60)


class Paused(ToyBackbone):
    """Waits at an image, by default the first, after saying so, until it may go on."""

    left = 1

    reached: threading.Event
    go_on: threading.Event

    def encode_image(self, images):
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            assert self.go_on.wait(120)
        return super().encode_image(images)


@pytest.fixture
def paused(monkeypatch):
    monkeypatch.setattr(Paused, "reached", threading.Event(), raising=False)
    monkeypatch.setattr(Paused, "go_on", threading.Event(), raising=False)
    return Paused


def test_other_features_wait_for_those_being_made(dataset, events, caplog, paused):
    """Two requests that exclude each other come one after the other; neither is mixed."""
    other = toy_spec("mean", short_side=24)
    options = {"folder": folder_of(dataset), "load": ToyBackbone.load, "progress": False}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(extract, dataset, load=paused.load)
        wait_for(paused.reached.is_set)
        second = pool.submit(extract_features, items_of(dataset), other, **options)
        wait_for(lambda: "Other features are being extracted in" in caplog.text)
        paused.go_on.set()
        first.result(timeout=120)
        store = second.result(timeout=120)
    assert f" by {socket.gethostname()}-{os.getpid()}-" in caplog.text
    assert store.manifest.spec == other
    assert Counter(events())["run 1"] == NUM, "the first was completed"


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_worker_whose_file_was_removed_mixes_nothing_into_the_run_of_others(
    dataset, paused, monkeypatch, codec
):
    """It hangs, others do not wait for it, and when it goes on it begins again, after them."""
    other = toy_spec("mean", short_side=24)
    mine = toy_spec("slow", codec=codec)
    monkeypatch.setattr(paused, "left", {"fp16": 1, "int8": NUM + 2}[codec])  # codec fitted
    options = {"load": ToyBackbone.load, "shard_size": 2, "batch_size": 1, "progress": False}
    fresh = extract_features(items_of(dataset), mine, folder=dataset / "1", **options)
    options["folder"] = folder_of(dataset)
    with ThreadPoolExecutor(1) as pool:
        hanging = {**options, "load": paused.load}
        late = pool.submit(extract_features, items_of(dataset), mine, **hanging)
        wait_for(paused.reached.is_set)
        (file,) = (building_of(dataset) / "progress").glob("worker-*")
        file.unlink()
        store = extract_features(items_of(dataset), other, **options)
        before = files_of(store.folder)
        assert store.manifest.spec == other
        alone = extract_features(items_of(dataset), other, **{**options, "folder": dataset / "2"})
        assert before == files_of(alone.folder)
        paused.go_on.set()
        assert late.result(timeout=120).manifest.spec == mine
    assert files_of(folder_of(dataset)) == files_of(fresh.folder)
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.nightly
@pytest.mark.slow
def test_processes_killed_and_stopped_at_any_moment_end_with_the_same_bytes(
    dataset, python, expected
):
    """Two at a time; every other one is killed, the rest are stopped and return late."""
    draw = random.Random(0)
    stopped = []
    for round_ in range(8):
        if folder_of(dataset).exists():
            break
        workers = [python("-c", SCRIPT, str(dataset), "", F3RM_TEST_PATIENCE="1") for _ in range(2)]
        before = len(notes_of(dataset))
        wait_for(lambda seen=before: len(notes_of(dataset)) != seen or folder_of(dataset).exists())
        time.sleep(0.1 * draw.random())
        workers[0].send_signal(signal.SIGKILL)
        workers[1].send_signal(signal.SIGSTOP if round_ % 2 else signal.SIGKILL)
        stopped += workers[1:] if round_ % 2 else []
        workers[0].communicate(timeout=60)
        time.sleep(0.5)
        for worker in stopped:
            worker.send_signal(signal.SIGCONT)
    last = python("-c", SCRIPT, str(dataset), "", F3RM_TEST_PATIENCE="1")
    for worker in (*stopped, last):
        out, err = worker.communicate(timeout=120)
        assert (worker.returncode, out) == (0, f"{NUM}\n"), err
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


@pytest.mark.nightly
@pytest.mark.slow
def test_two_thousand_images_by_two_workers_equal_those_by_one(tmp_path):
    root = write_dataset(tmp_path / "scene", [(48, 64), (64, 48)] * 1000)
    job = Job(items_of(root), toy_spec(), root / "two", device="cpu", shard_size=16, progress=False)
    run_with(job, workers=2, load=ToyBackbone.load)
    alone = run_with(replace(job, folder=root / "one"), load=ToyBackbone.load)
    assert len(alone) == 2000
    assert files_of(root / "two") == files_of(root / "one")
