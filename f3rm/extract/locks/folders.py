"""Where a cache is built and how it takes the place of an older one.

A cache is built in the sibling ``<name>.building`` and renamed to ``<name>`` when it is complete:
whatever was valid stays valid until then. What an interrupted run left is put aside as
``<name>.older-N`` until its chunks have been used. A lock per feature type is held for the moments
in which folders change places; the work itself is shared by claims.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from f3rm.errors import CacheError
from f3rm.extract.locks.journal import PROGRESS, Journal
from f3rm.store.chunks import sync_folder
from f3rm.store.manifest import MANIFEST

log = logging.getLogger(__name__)

META = "meta.pt"

_OVER = f"{PROGRESS}.over"

_LEFTOVERS = ("chunk_*.npy", "chunk_*.tmp", "codec_*.npy", "codec_*.tmp", "progress.jsonl")
"""Patterns of f3rm's files; the last is the journal of 0.1.0."""


def is_writable(folder: Path) -> bool:
    """Returns whether a folder can be written to, or created; root cannot on a read-only mount."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_writable(folder: Path) -> None:
    """Checks that a cache can be written to ``folder`` and beside it.

    Raises:
        CacheError: If not.
    """
    if is_writable(folder) and is_writable(folder.parent):
        return
    msg = (
        f"extract_features: folder must be writable, got {str(folder)!r}. Pass --cache-dir with a "
        "folder that is, or change the permissions."
    )
    raise CacheError(msg)


@contextmanager
def feature_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a feature type, for as long as folders change places.

    Raises:
        CacheError: If the lock file cannot be made, or its file system has no locks.
    """
    path = folder.parent / f".{folder.name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        msg = (
            f"feature_lock: {str(path)!r} must be writable and lockable, got: {error}. Pass "
            "--cache-dir with a folder that is."
        )
        raise CacheError(msg) from error
    try:
        yield
    finally:
        lock.release()


def building_folder(folder: Path) -> Path:
    """Returns where a new cache for ``folder`` is built."""
    return _sibling(folder, "building")


def older_folders(folder: Path) -> list[Path]:
    """Returns what interrupted runs left, the newest first."""
    found = [path for path in folder.parent.glob(f"{folder.name}.older-*") if path.is_dir()]
    return sorted(found, key=_number, reverse=True)


def retire(folder: Path) -> None:
    """Puts an interrupted run aside; to be called with the lock held and no worker alive.

    Raises:
        CacheError: If the file system refuses.
    """
    building = building_folder(folder)
    if not building.exists():
        return
    if next(Journal(building).notes(), None) is None:
        remove_run(building)
        return
    number = 1 + max((_number(path) for path in older_folders(folder)), default=0)
    _rename(building, _sibling(folder, f"older-{number}"))


def end_run(building: Path) -> None:
    """Takes the journal of a complete cache away, at once, so that its workers see the end.

    Raises:
        CacheError: If the file system refuses.
    """
    _rename(building / PROGRESS, building / _OVER)
    shutil.rmtree(building / _OVER, ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Removes the folder of an unfinished run; files that are not f3rm's stay."""
    for name in (PROGRESS, _OVER):
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_leftovers(folder, keep=())
    for name in (META, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def finish_swap(folder: Path) -> None:
    """Completes or cleans up a swap that was cut short; to be called with the lock held."""
    building = building_folder(folder)
    if (building / MANIFEST).exists() and not (building / PROGRESS).exists():
        swap_in(building, folder)
    remove_cache(_sibling(folder, "old"), heir=folder)


def recover(folder: Path) -> None:
    """Completes a swap that was cut short, if there was one.

    Raises:
        CacheError: If the file system refuses.
    """
    if (building_folder(folder) / MANIFEST).exists() or _sibling(folder, "old").exists():
        with feature_lock(folder):
            finish_swap(folder)


def swap_in(building: Path, folder: Path) -> None:
    """Puts a finished cache in its place; an older one there is removed.

    What another program left there is kept under another name.

    Args:
        building: The finished cache.
        folder: Where it belongs.

    Raises:
        CacheError: If the file system refuses.
    """
    shutil.rmtree(building / _OVER, ignore_errors=True)
    ours = (folder / MANIFEST).exists() or not (folder / META).exists()
    old = _sibling(folder, "old")
    aside = old if ours and not old.exists() else _free_name(folder)
    if folder.exists():
        _rename(folder, aside)
    _rename(building, folder)
    if ours:
        remove_cache(aside, heir=folder)
    elif aside.exists():
        log.warning("%s held features of another program; they are kept as %s.", folder, aside)


def remove_cache(folder: Path, *, heir: Path) -> None:
    """Removes a cache that was replaced by ``heir``, which inherits files that are not f3rm's.

    What the heir has already, such as a folder in the place of a chunk, is kept under another name.
    """
    if not folder.is_dir():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_run(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if heir.is_dir() and not (heir / path.name).exists():
            path.rename(heir / path.name)
    if any(folder.iterdir()):
        kept = _free_name(heir)
        folder.rename(kept)
        log.warning("%s held files that are not f3rm's; they are kept in %s.", heir, kept)
    else:
        folder.rmdir()


def remove_leftovers(folder: Path, keep: tuple[str, ...]) -> None:
    """Removes chunks that are not in ``keep``, and temporary files of interrupted writes."""
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
            f"extract_features: {str(source)!r} must be renamed to {str(target)!r}, got: {error}. "
            "Close what uses these folders and run again."
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
