"""Where a cache is built and how it takes the place of an older one; who may build.

A cache is built in its own folder if that holds nothing finished, else in the sibling
``<name>.building``, which is swapped in at the end: whatever was valid stays valid until then. A
lock per feature type lets one process build.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from f3rm._types import CacheError
from f3rm.features.chunks import sync_folder
from f3rm.features.journal import JOURNAL
from f3rm.features.manifest import MANIFEST

log = logging.getLogger(__name__)

META = "meta.pt"


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
    """Holds the lock of a feature type; says so if another process has it, and waits.

    Raises:
        CacheError: If the lock file cannot be made.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("Another process is extracting into %s; waiting for it.", folder)
            lock.acquire()
    except OSError as error:
        msg = (
            f"feature_lock: {str(path)!r} must be writable, got: {error}. Pass --cache-dir with a "
            "folder that is."
        )
        raise CacheError(msg) from error
    try:
        yield
    finally:
        lock.release()


def building_folder(folder: Path) -> Path:
    """Returns where a new cache for ``folder`` is built; to be called with the lock held."""
    finished = (folder / MANIFEST).exists()
    foreign = (folder / META).exists() and not (folder / JOURNAL).exists()
    return _sibling(folder, "building") if finished or foreign else folder


def finish_swap(folder: Path) -> None:
    """Completes or cleans up a swap that was cut short; to be called with the lock held."""
    building = _sibling(folder, "building")
    if (building / MANIFEST).exists() and not (building / JOURNAL).exists():
        swap_in(building, folder)
    remove_cache(_sibling(folder, "old"), heir=folder)


def swap_in(building: Path, folder: Path) -> None:
    """Puts a finished cache in the place of an older one, which is removed.

    What another program left there is kept under another name.

    Args:
        building: The finished cache; nothing happens if it is ``folder`` itself.
        folder: Where it belongs.

    Raises:
        CacheError: If the file system refuses.
    """
    if building == folder:
        return
    ours = (folder / MANIFEST).exists()
    old = _sibling(folder, "old")
    aside = old if ours and not old.exists() else _free_name(folder)
    try:
        if folder.exists():
            folder.rename(aside)
        building.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        msg = (
            f"extract_features: {str(building)!r} must be renamed to {str(folder)!r}, got: "
            f"{error}. Close what uses these folders and run again."
        )
        raise CacheError(msg) from error
    if ours:
        remove_cache(aside, heir=folder)
    elif aside.exists():
        log.warning("%s held features of another program; they are kept as %s.", folder, aside)


def remove_cache(folder: Path, *, heir: Path) -> None:
    """Removes a cache that was replaced by ``heir``, which inherits files that are not f3rm's."""
    if not folder.is_dir():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_leftovers(folder, keep=())
    for name in (META, JOURNAL):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if heir.is_dir() and not (heir / path.name).exists():
            path.rename(heir / path.name)
    if not any(folder.iterdir()):
        folder.rmdir()


def remove_leftovers(folder: Path, keep: tuple[str, ...]) -> None:
    """Removes chunks that are not in ``keep``, and temporary files of interrupted writes."""
    for pattern in ("chunk_*.npy", "chunk_*.tmp", f"{MANIFEST}.*.tmp", f"{META}.*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in keep and (path.is_symlink() or path.is_file()):
                path.unlink()


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _free_name(folder: Path) -> Path:
    number = 1
    while _sibling(folder, f"kept-{number}").exists():
        number += 1
    return _sibling(folder, f"kept-{number}")
