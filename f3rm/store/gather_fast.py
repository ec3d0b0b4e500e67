"""Copying rows in machine code, with numba; imported only where the extra ``fast`` is installed.

Rows lie far apart, so waiting for memory is most of the work: while one is copied, the first and
the last line of a later one are asked for, and with them its pages are looked up. The lines between
come by themselves; asking for them too takes longer. The readable twin is
:func:`f3rm.store.gather.take_reference`.
"""

import ctypes
import inspect

import numba
import numpy as np
from jaxtyping import Int

from f3rm.machine_code import prefetch

_AHEAD = 16

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
        addresses: Where each row starts; the memory is the caller's to keep.
        target: Where the first row goes; the others follow without a gap.
        row_bytes: Length of a row.
    """
    _compiled(addresses, target, row_bytes)
