"""Interpolation in hash grids in machine code, with numba; imported only where it is installed.

The outer loop runs over levels: one level's table fits a processor's cache, and no two levels write
to the same rows, so that threads can share them. Products and sums follow Nerfstudio's torch
encoding axis by axis and are rounded one at a time, so that both give the same bits. The readable
twins are :meth:`f3rm.networks.torch_network.HashGrid.reference` and Nerfstudio's
``HashEncoding.pytorch_fwd``.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from f3rm.networks.fast import Levels

_Kernel = Callable[..., None]
_Array = np.ndarray
_Corners = tuple[tuple[Any, ...], tuple[Any, Any, Any]]
_ONE = np.float32(1)  # an integer 1 would make numba compute in double precision


class _Level(NamedTuple):
    """One of :class:`Levels`, as plain numbers for the kernels."""

    column: int
    """The first column of its encoding."""
    scale: np.float32
    top: np.float32
    strides: tuple[int, int, int]
    mask: int
    offset: int


def interpolate(
    positions: Float[Tensor, "points 3"], table: Float[Tensor, "rows features"], levels: Levels
) -> Float[Tensor, "points encoding"]:
    """Interpolates every level at positions; gradients flow into the table and the positions.

    On the border of two cells the slope is the upper cell's; Nerfstudio's is zero there.

    Args:
        positions: Positions in [0, 1]^3, float32 on the CPU.
        table: Rows of all levels, float32 on the CPU.
        levels: Their layout.
    """
    return _Interpolate.apply(positions.contiguous(), table.contiguous(), levels)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.levels = levels
        features = table.shape[1]
        shape = len(positions), len(levels.scales) * features
        out = torch.from_numpy(np.empty(shape, np.float32))
        read = _compiled(_read, features)
        _share(read, levels, positions, table, out, features=features)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        positions, table = ctx.saved_tensors
        gradient, features = gradients[0].contiguous(), table.shape[1]
        of_positions = of_table = None
        if ctx.needs_input_grad[0]:
            of_levels = positions.new_empty(len(ctx.levels.scales), *positions.shape)
            slope = _compiled(_slope, features)
            _share(slope, ctx.levels, positions, table, gradient, of_levels, features=features)
            of_positions = of_levels.sum(dim=0)
        if ctx.needs_input_grad[1]:
            of_table = torch.zeros_like(table)
            add = _compiled(_add, features)
            _share(add, ctx.levels, positions, gradient, of_table, features=features)
        return of_positions, of_table, None


def _share(kernel: _Kernel, levels: Levels, *tensors: Tensor, features: int) -> None:
    """Runs a kernel on all levels, in as many threads as torch uses."""
    arrays = [(t.detach() if t.requires_grad else t).numpy() for t in tensors]
    each = [
        _Level(number * features, levels.scales[number], levels.tops[number], strides, mask, offset)
        for number, (strides, mask, offset) in enumerate(
            zip(
                map(tuple, levels.strides.tolist()),
                levels.masks.tolist(),
                levels.offsets.tolist(),
                strict=True,
            )
        )
    ]
    threads = min(torch.get_num_threads(), len(each))
    if threads == 1:
        for level in each:
            kernel(level, *arrays)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda level: kernel(level, *arrays), each))


@lru_cache
def _compiled(make: Callable[[int], _Kernel], features: int) -> _Kernel:
    """Compiles a kernel for one number of features, a constant that lets loops be unrolled."""
    # The shape checker of the tests wraps functions in closures that numba cannot compile.
    return cast("_Kernel", numba.njit(inspect.unwrap(make(features)), nogil=True))


def _corners(level: _Level, point: _Array) -> _Corners:
    """Returns the rows of the eight corners around a point, x fastest, and its place in the cell.

    A position that is not a number reads the first row, so that only the table's memory is read.
    """
    scale, top, mask, offset = level.scale, level.top, level.mask, level.offset
    scaled_x, scaled_y, scaled_z = point[0] * scale, point[1] * scale, point[2] * scale
    low_x, low_y, low_z = np.floor(scaled_x), np.floor(scaled_y), np.floor(scaled_z)
    low_x, low_y, low_z = min(low_x, top), min(low_y, top), min(low_z, top)
    is_outside = mask < 0 and min(low_x, low_y, low_z) < 0
    if is_outside or not low_x + low_y + low_z > -np.inf:
        low_x = low_y = low_z = np.float32(0)
    stride_x, stride_y, stride_z = level.strides
    x0, y0, z0 = np.int64(low_x) * stride_x, np.int64(low_y) * stride_y, np.int64(low_z) * stride_z
    x1, y1, z1 = x0 + stride_x, y0 + stride_y, z0 + stride_z
    place = scaled_x - low_x, scaled_y - low_y, scaled_z - low_z
    if mask < 0:
        x0, x1, a, b, c, d = x0 + offset, x1 + offset, y0 + z0, y1 + z0, y0 + z1, y1 + z1
        return (x0 + a, x1 + a, x0 + b, x1 + b, x0 + c, x1 + c, x0 + d, x1 + d), place
    a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    rows = (
        ((x0 ^ a) & mask) + offset,
        ((x1 ^ a) & mask) + offset,
        ((x0 ^ b) & mask) + offset,
        ((x1 ^ b) & mask) + offset,
        ((x0 ^ c) & mask) + offset,
        ((x1 ^ c) & mask) + offset,
        ((x0 ^ d) & mask) + offset,
        ((x1 ^ d) & mask) + offset,
    )
    return rows, place


_corners_of = cast(
    "Callable[[_Level, _Array], _Corners]", numba.njit(inspect.unwrap(_corners), inline="always")
)


def _read(features: int) -> _Kernel:
    def read(level: _Level, points: _Array, table: _Array, out: _Array) -> None:
        for index in range(len(points)):
            row, (x, y, z) = _corners_of(level, points[index])
            rest_x, rest_y, rest_z = _ONE - x, _ONE - y, _ONE - z
            for feature in range(features):
                low = table[row[1], feature] * x + table[row[0], feature] * rest_x
                high = table[row[3], feature] * x + table[row[2], feature] * rest_x
                near = high * y + low * rest_y
                low = table[row[5], feature] * x + table[row[4], feature] * rest_x
                high = table[row[7], feature] * x + table[row[6], feature] * rest_x
                far = high * y + low * rest_y
                out[index, level.column + feature] = far * z + near * rest_z

    return read


def _add(features: int) -> _Kernel:
    def add(level: _Level, points: _Array, gradient: _Array, of_table: _Array) -> None:
        for index in range(len(points)):
            row, (x, y, z) = _corners_of(level, points[index])
            rest_x, rest_y, rest_z = _ONE - x, _ONE - y, _ONE - z
            for feature in range(features):
                given = gradient[index, level.column + feature]
                near, far = given * rest_z, given * z
                low, high = near * rest_y, near * y
                of_table[row[0], feature] += low * rest_x
                of_table[row[1], feature] += low * x
                of_table[row[2], feature] += high * rest_x
                of_table[row[3], feature] += high * x
                low, high = far * rest_y, far * y
                of_table[row[4], feature] += low * rest_x
                of_table[row[5], feature] += low * x
                of_table[row[6], feature] += high * rest_x
                of_table[row[7], feature] += high * x

    return add


def _slope(features: int) -> _Kernel:
    def slope(
        level: _Level, points: _Array, table: _Array, gradient: _Array, of_points: _Array
    ) -> None:
        number = level.column // features
        for index in range(len(points)):
            row, (x, y, z) = _corners_of(level, points[index])
            rest_y, rest_z = _ONE - y, _ONE - z
            along_x = along_y = along_z = np.float32(0)
            for feature in range(features):
                given = gradient[index, level.column + feature] * level.scale
                step_0 = table[row[1], feature] - table[row[0], feature]
                step_1 = table[row[3], feature] - table[row[2], feature]
                step_2 = table[row[5], feature] - table[row[4], feature]
                step_3 = table[row[7], feature] - table[row[6], feature]
                low_near = table[row[0], feature] + step_0 * x
                high_near = table[row[2], feature] + step_1 * x
                low_far = table[row[4], feature] + step_2 * x
                high_far = table[row[6], feature] + step_3 * x
                near, far = step_0 * rest_y + step_1 * y, step_2 * rest_y + step_3 * y
                along_x += given * (near * rest_z + far * z)
                along_y += given * ((high_near - low_near) * rest_z + (high_far - low_far) * z)
                near = low_near * rest_y + high_near * y
                along_z += given * (low_far * rest_y + high_far * y - near)
            of_points[number, index, 0] = along_x
            of_points[number, index, 1] = along_y
            of_points[number, index, 2] = along_z

    return slope
