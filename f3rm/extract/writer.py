"""One worker's view of a cache being made: finding, locking and writing chunks, then the manifest.

Any number of workers may have a :class:`CacheWriter` on the same folder.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from f3rm.errors import CacheError
from f3rm.extract.locks.chunk_reuse import finished_chunks, is_sound, link, unfinished_chunks
from f3rm.extract.locks.file_locks import WorkerLocks
from f3rm.extract.locks.folders import (
    META,
    building_folder,
    end_run,
    feature_lock,
    older_folders,
    remove_leftovers,
    remove_run,
    swap_in,
)
from f3rm.extract.locks.journal import Journal, Run
from f3rm.extract.plan import ChunkPlan
from f3rm.store.chunks import (
    Rows,
    check_chunk,
    publish,
    write_atomically,
    write_chunk,
)
from f3rm.store.codec_files import write_codec
from f3rm.store.codecs import Codec, CodedDtype
from f3rm.store.layout import Shapes
from f3rm.store.manifest import MANIFEST, ChunkRecord, CodecRecord, Manifest


class CacheWriter:
    """The chunks of an unfinished cache, as one worker finds and makes them.

    Attributes:
        building: The folder in which the cache is built.
        folder: The cache folder.
        run: The run that this worker has joined.
        journal: The run's journal.
        locks: This worker's locks.
        channels: Stored channels.
    """

    def __init__(self, folder: Path, run: Run, *, channels: int, locks: WorkerLocks) -> None:
        """Lists the chunks of older caches that can be reused.

        Args:
            folder: The cache folder. The journal beside it has begun.
            run: The run that this worker has joined.
            channels: Stored channels.
            locks: This worker's.
        """
        self.building = building_folder(folder)
        self.folder = folder
        self.run = run
        self.journal = Journal(self.building)
        self.channels = channels
        self.locks = locks
        self._older = unfinished_chunks(older_folders(folder), run)
        self._previous = finished_chunks(folder, run)

    def is_available(self, plan: ChunkPlan) -> bool:
        """Returns whether a chunk is finished in this run or an older one: nothing to compute."""
        known = plan.inputs in self._older or plan.inputs in self._previous
        return known or self.find(plan) is not None

    def find(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Returns the record of a chunk that some worker of this run has finished."""
        record = self.journal.find(plan)
        if record is None:
            return None
        try:
            check_chunk(self.building, record)
        except CacheError:
            return None
        return record

    def reuse(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Brings a chunk over from an interrupted run or an older cache, and records it.

        Its checksum is verified first, so that a damaged file is computed anew.

        Args:
            plan: The chunk.

        Raises:
            CacheError: If the file system refuses.
        """
        for sources in (self._older, self._previous):
            source, record = sources.get(plan.inputs, (self.folder, None))
            if record and record.shape == self._shape(plan) and is_sound(source, record):
                link(source / record.file, self._part(plan))
                return self.publish(plan, replace(record, file=plan.file))
        return None

    def write(
        self, plan: ChunkPlan, parts: Iterable[Rows], *, dtype: CodedDtype, taps: Shapes
    ) -> ChunkRecord:
        """Writes a chunk under a temporary name; :meth:`publish` makes it count.

        Args:
            plan: The chunk.
            parts: Its rows; an iterator may compute them while they are written.
            dtype: Type on disk.
            taps: Shapes of the taps' values.

        Raises:
            CacheError: If the file system refuses.
        """
        shape = self._shape(plan)
        written = write_chunk(self._part(plan), shape, dtype, parts)
        names = tuple(info.item.name for info in plan.images)
        return ChunkRecord(
            plan.file, written.bytes, shape, dtype, written.checksum, 0.0, names, dict(taps)
        )

    def publish(self, plan: ChunkPlan, record: ChunkRecord) -> ChunkRecord:
        """Renames a written chunk and records it, unless another worker finished it first.

        Returns:
            The record that counts, of this worker or of the other.

        Raises:
            CacheError: If the file system refuses, or the run has ended.
        """
        part = self._part(plan)
        try:
            draft = self.journal.draft(plan.inputs, record, self.locks.name)
            # Keeps file and record together. For a moment only: all workers wait for it, and if one
            # hangs with it, the others do.
            with feature_lock(self.folder):
                self.locks.check_membership()
                if found := self.find(plan):
                    return found
                publish(part, self.building / plan.file, sync=False)
                self.journal.add(draft)
                return record
        finally:
            part.unlink(missing_ok=True)

    def publish_codec(self, codec: Codec) -> None:
        """Writes the codec of the run, unless another worker has.

        Raises:
            CacheError: If the file system refuses, or the run has ended.
        """
        with feature_lock(self.folder):
            self.locks.check_membership()
            if self.journal.codec() is None:
                arrays = write_codec(self.building, codec)
                self.journal.add_codec(CodecRecord(codec.spec.name, arrays))

    def commit(self, manifest: Manifest) -> None:
        """Writes the manifest, removes files that it does not name, and replaces the older cache.

        Call it from one worker, with the feature lock held.

        Raises:
            CacheMismatchError: If a chunk file is not as recorded.
            CacheError: If the file system refuses.
        """
        for chunk in manifest.chunks:
            check_chunk(self.building, chunk)
        # In this order: a process that dies after end_run has left a complete cache, which the next
        # one swaps in (finish_swap), and nothing else.
        write_manifest(self.building, manifest)
        for folder in older_folders(self.folder):
            remove_run(folder)
        end_run(self.building)
        swap_in(self.building, self.folder)

    def _shape(self, plan: ChunkPlan) -> tuple[int, int, int, int]:
        return (len(plan.images), *plan.grid, self.channels)

    def _part(self, plan: ChunkPlan) -> Path:
        # With the worker's name: two workers may write one chunk if the first seems to hang.
        return self.building / f"{plan.file}.{self.locks.name}.tmp"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``meta.pt`` and the manifest of a folder, and removes files that they do not name.

    Raises:
        CacheError: If the file system refuses.
    """
    meta, text = _meta(manifest), manifest.to_json().encode()
    # The manifest comes last, as it makes the cache valid.
    write_atomically(folder / META, lambda stream: stream.write(meta))
    write_atomically(folder / MANIFEST, lambda stream: stream.write(text))
    remove_leftovers(folder, keep=manifest.files)


def _meta(manifest: Manifest) -> bytes:
    """Returns the bytes of ``meta.pt``: plain values for other programs; f3rm never reads it."""
    spec = manifest.spec
    args = {
        "feature_type": spec.name,
        "adapter": spec.backbone.adapter,
        "model": spec.backbone.model,
        "weights": spec.backbone.weights,
        "tap": spec.taps[0],
        "size": spec.prep.size,
        "channels": manifest.channels,
        "key": manifest.key,
    }
    record = {"args": args, "image_fnames": [image.name for image in manifest.images]}
    buffer = io.BytesIO()
    # Through JSON, so that the pickle does not depend on which texts are one object in memory.
    torch.save(json.loads(json.dumps(record)), buffer)
    return buffer.getvalue()
