"""Read-only, shared maps of files: no memory of their own, no file that stays open.

A private writable map counts in full against the system's commit limit, and Python's own maps keep
a file descriptor each, of which a process has a thousand. So the kernel is asked directly, and
Python's map serves only where there is no such call.
"""

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8

_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, length: int) -> UInt8[np.ndarray, " bytes"]:
    """Maps the beginning of an open file; the file may be closed afterwards.

    Args:
        descriptor: The file, open for reading.
        length: Bytes to map, at least 1 and at most the file's length.

    Returns:
        The bytes; they cannot be written to.

    Raises:
        OSError: If the file cannot be mapped.
    """
    if sys.platform == "win32":
        return np.frombuffer(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ), np.uint8)
    return np.asarray(_Mapping(descriptor, length))


class _Mapping:
    """Pages of a file, which NumPy reads by address; unmapped with the last array of them."""

    def __init__(self, descriptor: int, length: int) -> None:
        map_pages, unmap_pages = _calls()
        address = map_pages(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        weakref.finalize(self, unmap_pages, address, length).atexit = False  # threads may read on
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # True: read-only
            "shape": (length,),
            "typestr": "|u1",
        }


@lru_cache
def _calls() -> tuple[Callable[..., int | None], Callable[[int, int], int]]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc.mmap, libc.munmap
