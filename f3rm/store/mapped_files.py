"""Memory-mapped files: read-only shared maps, and hints to the kernel about their pages.

A private writable map counts in full against the system's commit limit, and Python's own maps keep
a file descriptor each, of which a process has a thousand. So the C library is called directly;
Python's map is used on Windows only.

A gather of rows that are on disk faults them in one after another. Announced together, the disk
reads them at once, which is several times faster; but announcing rows that are in memory already
costs more than the gather. So :class:`ReadAhead` announces only while gathers read from the disk.
Hints are given on Linux only.
"""

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt8

if sys.platform == "linux":
    import resource

_FAILED = ctypes.c_void_p(-1).value

Addresses = Int[np.ndarray, " rows"]


def map_file(descriptor: int, length: int) -> UInt8[np.ndarray, " bytes"]:
    """Maps the beginning of an open file; the file may be closed afterwards.

    Args:
        descriptor: The file, open for reading.
        length: Bytes to map, at least 1 and at most the file's length.

    Returns:
        The bytes, read-only.

    Raises:
        OSError: If the file cannot be mapped.
    """
    if sys.platform == "win32":
        return np.frombuffer(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ), np.uint8)
    return np.asarray(_Mapping(descriptor, length))


class _Mapping:
    """Mapped pages, which NumPy reads by address; unmapped with the last array that views them."""

    def __init__(self, descriptor: int, length: int) -> None:
        address = _libc().mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        # Not at exit: other threads may still read, and the process gives the pages back anyway.
        weakref.finalize(self, _libc().munmap, address, length).atexit = False
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # True: read-only
            "shape": (length,),
            "typestr": "|u1",
        }


class ReadAhead:
    """Announces rows as long as gathers read from the disk.

    Attributes:
        cold: Whether the last gather had to read from the disk.
    """

    def __init__(self) -> None:
        self.cold = True

    @contextmanager
    def around(self, addresses: Addresses, row_bytes: int) -> Generator[None]:
        """Announces rows if the last gather read from the disk, and watches this one.

        Args:
            addresses: Start address of each row, in any order.
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
        addresses: Start address of each row, in any order.
        row_bytes: Length of a row.
    """
    if sys.platform != "linux":
        return
    madvise = _libc().madvise
    for start, stop in _page_runs(addresses, row_bytes).tolist():
        madvise(start, stop - start, mmap.MADV_WILLNEED)


def expect_random(address: int, length: int) -> None:
    """Tells the kernel not to read ahead in a mapped range of ``length`` bytes."""
    if sys.platform == "linux":
        _libc().madvise(address, length, mmap.MADV_RANDOM)


@lru_cache
def _libc() -> ctypes.CDLL:
    """Returns the C library; unlike calls through PyDLL, its calls let other threads run."""
    libc, size = ctypes.CDLL(None, use_errno=True), ctypes.c_size_t
    libc.mmap.restype = ctypes.c_void_p  # the default, int, would cut an address in half
    libc.mmap.argtypes = (ctypes.c_void_p, size, *[ctypes.c_int] * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    libc.madvise.argtypes = (size, size, ctypes.c_int)
    return libc


def _page_runs(addresses: Addresses, row_bytes: int) -> Int[np.ndarray, "runs 2"]:
    """Returns the runs of pages that hold the rows, sorted, overlapping ones joined."""
    first = np.sort(addresses)
    starts = first - first % mmap.PAGESIZE  # madvise wants the start of a page
    stops = first + row_bytes
    fresh = np.append(True, starts[1:] > stops[:-1])
    begins = np.flatnonzero(fresh)
    ends = np.append(begins[1:], len(first)) - 1
    return np.stack([starts[begins], stops[ends]], axis=-1)


def _disk_reads() -> int:
    """Counts blocks that this thread has had read from disks, and its waits for a page."""
    if sys.platform != "linux":
        return 0
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_inblock + usage.ru_majflt
