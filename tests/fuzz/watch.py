"""One case under guard: a deadline, a limit on memory, and an eye on everything that is written."""

import contextlib
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from f3rm.errors import F3rmError

SECONDS = 10
"""A case takes milliseconds; this is for what would never end."""
MEMORY = 1 << 30
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
    "shutil.rmtree",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """A case did not end."""


class Elsewhere(BaseException):
    """A case wrote outside its folder."""


@dataclass
class Outcomes:
    """What cases came to.

    Attributes:
        counts: How many were accepted, or refused by which kind of F3rmError.
        failures: What else happened, with the number of the case and the end of its traceback.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


Case = Callable[[random.Random], object]


def run_cases(name: str, case: Case, numbers: range, folder: Path) -> Outcomes:
    """Runs cases, each from its own seed.

    Args:
        name: What is fuzzed; part of the seed.
        case: Makes a document, hands it over and checks the answer.
        numbers: Which cases.
        folder: The only folder that may be written to.
    """
    outcomes = Outcomes()
    with _guarded(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            rng = random.Random(f"{name} {number}")
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                case(rng)
                outcomes.counts["accepted"] += 1
            except F3rmError as error:
                outcomes.counts[type(error).__name__] += 1
            except (Exception, Hang, Elsewhere) as error:  # noqa: BLE001 - what is looked for
                outcomes.counts["FAILED"] += 1
                frames = traceback.extract_tb(error.__traceback__)[-3:]
                where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
                what = f"{type(error).__name__}: {str(error)[:300]!r}"
                outcomes.failures.append(f"{name} {number}: {what} at {where}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return outcomes


_allowed: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITING or not isinstance(path, str | bytes):
            return
        paths = [path]
    elif event in _CHANGES:
        paths = [path for path in arguments[:2] if isinstance(path, str | bytes)]
    else:
        return
    for path in paths:
        full = os.path.realpath(os.fsdecode(path))
        if not full.startswith(_allowed[-1]) and full != os.devnull:
            raise Elsewhere(f"{event} {full}")


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Limits memory, arms the deadline and watches the file system."""

    def ring(*_: object) -> None:
        raise Hang

    if "fuzz" not in _installed:
        sys.addaudithook(_audit)
        _installed.add("fuzz")
    limit = resource.getrlimit(resource.RLIMIT_AS)
    before, bytecode = signal.signal(signal.SIGALRM, ring), sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, limit[1]))
    sys.dont_write_bytecode = True
    _allowed.append(os.path.realpath(folder) + os.sep)
    try:
        yield
    finally:
        _allowed.pop()
        sys.dont_write_bytecode = bytecode
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.signal(signal.SIGALRM, before)


_installed: set[str] = set()


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
