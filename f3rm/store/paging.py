"""Asking the kernel for pages of mapped files before they are touched; Linux only, else nothing.

A gather of rows that are on disk faults them in one after another. Announced together, the disk
reads them at once, which is several times faster; but announcing rows that are in memory already
costs more than the gather. So :class:`ReadAhead` announces as long as gathers read from the disk.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from jaxtyping import Int

try:
    import resource
except ImportError:  # Windows
    resource = None

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)
_LINUX = sys.platform == "linux" and resource is not None

Addresses = Int[np.ndarray, " rows"]


class ReadAhead:
    """Announces rows as long as gathers read from the disk."""

    def __init__(self) -> None:
        """Starts in the belief that nothing is in memory."""
        self.cold = True

    @contextmanager
    def around(self, addresses: Addresses, row_bytes: int) -> Iterator[None]:
        """Announces rows if the last gather read from the disk, and watches this one.

        Args:
            addresses: Where rows of mapped memory start, in any order.
            row_bytes: Length of a row.
        """
        before = _disk_reads()
        if self.cold and len(addresses):
            announce(addresses, row_bytes)
        yield
        self.cold = _disk_reads() > before


def announce(addresses: Addresses, row_bytes: int) -> None:
    """Tells the kernel which rows will be read, so that it fetches them all at once.

    Args:
        addresses: Where rows of mapped memory start, in any order.
        row_bytes: Length of a row.
    """
    if not _LINUX:
        return
    madvise = _madvise()
    for start, stop in _page_runs(addresses, row_bytes).tolist():
        madvise(start, stop - start, _WILLNEED)


def expect_random(address: int, length: int) -> None:
    """Tells the kernel not to read ahead in a mapped file.

    Args:
        address: Where the mapping starts.
        length: Its length in bytes.
    """
    if _LINUX:
        _madvise()(address, length, mmap.MADV_RANDOM)


@lru_cache
def _madvise() -> Callable[[int, int, int | None], int]:
    libc = ctypes.CDLL(None)  # whose calls let other Python threads run
    libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    return libc.madvise


def _page_runs(addresses: Addresses, row_bytes: int) -> Int[np.ndarray, "runs 2"]:
    """Returns the runs of pages that hold the rows, sorted, overlapping ones joined."""
    first = np.sort(addresses)
    starts = first - first % mmap.PAGESIZE
    stops = first + row_bytes
    fresh = np.append(True, starts[1:] > stops[:-1])
    begins = np.flatnonzero(fresh)
    ends = np.append(begins[1:], len(first)) - 1
    return np.stack([starts[begins], stops[ends]], axis=-1)


def _disk_reads() -> int:
    """Counts blocks that this thread has had read from disks, and its waits for a page."""
    if not _LINUX or resource is None:
        return 0
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_inblock + usage.ru_majflt
