"""One worker's part in making a cache: chunks that it finds, claims, writes; the manifest last.

Any number of workers may have a :class:`CacheWriter` on the same folder.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from f3rm.errors import CacheError
from f3rm.extract.locks.chunk_reuse import (
    CODEC,
    chunks_of,
    is_sound,
    link,
    move,
    noted_codec,
    unfinished_chunks,
)
from f3rm.extract.locks.folders import (
    META,
    building_folder,
    end_run,
    older_folders,
    remove_leftovers,
    remove_run,
    swap_in,
)
from f3rm.extract.locks.heartbeat import Claims, Watch, Worker
from f3rm.extract.locks.journal import Journal, Run
from f3rm.extract.plan import ChunkPlan
from f3rm.store.chunks import (
    Rows,
    check_chunk,
    publish,
    verify_chunk,
    write_atomically,
    write_chunk,
)
from f3rm.store.codecs import CodecRecord, CodedDtype
from f3rm.store.manifest import MANIFEST, Manifest
from f3rm.store.records import ChunkRecord


class CacheWriter:
    """The chunks of a cache in the making, as one worker sees and makes them.

    Attributes:
        building: Where the cache is made.
        folder: Where it will be.
        run: What is being made.
        channels: Stored channels.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        channels: int,
        worker: Worker,
        watch: Watch,
    ) -> None:
        """Looks for chunks that can be used again.

        Args:
            folder: Where the cache will be; chunks of a finished one there are used where
                specification and images agree, unless the run is a fresh one. The journal beside it
                has begun.
            run: What is being made.
            channels: Stored channels.
            worker: Who works.
            watch: Tells who else is alive.
        """
        self.building = building_folder(folder)
        self.folder = folder
        self.run = run
        self.channels = channels
        self._worker = worker
        self._journal = Journal(self.building)
        self._claims = Claims(self._journal.folder, worker.name, watch)
        self._older = unfinished_chunks(folder, run)
        self._previous = {} if run.fresh else chunks_of(folder, run.key)

    def is_over(self) -> bool:
        """Returns whether the run has ended: its cache is complete, or it was given up."""
        current = self._journal.run()
        return current is None or current.token != self.run.token

    def is_at_hand(self, plan: ChunkPlan) -> bool:
        """Returns whether a chunk is done, or was by an earlier run and needs only be checked."""
        known = plan.inputs in self._older or plan.inputs in self._previous
        return known or self.find(plan) is not None

    def find(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Returns the record of a chunk that some worker has finished."""
        record = self._journal.find(plan)
        if record is None:
            return None
        try:
            check_chunk(self.building, record)
        except CacheError:
            return None
        return record

    def claim(self, plan: ChunkPlan) -> bool:
        """Claims a chunk, unless a living worker has; returns whether it is this worker's.

        Raises:
            CacheError: If the file system refuses.
        """
        return self._claims.take(Path(plan.file).stem)

    def claim_codec(self) -> bool:
        """Claims settling the codec; returns whether it is this worker's.

        Raises:
            CacheError: If the file system refuses.
        """
        return self._claims.take(CODEC)

    def codec(self) -> CodecRecord | None:
        """Returns the codec of the run; None if no worker has settled it yet."""
        return noted_codec(self._journal)

    def note_codec(self, record: CodecRecord) -> None:
        """Notes the codec for all workers of the run.

        Raises:
            CacheError: If the file system refuses.
        """
        self._journal.add_other(CODEC, asdict(record))

    def adopt(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Brings a claimed chunk over from an interrupted run or an older cache, and notes it.

        It is compared with its checksum, so that nothing half-written or replaced is taken for it.

        Args:
            plan: The chunk.

        Raises:
            CacheError: If the file system refuses.
        """
        for sources, bring in ((self._older, move), (self._previous, link)):
            source, record = sources.get(plan.inputs, (self.folder, None))
            if record and record.shape == self._shape(plan) and is_sound(source, record):
                bring(source / record.file, self.building / plan.file)
                record = replace(record, file=plan.file)
                self._journal.add(plan.inputs, record)
                return record
        return None

    def write(self, plan: ChunkPlan, parts: Iterable[Rows], *, dtype: CodedDtype) -> ChunkRecord:
        """Writes a claimed chunk beside its final name; :meth:`publish` makes it count.

        Args:
            plan: The chunk.
            parts: Its rows; may compute while it is consumed.
            dtype: Type on disk.

        Raises:
            CacheError: If the file system refuses.
        """
        shape = self._shape(plan)
        written = write_chunk(self._part(plan), shape, dtype, parts)
        names = tuple(info.item.name for info in plan.images)
        return ChunkRecord(plan.file, written.bytes, shape, dtype, written.checksum, 0.0, names)

    def publish(self, plan: ChunkPlan, record: ChunkRecord) -> None:
        """Gives a written chunk its name and notes it; what another worker finished first stays.

        Raises:
            CacheError: If the file system refuses, or others took this worker for dead meanwhile.
        """
        part = self._part(plan)
        try:
            if not self._worker.is_known():
                raise CacheError(_taken_for_dead(self.building))
            if self.find(plan) is None:
                publish(part, self.building / plan.file)
                self._journal.add(plan.inputs, record)
        finally:
            part.unlink(missing_ok=True)

    def commit(self, manifest: Manifest) -> None:
        """Writes the manifest, removes what it does not name, and puts the cache in its place.

        To be called by one worker, with the feature lock held.

        Raises:
            CacheMismatchError: If a chunk is not what was written.
            CacheError: If the file system refuses.
        """
        for chunk in manifest.chunks:
            taken_over = self._claims.is_contested(Path(chunk.file).stem)
            (verify_chunk if taken_over else check_chunk)(self.building, chunk)
        write_manifest(self.building, manifest)
        end_run(self.building)
        swap_in(self.building, self.folder)
        for folder in older_folders(self.folder):
            remove_run(folder)

    def _shape(self, plan: ChunkPlan) -> tuple[int, int, int, int]:
        return (len(plan.images), *plan.grid, self.channels)

    def _part(self, plan: ChunkPlan) -> Path:
        return self.building / f"{plan.file}.{self._worker.name}.tmp"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``meta.pt`` and the manifest of a folder, and removes what they do not name.

    Raises:
        CacheError: If the file system refuses.
    """
    meta, text = _meta(manifest), manifest.to_json().encode()
    write_atomically(folder / META, lambda stream: stream.write(meta))
    write_atomically(folder / MANIFEST, lambda stream: stream.write(text))
    remove_leftovers(folder, keep=manifest.files)


def _taken_for_dead(building: Path) -> str:
    return (
        f"CacheWriter: this worker must be known in {str(building)!r}, but others took it for dead "
        "or finished without it. Run the same command again to go on."
    )


def _meta(manifest: Manifest) -> bytes:
    """Returns the bytes of ``meta.pt``: plain values for other programs; f3rm never reads it."""
    spec = manifest.spec
    args = {
        "feature_type": spec.name,
        "adapter": spec.backbone.adapter,
        "model": spec.backbone.model,
        "weights": spec.backbone.weights,
        "tap": spec.tap,
        "short_side": spec.short_side,
        "channels": manifest.channels,
        "key": manifest.key,
    }
    record = {"args": args, "image_fnames": [image.name for image in manifest.images]}
    buffer = io.BytesIO()
    # Through JSON, so that the pickle does not depend on which texts are one object in memory.
    torch.save(json.loads(json.dumps(record)), buffer)
    return buffer.getvalue()
