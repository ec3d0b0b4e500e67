"""What an older cache, finished or interrupted, leaves to a new one: chunks and a codec."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from f3rm.errors import CacheError
from f3rm.extract.locks.folders import older_folders
from f3rm.extract.locks.journal import Journal, Run
from f3rm.extract.plan import recorded_inputs
from f3rm.store import json_fields as fields
from f3rm.store.chunks import verify_chunk, write_atomically
from f3rm.store.codecs import CodecRecord
from f3rm.store.manifest import Manifest, read_manifest
from f3rm.store.records import ChunkRecord, codec_of

CODEC = "codec"
"""Name of the note, and of the claim, of a run's codec."""

Sources = dict[str, tuple[Path, ChunkRecord]]
"""Inputs of a chunk -> the folder it is in and its record."""


def manifest_with(folder: Path, key: str) -> Manifest | None:
    """Returns the manifest of a finished cache if it has this key."""
    try:
        manifest = read_manifest(folder)
    except CacheError:
        return None
    return manifest if manifest.key == key else None


def chunks_of(folder: Path, key: str) -> Sources:
    """Returns folder and record of a finished cache's chunks by inputs; none if the key differs."""
    manifest = manifest_with(folder, key)
    if manifest is None:
        return {}
    images = {image.name: image for image in manifest.images}
    return {
        recorded_inputs([images[name] for name in chunk.images], manifest.codec_hash): (
            folder,
            chunk,
        )
        for chunk in manifest.chunks
    }


def unfinished_chunks(folder: Path, run: Run) -> Sources:
    """Returns the chunks that interrupted runs finished and that ``run`` may use.

    Args:
        folder: The cache folder, beside which they lie.
        run: What is being made.
    """
    found: Sources = {}
    for older in reversed(older_folders(folder)):
        journal = Journal(older)
        older_run = journal.run()
        if older_run and older_run.feeds(run):
            found.update((inputs, (older, record)) for inputs, record in journal.notes())
    return found


def older_codecs(folder: Path, run: Run) -> Iterator[tuple[Path, CodecRecord]]:
    """Yields the codecs of interrupted runs, and of the finished cache, that ``run`` may keep.

    Args:
        folder: The cache folder.
        run: What is being made.
    """
    for older in older_folders(folder):
        journal = Journal(older)
        left, record = journal.run(), noted_codec(journal)
        if record and left and left.feeds(run):
            yield older, record
    manifest = None if run.fresh else manifest_with(folder, run.key)
    if manifest is not None:
        yield folder, manifest.codec


def noted_codec(journal: Journal) -> CodecRecord | None:
    """Returns the codec of an unfinished run; None if it has not been settled."""
    try:
        return codec_of(json.loads(journal.other(CODEC)))
    except (ValueError, RecursionError, fields.InvalidFieldError):
        return None


def is_sound(folder: Path, record: ChunkRecord) -> bool:
    """Returns whether a chunk is the recorded one, by its checksum."""
    try:
        verify_chunk(folder, record)
    except CacheError:
        return False
    return True


def move(source: Path, target: Path) -> None:
    """Renames a chunk of an interrupted run into this one.

    Raises:
        CacheError: If the file system refuses.
    """
    try:
        source.replace(target)
    except OSError as error:
        raise CacheError(_unmoved(source, target, error)) from error


def link(source: Path, target: Path) -> None:
    """Links a chunk of the older cache into this one, or copies it where links do not work.

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


def _unmoved(source: Path, target: Path, error: OSError) -> str:
    return (
        f"CacheWriter: {str(source)!r} must be renamed to {str(target)!r}, got: {error}. Close "
        "what uses these folders and run again."
    )
