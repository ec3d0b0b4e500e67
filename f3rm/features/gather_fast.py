"""Copying rows in machine code, with numba; imported only where the extra ``fast`` is installed.

The rows that come next are fetched into the processor's cache while one is copied: rows lie far
apart, so waiting for memory is most of the work. The readable twin is
:func:`f3rm.features.gather.take_reference`.
"""

import ctypes
import inspect

import numba
import numpy as np
from jaxtyping import Int

from f3rm.machine_code import CACHE_LINE, prefetch

_AHEAD = 4

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)
_memcpy.restype = ctypes.c_size_t


def _copy(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    for row in range(len(addresses)):
        if row + _AHEAD < len(addresses):
            for offset in range(0, row_bytes, CACHE_LINE):
                prefetch(addresses[row + _AHEAD] + offset)
        _memcpy(target + row * row_bytes, addresses[row], row_bytes)


# unwrap, because the shape checker of the tests wraps functions in what numba cannot compile
_compiled = numba.njit("void(int64[::1], int64, int64)", nogil=True)(inspect.unwrap(_copy))


def copy_rows(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    """Copies rows of memory one after another to a target, while other threads run.

    Args:
        addresses: Where each row starts; the memory is the caller's to keep.
        target: Where the first row goes; the others follow without a gap.
        row_bytes: Length of a row.
    """
    _compiled(addresses, target, row_bytes)
