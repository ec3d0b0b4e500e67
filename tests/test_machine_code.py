"""Rows in registers and memory fetched ahead, as numba's functions use them."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

numba = pytest.importorskip("numba", reason="needs the extra 'fast'")
from f3rm.machine_code import prefetch, rows_of  # noqa: E402 (numba may be missing)

KERNELS = {}


def blend_of(lanes):
    """Compiles ``out[:] = first * factor + second`` for rows of so many numbers, once."""
    load, store = rows_of(lanes)

    def blend(table, first, second, factor, out, column):
        prefetch(table.ctypes.data + first * table.strides[0])
        store(out, 0, column, load(table, first, 0) * factor + load(table, second, 0))

    if lanes not in KERNELS:
        KERNELS[lanes] = numba.njit(inspect.unwrap(blend))
    return KERNELS[lanes]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 2**31))
def test_rows_are_computed_lane_by_lane_as_numpy_does(lanes, seed):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((5, lanes), dtype=np.float32)
    factor = np.float32(rng.standard_normal())
    first, second, column = (int(number) for number in rng.integers(0, 5, 3))
    out = np.zeros((1, lanes + 6), np.float32)
    blend_of(lanes)(table, first, second, factor, out, column)
    expected = np.zeros_like(out)
    expected[0, column : column + lanes] = table[first] * factor + table[second]
    np.testing.assert_array_equal(out, expected)  # to the bit, and nothing beside it
