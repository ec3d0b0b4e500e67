"""Chunks made in three overlapping stages: decode ahead, compute, write behind.

Threads decode and resize a few images ahead; the calling thread runs the network; one thread
writes. The queues between the stages are bounded, so memory does not grow with the dataset.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby, islice
from queue import Full, Queue

import torch
from torch import Tensor

from f3rm.extract.encoder import Encoder, StoredRows, check_finite
from f3rm.extract.plan import ChunkPlan
from f3rm.extract.writer import CacheWriter
from f3rm.store.chunks import Rows
from f3rm.store.codecs import CodedDtype, cosine_error
from f3rm.store.images import ImageInfo, prefetched
from f3rm.store.layout import Shapes
from f3rm.store.manifest import ChunkRecord

_WAITING_BATCHES = 2
_WAITING_CHUNKS = 2
_POLL_SECONDS = 0.1

Report = Callable[[int], object]
"""Called with the number of images that went through the network."""


class HalfOverflowError(Exception):
    """Features exceed what float16 can hold; the chunk must be made again as float32."""


class StoppedError(Exception):
    """The calling thread gave a chunk up; its writer stops."""


def make_chunks(
    plans: Iterable[ChunkPlan],
    encoder: Encoder,
    writer: CacheWriter,
    *,
    dtype: CodedDtype,
    ahead: int,
    report: Report,
) -> Generator[tuple[ChunkPlan, ChunkRecord | None]]:
    """Computes, writes and publishes chunks.

    Args:
        plans: The chunks; the next one is asked for while the one before is computed.
        encoder: Computes the rows.
        writer: Writes them.
        dtype: Type on disk.
        ahead: How many decoded images may wait.
        report: Called after every batch.

    Yields:
        Every chunk with its record; without one if float16 could not hold its features.

    Raises:
        ImageError: If an image cannot be read, or the backbone gives NaN or infinity for it.
        DeviceError: If not even one image fits into memory.
        CacheError: If the file system refuses.
    """

    def read(planned: tuple[ChunkPlan, ImageInfo]) -> tuple[ChunkPlan, Tensor]:
        return planned[0], encoder.read(*planned)

    planned = ((plan, info) for plan in plans for info in plan.images)
    writing: deque[_Writing] = deque()
    with (
        ThreadPoolExecutor(1, "f3rm-write") as pool,
        closing(prefetched(read, planned, ahead=ahead)) as inputs,
    ):
        try:
            # A chunk's images follow one another, as prefetched() keeps their order.
            for plan, group in groupby(inputs, key=lambda item: item[0]):
                if len(writing) == _WAITING_CHUNKS:
                    yield writing.popleft().result()
                taps = encoder.layout(plan.kind).shapes
                writing.append(_Writing(pool, plan, writer, dtype, taps))
                _compute(writing[-1], (image for _, image in group), encoder, report)
            while writing:
                yield writing.popleft().result()
        finally:
            # Before the pool is left: it waits for its thread, which waits for rows.
            for unfinished in writing:
                unfinished.stop()


def _compute(
    writing: "_Writing", inputs: Iterator[Tensor], encoder: Encoder, report: Report
) -> None:
    """Sends a chunk's images through the network and its rows to the writing thread."""
    size = encoder.batch_size(writing.plan.kind)
    while batch := list(islice(inputs, size)):
        for stored in encoder.stored(batch, writing.plan, writing.dtype):
            if not writing.put(stored):
                return
        report(len(batch))
    writing.put(None)


class _Writing:
    """One chunk on its way to the disk: the caller puts rows in, a thread writes them.

    Attributes:
        plan: The chunk.
        dtype: Type on disk.
    """

    def __init__(
        self, pool: Executor, plan: ChunkPlan, writer: CacheWriter, dtype: CodedDtype, taps: Shapes
    ) -> None:
        """Queues the chunk for the writing thread."""
        self.plan = plan
        self.dtype: CodedDtype = dtype
        self._taps = taps
        self._codec_error = 0.0
        self._samples: list[Tensor] = []
        self._queue: Queue[StoredRows | StoppedError | None] = Queue(_WAITING_BATCHES)
        self._future: Future[ChunkRecord] = pool.submit(self._write, writer)

    def put(self, item: StoredRows | StoppedError | None) -> bool:
        """Hands rows over, None after the last ones; returns False if the writer has failed."""
        # Not one blocking put: a writer that has failed no longer empties the queue.
        while not self._future.done():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False

    def stop(self) -> None:
        """Gives the chunk up; nothing of it stays on the disk."""
        if not self._future.cancel():
            self.put(StoppedError())

    def result(self) -> tuple[ChunkPlan, ChunkRecord | None]:
        """Waits for the writing thread and raises its errors; see :func:`make_chunks`."""
        try:
            return self.plan, self._future.result()
        except HalfOverflowError:
            return self.plan, None

    def _write(self, writer: CacheWriter) -> ChunkRecord:
        record = writer.write(self.plan, self._rows(), dtype=self.dtype, taps=self._taps)
        original, decoded = torch.cat(self._samples, dim=1)
        error = cosine_error(original, decoded)
        record = replace(record, codec_error=self._codec_error, cosine_error=error)
        return writer.publish(self.plan, record)

    def _rows(self) -> Iterator[Rows]:
        start = 0
        while (item := self._queue.get()) is not None:
            if isinstance(item, StoppedError):
                raise item
            stored = item.wait()
            end = start + len(stored.rows)
            check_finite(stored.finite, self.plan.images[start:end])
            if not stored.fits:
                raise HalfOverflowError
            self._samples.append(stored.sample)
            self._codec_error = max(self._codec_error, float(stored.error))
            yield stored.rows.numpy()
            start = end
