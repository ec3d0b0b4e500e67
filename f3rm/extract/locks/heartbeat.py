"""Who works on what: workers that can be seen to be alive, and claims that exactly one can make.

A worker is a file that its process keeps touching. A claim is a file made with ``O_EXCL``, so that
one worker makes it whoever else tries. Claims of one thing are numbered and never removed: who
finds the owner of the highest one dead makes the next, again exclusively. No clocks are compared,
on one machine or between several: a worker elsewhere is dead when its file has not changed while
the observer's own clock ran for :data:`SILENT_SECONDS`; one on this machine is dead when its
process is gone.
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
from types import TracebackType

from f3rm.errors import CacheError

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a worker touches its file."""

SILENT_SECONDS = 120.0
"""How long another machine's worker may be silent; more than the 60 s that NFS may cache times."""

_WORKER = "worker-"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """A process: the machine it runs on, its number there, and when that number was given out.

    Attributes:
        machine: Host name, boot and process namespace; numbers compare within one such only.
        pid: Process number.
        started: Start time in the kernel's ticks; empty where the system does not say.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Owner":
        """Returns this process."""
        return cls(_machine(), os.getpid(), _start_time(os.getpid()))

    def is_gone(self) -> bool:
        """Returns whether a process of this machine has ended; never true of other machines."""
        if self.machine != _machine():
            return False
        if _PROC.joinpath("self", "stat").exists():
            return _start_time(self.pid) != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Worker:
    """This worker's file and the thread that touches it; a context manager.

    Attributes:
        name: Unique among all workers anywhere.
    """

    def __init__(self, folder: Path, *, beat_seconds: float = BEAT_SECONDS) -> None:
        """Names the worker; entering the context makes it known.

        Args:
            folder: Where workers and claims of one task are; it exists.
            beat_seconds: How often the file is touched.
        """
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._path = folder / f"{_WORKER}{self.name}"
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="f3rm-heartbeat", daemon=True)

    def __enter__(self) -> "Worker":
        """Makes the worker known.

        Raises:
            CacheError: If the file cannot be written.
        """
        try:
            self._path.write_text(json.dumps(asdict(Owner.here())), encoding="utf-8")
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise CacheError(_unwritable("Worker", self._path, error)) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the worker's file away, so that others go on with what it claimed at once."""
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def is_known(self) -> bool:
        """Returns whether the worker's file is still there; others remove it with its task."""
        return self._path.exists()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return
            except OSError as error:
                log.debug("The heartbeat of %s failed: %s", self._path, error)


class Watch:
    """Tells which workers live, by looking at their files again and again."""

    def __init__(self, folder: Path, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Starts without any observation: a worker of another machine counts as alive at first.

        Args:
            folder: Where the workers' files are.
            silent_seconds: How long one of another machine may be silent.
        """
        self.folder = folder
        self._silent_seconds = silent_seconds
        self._seen: dict[Path, tuple[int, float]] = {}

    def living(self) -> Sequence[str]:
        """Returns the names of the workers that are alive."""
        names = [path.name.removeprefix(_WORKER) for path in self.folder.glob(f"{_WORKER}*")]
        return [name for name in names if self.is_alive(name)]

    def is_alive(self, name: str) -> bool:
        """Returns whether a worker still works, as far as can be seen."""
        path = self.folder / f"{_WORKER}{name}"
        try:
            owner = _parse_owner(path.read_text(encoding="utf-8"))
        except OSError:
            return False
        return not (owner and owner.is_gone()) and not self.is_silent(path)

    def is_silent(self, path: Path) -> bool:
        """Returns whether a file did not change for long, by this process's own clock."""
        try:
            with path.open("rb") as stream:  # opening makes network file systems look again
                changed = os.fstat(stream.fileno()).st_mtime_ns
        except OSError:
            return True
        before, since = self._seen.get(path, (None, 0.0))
        if before != changed:
            self._seen[path] = (changed, time.monotonic())
            return False
        return time.monotonic() - since > self._silent_seconds


class Claims:
    """The claims of one task, as one worker sees and makes them."""

    def __init__(self, folder: Path, worker: str, watch: Watch) -> None:
        """Keeps where the claims are and who makes them.

        Args:
            folder: Where the claims are; it exists.
            worker: Name of the worker.
            watch: Tells who else is alive.
        """
        self._folder = folder
        self._worker = worker
        self._watch = watch

    def take(self, what: str) -> bool:
        """Claims something, unless a living worker has; returns whether it is this worker's.

        Args:
            what: A file name's stem.

        Raises:
            CacheError: If the file system refuses.
        """
        number = 0
        while self._path(what, number + 1).exists():
            number += 1
        if number and (owner := self._owner(self._path(what, number))) is not None:
            return owner == self._worker
        return self._make(self._path(what, number + 1))

    def is_contested(self, what: str) -> bool:
        """Returns whether something was claimed more than once, its first owner taken for dead."""
        return self._path(what, 2).exists()

    def _path(self, what: str, number: int) -> Path:
        return self._folder / f"{what}.claim-{number}"

    def _owner(self, path: Path) -> str | None:
        """Returns the living owner of a claim; None if it is dead."""
        try:
            owner = path.read_text(encoding="utf-8")
        except OSError:
            return ""
        if not owner:  # made a moment ago, or by one who died before the name was in it
            return None if self._watch.is_silent(path) else ""
        return owner if owner == self._worker or self._watch.is_alive(owner) else None

    def _make(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):  # another was faster, or all is done
            return False
        except OSError as error:
            raise CacheError(_unwritable("Claims", path, error)) from error
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(self._worker)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise CacheError(_unwritable("Claims", path, error)) from error
        return True


def _machine() -> str:
    boot = _read(_PROC / "sys/kernel/random/boot_id")
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())  # containers may share a host name
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {boot} {namespace}"


def _start_time(pid: int) -> str:
    """Returns the kernel's start time of a process; empty if it ended or the system is no Linux."""
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


def _unwritable(function: str, path: Path, error: OSError) -> str:
    return (
        f"{function}: {str(path)!r} must be writable, got: {error}. Make room or pass --cache-dir, "
        "then run again."
    )
