"""Folders: where a cache is built, and how it replaces an older one.

A cache is built in the sibling ``<name>.building`` and renamed to ``<name>`` when it is complete:
an older cache stays valid until then. An interrupted run is put aside as ``<name>.older-N`` until
its chunks have been reused. A lock per feature type is held only while something is renamed, not
while it is computed.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from f3rm.errors import CacheError
from f3rm.extract.locks.file_locks import (
    PATIENCE_SECONDS,
    living,
    try_lock,
    unlock,
    unlockable,
)
from f3rm.extract.locks.journal import PROGRESS, Journal
from f3rm.store.chunks import sync_folder
from f3rm.store.manifest import MANIFEST

log = logging.getLogger(__name__)

META = "meta.pt"
"""For programs that read caches of f3rm's earlier extractor."""

_OVER = f"{PROGRESS}.over"

_POLL_SECONDS = 0.02

_LEFTOVERS = ("chunk_*.npy", "chunk_*.tmp", "codec_*.npy", "codec_*.tmp")
"""Patterns of f3rm's own files; all others are the user's and are never removed."""


def is_writable(folder: Path) -> bool:
    """Returns whether a folder can be written to, or created."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_writable(folder: Path) -> None:
    """Checks that a cache can be written to ``folder``, and built beside it.

    Raises:
        CacheError: If not.
    """
    if not (is_writable(folder) and is_writable(folder.parent)):
        msg = (
            f"Cannot write to {str(folder)!r}. Pass --cache-dir with a writable folder, or change "
            "the permissions."
        )
        raise CacheError(msg)


@contextmanager
def feature_lock(folder: Path) -> Generator[None]:
    """Holds the lock of a feature type, while files or folders are renamed.

    Raises:
        CacheError: If the lock file cannot be written, or its file system does not support locks.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unlockable(path, error) from error
    warn_at = time.monotonic() + PATIENCE_SECONDS
    while (lock := try_lock(path)) is None:
        if time.monotonic() > warn_at:
            warn_at = math.inf
            workers = ", ".join(living(building_folder(folder) / PROGRESS)) or "another process"
            log.warning("%s is locked by one of: %s. If it hangs, end it.", path, workers)
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        unlock(lock)


def building_folder(folder: Path) -> Path:
    """Returns where a new cache for ``folder`` is built."""
    return _sibling(folder, "building")


def older_folders(folder: Path) -> list[Path]:
    """Returns the folders of interrupted runs that were put aside, the newest first."""
    found = [path for path in folder.parent.glob(f"{folder.name}.older-*") if path.is_dir()]
    return sorted(found, key=_number, reverse=True)


def retire(folder: Path) -> None:
    """Puts an interrupted run aside; call it with the lock held and no worker alive.

    Raises:
        CacheError: If the file system refuses.
    """
    building = building_folder(folder)
    if not building.exists():
        return
    if next(Journal(building).notes(), None) is None:  # no chunk that could be reused
        remove_run(building)
        return
    number = 1 + max((_number(path) for path in older_folders(folder)), default=0)
    _rename(building, _sibling(folder, f"older-{number}"))


def end_run(building: Path) -> None:
    """Removes the journal of a complete cache, so that its workers see that the run has ended.

    It is renamed first: a journal that disappears file by file would look like another run.

    Raises:
        CacheError: If the file system refuses.
    """
    _rename(building / PROGRESS, building / _OVER)
    shutil.rmtree(building / _OVER, ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Removes f3rm's files from the folder of an unfinished run; the user's stay."""
    for name in (PROGRESS, _OVER):
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_leftovers(folder, keep=())
    for name in (META, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def finish_swap(folder: Path) -> None:
    """Completes or cleans up a swap that was interrupted; call it with the lock held."""
    building = building_folder(folder)
    # A manifest without a journal: commit() died after end_run().
    if (building / MANIFEST).exists() and not (building / PROGRESS).exists():
        swap_in(building, folder)
    remove_cache(_sibling(folder, "old"), replacement=folder)


def recover(folder: Path) -> None:
    """Completes a swap that was interrupted, if there was one.

    Raises:
        CacheError: If the file system refuses.
    """
    if (building_folder(folder) / MANIFEST).exists() or _sibling(folder, "old").exists():
        with feature_lock(folder):
            finish_swap(folder)


def swap_in(building: Path, folder: Path) -> None:
    """Renames a complete cache to ``folder``, and removes an older one that was there.

    A folder of another program there is kept under another name.

    Args:
        building: The folder in which the complete cache was built.
        folder: The cache folder.

    Raises:
        CacheError: If the file system refuses.
    """
    shutil.rmtree(building / _OVER, ignore_errors=True)
    # The earlier extractor writes meta.pt but no manifest: its caches are never removed.
    ours = (folder / MANIFEST).exists() or not (folder / META).exists()
    old = _sibling(folder, "old")
    # remove_cache() cleans .old up after a crash; a name of its own is never removed.
    aside = old if ours and not old.exists() else _free_name(folder)
    if folder.exists():
        _rename(folder, aside)
    _rename(building, folder)
    if ours:
        remove_cache(aside, replacement=folder)
    elif aside.exists():
        log.warning("%s held features of another program; they are kept as %s.", folder, aside)


def remove_cache(folder: Path, *, replacement: Path) -> None:
    """Removes a cache, and moves the user's files in it to the cache that replaces it.

    Files whose names the replacement has already, such as a folder with a chunk's name, are kept
    in a folder of their own beside it.
    """
    if not folder.is_dir():
        return
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed cache is not valid
    remove_run(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if replacement.is_dir() and not (replacement / path.name).exists():
            path.rename(replacement / path.name)
    if any(folder.iterdir()):
        kept = _free_name(replacement)
        folder.rename(kept)
        log.warning("%s held files that are not f3rm's; they are kept in %s.", replacement, kept)
    else:
        folder.rmdir()


def remove_leftovers(folder: Path, keep: tuple[str, ...]) -> None:
    """Removes f3rm's files that are not in ``keep``: chunks, codecs, and temporary files."""
    for pattern in (*_LEFTOVERS, f"{MANIFEST}.*.tmp", f"{META}.*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in keep and (path.is_symlink() or path.is_file()):
                path.unlink(missing_ok=True)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        msg = (
            f"Cannot rename {str(source)!r} to {str(target)!r}: {error}. Close the programs that "
            "use these folders, then run again."
        )
        raise CacheError(msg) from error


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _number(folder: Path) -> int:
    digits = folder.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _free_name(folder: Path) -> Path:
    number = 1
    while _sibling(folder, f"kept-{number}").exists():
        number += 1
    return _sibling(folder, f"kept-{number}")
