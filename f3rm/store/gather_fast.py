"""Copies rows in machine code with numba; imported only if the extra ``fast`` is installed.

Rows are far apart in memory, so most of the time is spent waiting for it. While one row is copied,
the first and the last cache line of a later one are prefetched, which also looks up its pages. The
hardware fetches the lines between; prefetching them too is slower. The readable reference is
:func:`f3rm.store.gather.take_reference`.
"""

import ctypes
import inspect

import numba
import numpy as np
from jaxtyping import Int

from f3rm.machine_code import prefetch

_AHEAD = 16
"""Rows between the one copied and the one prefetched."""

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)
_memcpy.restype = ctypes.c_size_t


def _copy(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    for row in range(len(addresses)):
        if row + _AHEAD < len(addresses):
            prefetch(addresses[row + _AHEAD])
            prefetch(addresses[row + _AHEAD] + row_bytes - 1)
        _memcpy(target + row * row_bytes, addresses[row], row_bytes)


# unwrap, because the shape checker of the tests wraps functions in what numba cannot compile
_compiled = numba.njit("void(int64[::1], int64, int64)", nogil=True)(inspect.unwrap(_copy))


def copy_rows(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    """Copies rows of memory one after another to a target, while other threads run.

    Args:
        addresses: Start address of each row; the caller keeps the memory alive.
        target: Address of the first row's copy; the others follow without a gap.
        row_bytes: Length of a row.
    """
    _compiled(addresses, target, row_bytes)
