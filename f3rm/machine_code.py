"""Instructions that numba does not offer: memory prefetch, and rows of numbers in one register.

numba unrolls a loop over a row of eight into scalars, because the array that it writes to might be
the one that it reads from. Rows here are added and multiplied lane by lane, with the rounding of
scalars. Imported only where the extra ``fast`` is installed.
"""

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

_FLOAT_BYTES = 4


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


prefetch = cast("Callable[[int], None]", intrinsic(_type_prefetch))
"""Prefetches the cache line at an address, in a compiled function; never fails."""


class _Row(types.Type):
    """A number of float32 in one register, or in a few."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"Row({lanes})")
        self.lanes = lanes


@register_model(_Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Row) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.FloatType(), fe_type.lanes))


class Rows(NamedTuple):
    """Functions for rows of one length, to be called from compiled functions.

    Attributes:
        load: ``load(array, row, column)`` reads a row from a float32 array of two axes.
        store: ``store(array, row, column, values)`` writes one.
    """

    load: Callable[[Any, Any, Any], Any]
    store: Callable[[Any, Any, Any, Any], None]


@lru_cache
def rows_of(lanes: int) -> Rows:
    """Returns the functions for rows of ``lanes`` float32; a row must lie inside its array.

    In compiled functions, ``*`` multiplies a row by a number and ``+`` adds two rows.
    """
    row = _Row(lanes)

    def address(context: Any, builder: Any, array: Any, values: Any) -> Any:
        struct = context.make_array(array)(context, builder, values[0])
        first = cgutils.get_item_pointer(context, builder, array, struct, list(values[1:3]))
        return builder.bitcast(first, context.get_value_type(row).as_pointer())

    def load(_: Any, array: Any, _row: Any, _column: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer = address(context, builder, signature.args[0], values)
            return builder.load(pointer, align=_FLOAT_BYTES)

        return row(array, types.intp, types.intp), emit

    def store(_: Any, array: Any, _row: Any, _column: Any, _values: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer = address(context, builder, signature.args[0], values)
            builder.store(values[3], pointer, align=_FLOAT_BYTES)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, row), emit

    return Rows(cast("Any", intrinsic(load)), cast("Any", intrinsic(store)))


def _type_scaled(_: Any, row: Any, _factor: Any) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = context.get_value_type(row)
        lane = builder.insert_element(ir.Constant(kind, ir.Undefined), values[1], ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), row.lanes), [0] * row.lanes)
        return builder.fmul(values[0], builder.shuffle_vector(lane, lane, mask))

    return row(row, types.float32), emit


def _type_added(_: Any, row: Any, _other: Any) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fadd(values[0], values[1])

    return row(row, row), emit


_scaled = cast("Callable[[Any, Any], Any]", intrinsic(_type_scaled))
_added = cast("Callable[[Any, Any], Any]", intrinsic(_type_added))


@overload(operator.mul, strict=False)
def _overload_mul(row: Any, factor: Any) -> Callable[[Any, Any], Any] | None:
    if isinstance(row, _Row) and factor == types.float32:
        return lambda row, factor: _scaled(row, factor)  # noqa: PLW0108 (numba wants a function)
    return None


@overload(operator.add, strict=False)
def _overload_add(row: Any, other: Any) -> Callable[[Any, Any], Any] | None:
    if isinstance(row, _Row) and row == other:
        return lambda row, other: _added(row, other)  # noqa: PLW0108
    return None
