"""Several workers on one cache: claims, processes that die, processes that share."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from f3rm.errors import CacheError
from f3rm.extract import membership
from f3rm.extract.extraction import extract_features
from f3rm.extract.locks import heartbeat
from f3rm.extract.locks.heartbeat import Claims, Heartbeat, Owner, Watch
from tests.extract.interrupted import SCRIPT, extract, wait_for
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


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "scene", [(24, 33)] * NUM)


def elsewhere(name: str) -> str:
    """The file of a worker on another machine."""
    return json.dumps({"machine": f"{name} 0 0", "pid": 1, "started": "1"})


def test_exactly_one_of_many_makes_a_claim(tmp_path):
    with Heartbeat(tmp_path) as worker:
        everyone = [Claims(tmp_path, worker.name, Watch(tmp_path)) for _ in range(8)]
        others = [Claims(tmp_path, f"{worker.name}-{i}", Watch(tmp_path)) for i in range(8)]
        for path in [f"worker-{worker.name}-{i}" for i in range(8)]:
            (tmp_path / path).write_text(json.dumps(Owner.here().__dict__))
        with ThreadPoolExecutor(8) as pool:
            for number in range(20):
                taken = pool.map(Claims.take, others, [f"chunk_{number}"] * len(others))
                assert sum(taken) == 1
        assert everyone[0].take("mine")
        assert everyone[1].take("mine"), "it is the same worker"
        assert not others[0].take("mine")


def test_the_claim_of_a_process_that_is_gone_is_taken_over_by_one(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(timeout=60)
    here = Owner.here()
    owner = {"machine": here.machine, "pid": dead.pid, "started": "12345"}
    (tmp_path / "worker-dead").write_text(json.dumps(owner))
    assert Claims(tmp_path, "other", Watch(tmp_path)).take("chunk")
    (tmp_path / "chunk.claim-1").write_text("dead")
    with Heartbeat(tmp_path) as worker:
        taken = [
            Claims(tmp_path, name, Watch(tmp_path)).take("chunk") for name in (worker.name, "")
        ]
        assert taken == [True, False]
        assert Claims(tmp_path, worker.name, Watch(tmp_path)).is_contested("chunk")


def test_a_process_number_that_was_given_out_again_is_another_process(tmp_path):
    owner = {**Owner.here().__dict__, "started": "1"}
    (tmp_path / "worker-old").write_text(json.dumps(owner))
    (tmp_path / "worker-now").write_text(json.dumps(Owner.here().__dict__))
    assert Watch(tmp_path).living() == ["now"]


def test_a_worker_elsewhere_lives_as_long_as_its_file_changes(tmp_path):
    path = tmp_path / "worker-far"
    path.write_text(elsewhere("far"))
    watch = Watch(tmp_path, silent_seconds=0.1)
    for clock in (10**9, 5, 4 * 10**18):  # clocks there may be wrong, and go back
        os.utime(path, ns=(clock, clock))
        assert watch.is_alive("far")
        time.sleep(0.05)
    time.sleep(0.1)
    assert not watch.is_alive("far")
    os.utime(path)
    assert watch.is_alive("far")
    path.unlink()
    assert not watch.is_alive("far")


def test_a_claim_without_a_name_counts_until_it_is_old(tmp_path):
    (tmp_path / "chunk.claim-1").touch()  # its maker died before the name was in it
    claim = Claims(tmp_path, "me", Watch(tmp_path, silent_seconds=0.05))
    assert not claim.take("chunk")
    time.sleep(0.1)
    assert claim.take("chunk")


def test_the_heartbeat_touches_the_file_and_ends_with_the_worker(tmp_path):
    with Heartbeat(tmp_path, beat_seconds=0.01) as worker:
        (path,) = tmp_path.glob("worker-*")
        os.utime(path, ns=(1, 1))
        wait_for(lambda: path.stat().st_mtime_ns > 1)
        assert worker.is_known()
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "f3rm-heartbeat"]


def test_two_processes_share_the_chunks(dataset, events, python, expected):
    processes = [python("-c", SCRIPT, str(dataset), "") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out for out, _ in outputs] == [f"{NUM}\n"] * 2
    assert Counter(events())["run 1"] == NUM, "no image is computed twice"
    assert files_of(folder_of(dataset)) == expected
    assert not list(folder_of(dataset).parent.glob("toy.*"))


def test_a_killed_worker_is_replaced_by_the_one_that_lives(dataset, events, python, expected):
    """The claim of the dead is taken over at once, and the result is the same to the bit."""
    processes = [python("-c", SCRIPT, str(dataset), "") for _ in range(2)]
    progress = building_of(dataset) / "progress"
    wait_for(lambda: len(list(progress.glob("worker-*"))) == 2 and len(notes_of(dataset)) >= 1)
    processes[0].send_signal(signal.SIGKILL)
    started = time.monotonic()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert time.monotonic() - started < heartbeat.SILENT_SECONDS / 4
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


def test_a_worker_on_a_machine_that_died_is_given_up_after_its_silence(
    dataset, events, expected, monkeypatch
):
    """Its claim is waited for, then taken over; nobody's clock is asked."""
    monkeypatch.setattr(membership, "SILENT_SECONDS", 0.3)

    class Joining(ToyBackbone):
        def encode_image(self, images):
            progress = building_of(dataset) / "progress"
            if not list(progress.glob("worker-far")):
                (progress / "worker-far").write_text(elsewhere("far"))
                (progress / "chunk_0005.claim-1").write_text("far")
            return super().encode_image(images)

    extract_features(
        items_of(dataset),
        toy_spec("slow"),
        folder=folder_of(dataset),
        shard_size=2,
        batch_size=1,
        load=Joining.load,
        progress=False,
    )
    assert Counter(events())["run 1"] == NUM
    assert files_of(folder_of(dataset)) == expected


def test_other_features_wait_for_those_being_made(dataset, events, caplog):
    """Two requests that exclude each other come one after the other; neither is mixed."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(extract, dataset)
        wait_for(lambda: len(notes_of(dataset)) >= 1)
        options = {"folder": folder_of(dataset), "load": ToyBackbone.load, "progress": False}
        other = toy_spec("mean", short_side=24)
        second = pool.submit(extract_features, items_of(dataset), other, **options)
        first.result(timeout=120)
        store = second.result(timeout=120)
    assert "Other features are being extracted in" in caplog.text
    assert store.manifest.spec == other
    assert Counter(events())["run 1"] == NUM, "the first was completed"


def test_a_worker_taken_for_dead_writes_nothing_more(dataset):
    class Forgotten(ToyBackbone):
        def encode_image(self, images):
            for path in (building_of(dataset) / "progress").glob("worker-*"):
                path.unlink()
            return super().encode_image(images)

    with pytest.raises(CacheError, match="took this one for dead, or finished without it"):
        extract_features(
            items_of(dataset),
            toy_spec(),
            folder=folder_of(dataset),
            load=Forgotten.load,
            progress=False,
        )
    assert not notes_of(dataset)
