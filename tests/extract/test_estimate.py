"""The costs of a run are logged before it starts; a dry run prints them and writes nothing."""

import logging
import re

import pytest

from f3rm.errors import ImageError
from f3rm.extract.estimate import Countdown, duration
from f3rm.extract.extraction import preview_job
from f3rm.extract.job import Job
from f3rm.scripts import cli
from tests.extract.interrupted import StopError, stop_before
from tests.extract.toy import (
    ToyBackbone,
    extract,
    files_of,
    folder_of,
    items_of,
    never,
    toy_spec,
)

CHUNK_BYTES = 4096 + 2 * 8 * 11 * 3 * 2
"""Two images of 8 x 11 cells with 3 channels in float16."""
LAST_BYTES = 4096 + 8 * 11 * 3 * 2


def job(root, **changes) -> Job:
    settings = {"shard_size": 2, "device": "cpu", "progress": False, **changes}
    return Job(items_of(root), toy_spec(), folder_of(root), **settings)


def test_a_dry_run_counts_and_writes_nothing(dataset, events):
    before = files_of(dataset)
    costs = preview_job(job(dataset), ToyBackbone.load)
    assert (costs.num_images, costs.new_images) == (5, 5)
    assert (costs.num_chunks, costs.new_chunks) == (3, 3)
    assert costs.bytes_needed == 2 * CHUNK_BYTES + LAST_BYTES
    assert costs.bytes_free > costs.bytes_needed
    assert costs.seconds is not None
    assert 0 < costs.seconds < 10
    assert events() == ["load", "run 2", "run 2"], "one batch to warm up, one to time"
    assert files_of(dataset) == before
    assert not (dataset / "features").exists()


def test_the_bytes_are_those_that_are_written(dataset):
    costs = preview_job(job(dataset), ToyBackbone.load)
    assert costs.bytes_needed == extract(dataset).num_bytes


def test_what_is_there_is_not_counted_as_new(dataset, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before(patch, "chunk_0001.npy")
        with pytest.raises(StopError):
            extract(dataset)
    costs = preview_job(job(dataset), ToyBackbone.load)
    assert costs.new_chunks < 3
    extract(dataset)
    costs = preview_job(job(dataset), never)
    assert (costs.new_chunks, costs.new_images, costs.bytes_needed) == (0, 0, 0)
    costs = preview_job(job(dataset, force=True), ToyBackbone.load)
    assert costs.new_chunks == 3


def test_a_dry_run_fails_as_the_run_would(dataset):
    (dataset / "images/2.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"images/2\.png"):
        preview_job(job(dataset), ToyBackbone.load)
    costs = preview_job(job(dataset, on_error="record"), ToyBackbone.load)
    assert costs.num_images == 4


def test_the_run_says_its_costs_and_its_time(dataset, caplog):
    with caplog.at_level(logging.INFO):
        extract(dataset, batch_size=1)
    text = caplog.text
    assert "toy: 5 of 5 images to compute on cpu, 3 of 3 chunks to write, 0.0 MB needed" in text
    assert re.search(r"About \d+ s for the 3 images left\.", text)


def test_the_command_prints_one_line(dataset, toy_plugin, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(toy_plugin))
    words = ["extract", "--data", str(dataset), "--feature-type", "toy", "--device", "cpu"]
    assert cli.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toy: 5 of 5 images to compute on cpu, 1 of 1 chunks to write, ")
    assert "about 0 s" in out
    assert not (dataset / "features").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.0, "89 s"), (240.0, "4 min"), (7200.0, "2.0 h")]
)
def test_times_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_the_countdown_leaves_out_the_first_batch(caplog):
    countdown = Countdown(9)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            countdown.advance(3)
    (record,) = caplog.records
    assert record.getMessage().endswith("for the 3 images left.")
