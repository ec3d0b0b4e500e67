"""Copying rows in machine code, with numba; imported only where the extra ``fast`` is installed.

The rows that come next are fetched into the processor's cache while one is copied: rows lie far
apart, so waiting for memory is most of the work. The readable twin is
:func:`f3rm.features.gather.take_reference`.
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

_AHEAD = 4
_CACHE_LINE = 64

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
    """Asks for the cache line at an address; never fails, whatever the address."""
    return types.void(address), _emit_prefetch


_prefetch = cast(Callable[[int], None], intrinsic(_type_prefetch))


def _copy(addresses: Int[np.ndarray, " rows"], target: int, row_bytes: int) -> None:
    for row in range(len(addresses)):
        if row + _AHEAD < len(addresses):
            for offset in range(0, row_bytes, _CACHE_LINE):
                _prefetch(addresses[row + _AHEAD] + offset)
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
