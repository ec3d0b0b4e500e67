"""Locks on files: who works on a run, and who makes which of its chunks.

The kernel ends a lock together with its holder, however that ends and in whatever container it
runs: nobody compares clocks or process numbers. A holder that hangs keeps its lock; then the lock's
file is removed, so that others lock a new one. Two workers may make one chunk after that, which
costs time and nothing else: :meth:`~f3rm.extract.writer.CacheWriter.publish` lets the first count.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import socket
import time
from pathlib import Path
from typing import BinaryIO

from f3rm.errors import CacheError
from f3rm.extract.locks.journal import PROGRESS

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often a worker that has nothing to do looks again."""

PATIENCE_SECONDS = 120.0
"""After how long without a change, by the observer's own clock, other workers are taken to hang;
longer than the 60 s for which NFS may cache the size of a file."""

_WORKER = "worker-"


class WorkerLocks:
    """The locks of one worker of a run: its own, and those of the chunks that it makes.

    A context manager: entering it takes the worker's own lock, leaving it ends all of them.

    Attributes:
        name: Unique among all workers on all machines; names host and process for people.
    """

    def __init__(self, building: Path) -> None:
        """Chooses the name; ``building`` is the folder of the run, whose journal has begun."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._building = building
        self._progress = building / PROGRESS
        self._own = self._progress / f"{_WORKER}{self.name}"
        self._held: dict[Path, BinaryIO] = {}
        self._signs: object = None
        self._since = 0.0

    def __enter__(self) -> "WorkerLocks":
        """Makes the worker's file and locks it.

        Raises:
            CacheError: If the file system refuses.
        """
        while not self._take(self._own):  # f3rm cache status may be looking at it
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the worker's file and ends its locks, so that others take over at once."""
        self._own.unlink(missing_ok=True)
        for lock in self._held.values():
            unlock(lock)
        self._held.clear()

    def is_member(self) -> bool:
        """Returns whether the run goes on: its folders move when it ends, with the worker's file.

        Anyone may remove that file, so that others need not wait for a worker that hangs.
        """
        try:
            with self._own.open("rb"):  # opening makes network file systems look again
                return True
        except OSError:
            return False

    def check_membership(self) -> None:
        """Checks that the run goes on.

        Raises:
            CacheError: If not.
        """
        if not self.is_member():
            msg = (
                f"The extraction in {str(self._building)!r} ended without this worker. Run the "
                "same command again."
            )
            raise CacheError(msg)

    def take(self, name: str) -> bool:
        """Locks a chunk, or the choice of the codec; returns whether this worker has it now.

        Args:
            name: The chunk's file, or ``codec``.

        Raises:
            CacheError: If the file system refuses.
        """
        return self._take(self._progress / f"{name}.lock")

    def release(self, name: str) -> None:
        """Ends the lock of a finished chunk; does nothing if this worker does not hold it."""
        path = self._progress / f"{name}.lock"
        if lock := self._held.pop(path, None):
            path.unlink(missing_ok=True)
            unlock(lock)

    def wait(self) -> None:
        """Waits a moment for other workers; removes their chunks' locks if they seem to hang.

        They are slow and do not hang as long as parts of chunks grow, or other chunks are locked.

        Raises:
            CacheError: If the run has ended.
        """
        self.check_membership()
        signs, now = self._signs_of_life(), time.monotonic()
        if signs != self._signs:
            self._signs, self._since = signs, now
        elif now - self._since > PATIENCE_SECONDS:
            log.warning(
                "Nothing changes in %s for %.0f s; making the chunks of workers that hang: %s.",
                self._building,
                now - self._since,
                ", ".join(name for name in living(self._progress) if name != self.name),
            )
            for path in self._progress.glob("*.lock"):
                path.unlink(missing_ok=True)
        time.sleep(POLL_SECONDS)

    def _take(self, path: Path) -> bool:
        if path not in self._held and (lock := try_lock(path)):
            self._held[path] = lock
        return path in self._held

    def _signs_of_life(self) -> set[tuple[str, int, int]]:
        signs: set[tuple[str, int, int]] = set()
        for path in (*self._building.glob("*.tmp"), *self._progress.glob("*.lock")):
            with contextlib.suppress(OSError):
                status = path.stat()
                signs.add((path.name, status.st_ino, status.st_size))
        return signs


def living(progress: Path) -> list[str]:
    """Returns the names of the workers whose locks are held, given the journal's folder."""
    files = sorted(progress.glob(f"{_WORKER}*"))
    return [path.name.removeprefix(_WORKER) for path in files if _is_locked(path)]


def try_lock(path: Path) -> BinaryIO | None:
    """Locks a file, which is made if it is missing; None if another holds the lock.

    Raises:
        CacheError: If the file cannot be written, or its file system does not support locks.
    """
    try:
        stream = path.open("ab")
    except OSError as error:
        raise unlockable(path, error) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise unlockable(path, error) from error
    return stream


def unlock(lock: BinaryIO) -> None:
    """Ends a lock."""
    with contextlib.suppress(OSError):  # e.g. of a file that is gone, on a network file system
        # Not by closing alone: a child process forked meanwhile would keep it.
        fcntl.flock(lock, fcntl.LOCK_UN)
    lock.close()


def unlockable(path: Path, error: OSError) -> CacheError:
    """Returns the error about a file that cannot be locked."""
    return CacheError(
        f"Cannot lock {str(path)!r}: {error}. Pass --cache-dir with a writable folder on a file "
        "system that supports locks."
    )


def _is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock of a file; works on a read-only file system too."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: observers do not collide
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False
