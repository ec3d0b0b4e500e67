"""Makes one cache in one folder: existing chunks are kept, the manifest comes last."""

import io
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from f3rm._types import CacheError
from f3rm.features.chunks import Rows, check_chunk, verify_chunk, write_atomically, write_chunk
from f3rm.features.folders import META, remove_leftovers
from f3rm.features.journal import JOURNAL, Journal
from f3rm.features.manifest import MANIFEST, Manifest, read_manifest
from f3rm.features.plan import ChunkPlan, recorded_inputs
from f3rm.features.records import ChunkRecord
from f3rm.features.spec import StoredDtype


class CacheWriter:
    """Collects the chunks of a cache in a folder; after an interruption a new one goes on."""

    def __init__(
        self, folder: Path, key: str, *, fresh: bool, previous: Path | None = None
    ) -> None:
        """Opens the folder and its journal.

        Args:
            folder: Where the cache is built; made if missing.
            key: Hash of the specification.
            fresh: Whether chunks of an older cache may not be used (``--force``).
            previous: An older cache whose chunks are used where specification and images agree.

        Raises:
            CacheError: If the folder cannot be written to.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = (
                f"CacheWriter: folder must be writable, got {str(folder)!r}: {error}. Pass "
                "--cache-dir."
            )
            raise CacheError(msg) from error
        self._journal = Journal(folder, key, fresh=fresh)
        self._previous = previous
        self._older = _chunks_of(previous, key) if previous and not fresh else {}

    def find(self, plan: ChunkPlan, channels: int) -> ChunkRecord | None:
        """Returns the record of a chunk that exists, bringing it over from the older cache.

        What is found is compared with its checksum, so that nothing half-written or replaced is
        taken for it.

        Args:
            plan: The chunk.
            channels: Feature channels C.
        """
        inputs = plan.inputs
        shape = (len(plan.images), *plan.grid, channels)
        record = self._journal.find(inputs)
        usable = record is not None and (record.file, record.shape) == (plan.file, shape)
        if record and usable and _is_sound(self.folder, record):
            return record
        older = self._older.get(inputs)
        if older and older.shape == shape and _is_sound(self._previous, older):
            self._bring(older, plan.file)
            return replace(older, file=plan.file)
        return None

    def write(
        self,
        plan: ChunkPlan,
        parts: Iterable[Rows],
        *,
        channels: int,
        dtype: StoredDtype,
    ) -> ChunkRecord:
        """Writes a chunk; :meth:`note` makes it count.

        Args:
            plan: The chunk.
            parts: Its rows.
            channels: Feature channels C.
            dtype: Type on disk.

        Raises:
            CacheError: If the file system refuses.
        """
        shape = (len(plan.images), *plan.grid, channels)
        written = write_chunk(self.folder / plan.file, shape, dtype, parts)
        names = tuple(info.item.name for info in plan.images)
        return ChunkRecord(plan.file, written.bytes, shape, dtype, written.checksum, 0.0, names)

    def note(self, plan: ChunkPlan, record: ChunkRecord) -> None:
        """Enters a written chunk into the journal.

        Raises:
            CacheError: If the file system refuses.
        """
        self._journal.add(plan.inputs, record)

    def commit(self, manifest: Manifest) -> None:
        """Checks that every chunk is there, writes the manifest, and removes what it does not name.

        Raises:
            CacheMismatchError: If a chunk is not what was written.
            CacheError: If the file system refuses.
        """
        for chunk in manifest.chunks:
            check_chunk(self.folder, chunk)
        meta = _meta(manifest)
        text = manifest.to_json().encode()
        write_atomically(self.folder / META, lambda stream: stream.write(meta))
        write_atomically(self.folder / MANIFEST, lambda stream: stream.write(text))
        (self.folder / JOURNAL).unlink(missing_ok=True)
        remove_leftovers(self.folder, keep=tuple(chunk.file for chunk in manifest.chunks))

    def _bring(self, record: ChunkRecord, file: str) -> None:
        """Links a chunk of the older cache into this one, or copies it where links do not work."""
        if self._previous is None:
            return
        source, target = self._previous / record.file, self.folder / file
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            write_atomically(target, lambda stream: _copy(source, stream))


def _is_sound(folder: Path | None, record: ChunkRecord) -> bool:
    if folder is None:
        return False
    try:
        verify_chunk(folder, record)
    except CacheError:
        return False
    return True


def _copy(source: Path, stream: BinaryIO) -> None:
    with source.open("rb") as original:
        shutil.copyfileobj(original, stream)


def _chunks_of(folder: Path, key: str) -> dict[str, ChunkRecord]:
    """Returns the chunks of a finished cache by their inputs; none if the key is another."""
    try:
        manifest = read_manifest(folder)
    except CacheError:
        return {}
    if manifest.key != key:
        return {}
    images = {image.name: image for image in manifest.images}
    return {
        recorded_inputs([images[name] for name in chunk.images]): chunk for chunk in manifest.chunks
    }


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
    buffer = io.BytesIO()
    torch.save({"args": args, "image_fnames": [image.name for image in manifest.images]}, buffer)
    return buffer.getvalue()
