"""Chunks and codecs of older caches, finished or interrupted, that a new run can use again."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from f3rm.errors import CacheError
from f3rm.extract.locks.journal import Journal, Run
from f3rm.extract.plan import recorded_inputs
from f3rm.store.chunks import verify_chunk, write_atomically
from f3rm.store.manifest import ChunkRecord, CodecRecord, Manifest, read_manifest

Sources = dict[str, tuple[Path, ChunkRecord]]
"""Inputs of a chunk -> the folder it is in and its record."""


def finished_chunks(folder: Path, run: Run) -> Sources:
    """Returns the chunks of the finished cache in ``folder`` that ``run`` may use, by inputs."""
    manifest = _usable_manifest(folder, run)
    if manifest is None:
        return {}
    images = {image.name: image for image in manifest.images}
    found: Sources = {}
    for chunk in manifest.chunks:
        recorded = [images[name] for name in chunk.images]
        found[recorded_inputs(recorded, manifest.codec.hash)] = folder, chunk
    return found


def unfinished_chunks(unfinished: Sequence[Path], run: Run) -> Sources:
    """Returns the chunks that interrupted runs finished and that ``run`` may use, by inputs.

    Args:
        unfinished: Folders of interrupted runs, the newest first.
        run: The new run.
    """
    found: Sources = {}
    for folder, journal in reversed(_suppliers(unfinished, run)):  # the newest overwrites older
        found.update((inputs, (folder, record)) for inputs, record in journal.notes())
    return found


def older_codecs(
    folder: Path, unfinished: Sequence[Path], run: Run
) -> Iterator[tuple[Path, CodecRecord]]:
    """Yields folder and record of codecs that ``run`` may keep, the preferred one first.

    Args:
        folder: The cache folder.
        unfinished: Folders of interrupted runs, the newest first.
        run: The new run.
    """
    for older, journal in _suppliers(unfinished, run):
        if record := journal.codec():
            yield older, record
    manifest = _usable_manifest(folder, run)
    if manifest is not None:
        yield folder, manifest.codec


def is_sound(folder: Path, record: ChunkRecord) -> bool:
    """Returns whether a chunk's content has the recorded checksum."""
    try:
        verify_chunk(folder, record)
    except (CacheError, OSError):  # the latter: it has just been removed with a finished run
        return False
    return True


def link(source: Path, target: Path) -> None:
    """Links a chunk of an older cache into a run, or copies it where links do not work.

    It is not moved: a finished cache stays valid until the new one is complete, and a process that
    dies before the chunk is recorded loses nothing.

    Raises:
        CacheError: If the file system refuses.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_atomically(target, lambda stream: _copy(source, stream))


def _copy(source: Path, stream: BinaryIO) -> None:
    with source.open("rb") as original:
        shutil.copyfileobj(original, stream)


def _suppliers(unfinished: Sequence[Path], run: Run) -> list[tuple[Path, Journal]]:
    """Returns the interrupted runs whose chunks ``run`` may use."""
    journals = [(folder, Journal(folder)) for folder in unfinished]
    return [
        (folder, journal)
        for folder, journal in journals
        if (older := journal.run()) and older.can_supply(run)
    ]


def _usable_manifest(folder: Path, run: Run) -> Manifest | None:
    """Returns the manifest of the finished cache if ``run`` may use its chunks and codec."""
    try:
        manifest = None if run.fresh else read_manifest(folder)
    except CacheError:
        return None
    return manifest if manifest and manifest.key == run.key else None
