"""Which workers are alive, and which chunks they have claimed.

A worker has a file that its process keeps touching. A claim is a file made with ``O_EXCL``, so that
exactly one worker can make it. The claims on a chunk are numbered and never removed: a worker that
finds the owner of the highest one dead makes the next, again exclusively. Clocks of different
machines are never compared: a worker elsewhere is dead when its file has not changed while the
observer's own clock ran for :data:`SILENT_SECONDS`; one on this machine is dead when its process
has ended.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from f3rm.extract.locks.journal import unwritable

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a worker touches its file."""

SILENT_SECONDS = 120.0
"""After how long without a heartbeat a worker of another machine is taken for dead; longer than the
60 s for which NFS may cache a file's time."""

_WORKER = "worker-"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """A process, as written into its worker file.

    Attributes:
        machine: Host name, boot and process namespace; process numbers are comparable only within
            one machine.
        pid: Process number.
        started: Start time in the kernel's ticks, as process numbers are used again; empty where
            the system does not tell.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Owner":
        """Returns this process."""
        return cls(_machine(), os.getpid(), _start_time(os.getpid()))

    def is_gone(self) -> bool:
        """Returns whether the process has ended; always False for other machines."""
        if self.machine != _machine():
            return False
        if _PROC.joinpath("self", "stat").exists():
            return _start_time(self.pid) != self.started
        try:
            os.kill(self.pid, 0)  # signal 0 only asks whether the process exists
        except ProcessLookupError:
            return True
        except PermissionError:  # it exists and belongs to another user
            return False
        return False


class Heartbeat:
    """This worker's file, and the thread that touches it; a context manager.

    Attributes:
        name: Unique among all workers on all machines.
    """

    def __init__(self, folder: Path, *, beat_seconds: float = BEAT_SECONDS) -> None:
        """Chooses the name; the file is made on entering the context.

        Args:
            folder: The journal's folder; it exists.
            beat_seconds: How often the file is touched.
        """
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._path = folder / f"{_WORKER}{self.name}"
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="f3rm-heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Makes the file and starts the thread.

        Raises:
            CacheError: If the file cannot be written.
        """
        try:
            self._path.write_text(json.dumps(asdict(Owner.here())), encoding="utf-8")
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise unwritable(self._path, error) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the file, so that other workers take over its claims at once."""
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def is_known(self) -> bool:
        """Returns whether the worker's file still exists; other workers remove it with the run."""
        return self._path.exists()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return
            except OSError as error:  # one missed beat is harmless; the next may work
                log.debug("The heartbeat of %s failed: %s", self._path, error)


class Watch:
    """Tells which workers are alive, by looking at their files repeatedly."""

    def __init__(self, folder: Path, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Starts without observations: a worker of another machine first counts as alive.

        Args:
            folder: The journal's folder.
            silent_seconds: After how long without a heartbeat a worker of another machine is dead.
        """
        self.folder = folder
        self._silent_seconds = silent_seconds
        self._seen: dict[Path, tuple[int, float]] = {}  # file -> its time, own clock when first met

    def living(self) -> Sequence[str]:
        """Returns the names of the workers that are alive."""
        names = [path.name.removeprefix(_WORKER) for path in self.folder.glob(f"{_WORKER}*")]
        return [name for name in names if self.is_alive(name)]

    def is_alive(self, name: str) -> bool:
        """Returns whether a worker is alive: its process exists, or its file has changed lately."""
        path = self.folder / f"{_WORKER}{name}"
        try:
            owner = _parse_owner(path.read_text(encoding="utf-8"))
        except OSError:
            return False
        return not (owner and owner.is_gone()) and not self.is_silent(path)

    def is_silent(self, path: Path) -> bool:
        """Returns whether a file has not changed for long, by this process's own clock."""
        try:
            with path.open("rb") as stream:  # opening makes network file systems look again
                changed = os.fstat(stream.fileno()).st_mtime_ns
        except OSError:
            return True
        before, since = self._seen.get(path, (None, 0.0))
        # Unequal, not later: the clock of the other machine may go back.
        if before != changed:
            self._seen[path] = (changed, time.monotonic())
            return False
        return time.monotonic() - since > self._silent_seconds


class Claims:
    """The claims on the chunks of a run, as one worker sees and makes them."""

    def __init__(self, folder: Path, worker: str, watch: Watch) -> None:
        """Remembers where the claims are and in whose name they are made.

        Args:
            folder: The journal's folder; it exists.
            worker: Name of the worker.
            watch: Tells which other workers are alive.
        """
        self._folder = folder
        self._worker = worker
        self._watch = watch

    def take(self, name: str) -> bool:
        """Claims a chunk unless a living worker owns it; returns whether this worker owns it now.

        Args:
            name: The chunk file's stem, or ``codec``.

        Raises:
            CacheError: If the file system refuses.
        """
        number = 0
        while self._path(name, number + 1).exists():
            number += 1
        if number and (owner := self._owner(self._path(name, number))) is not None:
            return owner == self._worker
        return self._make(self._path(name, number + 1))

    def is_contested(self, name: str) -> bool:
        """Returns whether a chunk was claimed twice, so that two workers may have written it."""
        return self._path(name, 2).exists()

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{name}.claim-{number}"

    def _owner(self, path: Path) -> str | None:
        """Returns the living owner of a claim, empty if unknown; None if the owner is dead."""
        try:
            owner = path.read_text(encoding="utf-8")
        except OSError:
            return ""
        if not owner:  # made a moment ago, or its maker died before writing its name
            return None if self._watch.is_silent(path) else ""
        return owner if owner == self._worker or self._watch.is_alive(owner) else None

    def _make(self, path: Path) -> bool:
        made = False
        try:
            with path.open("x", encoding="utf-8") as stream:  # "x" is O_CREAT | O_EXCL
                made = True
                stream.write(self._worker)
        except (FileExistsError, FileNotFoundError):  # another was faster, or the run has ended
            return False
        except OSError as error:
            if made:
                path.unlink(missing_ok=True)
            raise unwritable(path, error) from error
        return True


def _machine() -> str:
    boot = _read(_PROC / "sys/kernel/random/boot_id")
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())  # containers may share a host name
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {boot} {namespace}"


def _start_time(pid: int) -> str:
    """Returns the kernel's start time of a process; empty if it ended or the system is not Linux.

    *Source:* proc(5): field 22 of ``/proc/<pid>/stat``, 20th after the name, which is in brackets
    and may itself hold spaces and brackets.
    """
    after_name = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(after_name) < 20 or after_name[0] in "ZX":  # ended, but not yet waited for
        return ""
    return after_name[19]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _parse_owner(text: str) -> Owner | None:
    try:
        plain = json.loads(text)
        return Owner(str(plain["machine"]), int(plain["pid"]), str(plain["started"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
