"""The three stages of making chunks: their order, their bounds, and what ends them."""

import threading
import time
from collections.abc import Generator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from f3rm.errors import CacheError, ImageError
from f3rm.extract.encoder import Encoder, StoredRows
from f3rm.extract.pipeline import StoppedError, make_chunks
from f3rm.extract.plan import ChunkPlan, InputKind
from f3rm.extract.writer import CacheWriter
from f3rm.store.images import ImageInfo
from f3rm.store.items import ImageItem
from f3rm.store.layout import Layout
from f3rm.store.manifest import ChunkRecord

BATCH, AHEAD = 2, 4
KIND = InputKind((1, 1), (1, 1))


class Counting(Encoder):
    """Rows that hold the number of their image; counts what is under way."""

    def __init__(self, *, broken: int = -1, arrival: torch.cuda.Event | None = None) -> None:
        self.broken, self.arrival = broken, arrival
        self.read_count = self.batches = 0
        self.lock = threading.Lock()

    def batch_size(self, kind):
        return BATCH

    def layout(self, kind):
        return Layout({"final": (1, 1, 1)}, 1)

    def read(self, plan, info):
        number = int(info.item.name)
        time.sleep(0.002 * (number % 3 == 0))  # the next ones overtake it
        with self.lock:
            self.read_count += 1
        if number == self.broken:
            raise ImageError(f"image {number} has changed")
        return torch.tensor([float(number)])

    def stored(self, inputs, plan, dtype):
        self.batches += 1
        rows = torch.stack(list(inputs))[:, :, None, None]
        sample = torch.ones(2, len(rows), 1)
        finite, fits = torch.ones(len(rows), dtype=torch.bool), torch.tensor(True)
        yield StoredRows(rows, finite, fits, torch.tensor(0.0), sample, self.arrival)


class Listing(CacheWriter):
    """Collects rows in place of writing them."""

    def __init__(self, encoder: Counting, *, full_at: int = -1) -> None:
        self.encoder, self.full_at = encoder, full_at
        self.waiting = 0
        self.rows: dict[str, list[float]] = {}
        self.published: list[str] = []
        self.stopped: list[str] = []

    def write(self, plan, parts, *, dtype, taps):
        rows = self.rows[plan.file] = []
        try:
            for part in parts:
                written = sum(map(len, self.rows.values()))
                self.waiting = max(self.waiting, self.encoder.read_count - written)
                time.sleep(0.002)
                rows.extend(np.asarray(part).ravel().tolist())
                if self.full_at in rows:
                    raise CacheError("the disk is full")
        except StoppedError:
            self.stopped.append(plan.file)
            raise
        names = tuple(info.item.name for info in plan.images)
        return ChunkRecord(plan.file, 999, (len(rows), 1, 1, 1), dtype, "", 0.0, names, dict(taps))

    def publish(self, plan, record):
        self.published.append(plan.file)
        return record


def planned(num: int, per_chunk: int = 5) -> list[ChunkPlan]:
    infos = [ImageInfo(ImageItem(str(i), Path(str(i))), 1, 1, "", (1, 1)) for i in range(num)]
    parts = [infos[start : start + per_chunk] for start in range(0, num, per_chunk)]
    return [ChunkPlan(f"{i}", KIND, (1, 1), tuple(part)) for i, part in enumerate(parts)]


def made(
    plans: list[ChunkPlan], encoder: Counting, writer: Listing
) -> Generator[tuple[ChunkPlan, ChunkRecord | None]]:
    return make_chunks(
        plans, encoder, writer, dtype="float32", ahead=AHEAD, report=lambda _number: None
    )


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("f3rm-write")]


def test_chunks_and_rows_keep_their_order():
    encoder, plans = Counting(), planned(23)
    writer = Listing(encoder)
    assert [plan for plan, _ in made(plans, encoder, writer)] == plans
    assert writer.published == [plan.file for plan in plans]
    assert [row for rows in writer.rows.values() for row in rows] == list(range(23))


@pytest.mark.parametrize("num", [40, 120])
def test_what_is_under_way_does_not_grow_with_the_images(num):
    encoder = Counting()
    writer = Listing(encoder)
    for _ in made(planned(num), encoder, writer):
        pass
    # Decoded ahead; and for each of two chunks two batches in its queue, one before and one after.
    assert BATCH < writer.waiting <= AHEAD + 1 + 2 * 4 * BATCH


def test_the_network_goes_on_while_rows_are_on_their_way():
    """A GPU computes the second batch while the first is copied."""
    arrival, second = MagicMock(spec=torch.cuda.Event), threading.Event()

    class Submitting(Counting):
        def stored(self, inputs, plan, dtype):
            yield from super().stored(inputs, plan, dtype)
            if self.batches == 2:
                second.set()

    arrival.synchronize.side_effect = lambda: second.wait(timeout=60) or pytest.fail("it waited")
    encoder = Submitting(arrival=arrival)
    writer = Listing(encoder)
    assert len(list(made(planned(5), encoder, writer))) == 1
    assert writer.rows == {"0": [0, 1, 2, 3, 4]}


def test_an_image_that_fails_ends_it_and_its_chunk_is_not_published():
    encoder = Counting(broken=12)
    writer = Listing(encoder)
    with pytest.raises(ImageError, match="image 12 has changed"):
        list(made(planned(50), encoder, writer))
    assert set(writer.published) <= {"0", "1"}
    assert "2" not in writer.published
    assert encoder.read_count <= 12 + AHEAD + 3


def test_a_writer_that_fails_ends_it_and_the_network_stops():
    encoder = Counting()
    writer = Listing(encoder, full_at=7)
    with pytest.raises(CacheError, match="the disk is full"):
        list(made(planned(200), encoder, writer))
    assert set(writer.published) <= {"0", "2"}, "the next chunk may be complete"
    assert encoder.batches <= 12


def test_whoever_wants_no_more_chunks_leaves_nothing_running():
    encoder = Counting()
    writer = Listing(encoder)
    chunks = made(planned(200), encoder, writer)
    assert next(chunks)[0].file == "0"
    chunks.close()
    assert set(writer.rows) == {*writer.published, *writer.stopped}
    assert encoder.batches <= 12
