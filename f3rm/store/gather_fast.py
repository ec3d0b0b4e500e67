"""Copies rows in machine code with numba; imported only if the extra ``fast`` is installed.

Rows are far apart in memory, so most of the time is spent waiting for it. While one row is copied,
the first and the last cache line of a later one are prefetched, which also looks up its pages. The
hardware fetches the lines between; prefetching them too is slower. The readable reference is
:func:`f3rm.store.gather.take_reference`.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from jaxtyping import Int
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_AHEAD = 16
"""Rows between the one copied and the one prefetched."""

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)
_memcpy.restype = ctypes.c_size_t


def _emit_prefetch(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
    """Emits LLVM's prefetch of data for reading, to stay in all cache levels.

    *Source:* https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic
    """
    pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    signature = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    address = builder.inttoptr(arguments[0], pointer)
    builder.call(function, [address, word(0), word(3), word(1)])
    return context.get_dummy_value()


def _type_prefetch(_: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """Types the prefetch of the cache line at an address, valid or not."""
    return types.void(address), _emit_prefetch


_prefetch = cast("Callable[[int], None]", intrinsic(_type_prefetch))
"""Prefetches the cache line at an address, in a compiled function; never fails."""


def _copy(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    for row in range(len(addresses)):
        if row + _AHEAD < len(addresses):
            _prefetch(addresses[row + _AHEAD])
            _prefetch(addresses[row + _AHEAD] + row_bytes - 1)
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
