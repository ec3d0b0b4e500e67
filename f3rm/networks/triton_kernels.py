"""The hash grid's kernel in Triton; imported only where Triton is installed.

*Source:* Instant-NGP (Müller et al. 2022), section 3: levels, trilinear weights and the hash of
equation 4, in 32 bits because tables are powers of two. The readable twins are
:meth:`f3rm.networks.torch_network.HashGrid.reference` and Nerfstudio's
``HashEncoding.pytorch_fwd``.
"""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def _jit(function: Callable[..., Any]) -> Any:
    # The shape checker of the tests wraps functions in closures that Triton cannot read. Without
    # specialisation one compilation serves every number of points.
    compiled: Any = triton.jit
    return compiled(inspect.unwrap(function), do_not_specialize=["num_points"])


@_jit
def _locate(points: "Any", bounds: "Any", layout: "Any", index: "Any", is_point: "Any") -> "Any":
    """Returns a block's lower corners times a level's strides, and the places in the cells."""
    scale, bottom, top = tl.load(bounds), tl.load(bounds + 1), tl.load(bounds + 2)
    x = tl.load(points + index * 3, mask=is_point, other=0.0) * scale
    y = tl.load(points + index * 3 + 1, mask=is_point, other=0.0) * scale
    z = tl.load(points + index * 3 + 2, mask=is_point, other=0.0) * scale
    low_x, low_y, low_z = tl.floor(x), tl.floor(y), tl.floor(z)
    # What is no number fails both comparisons: only the table's memory is read.
    low_x = tl.where(low_x <= top, tl.where(low_x >= bottom, low_x, bottom), top)
    low_y = tl.where(low_y <= top, tl.where(low_y >= bottom, low_y, bottom), top)
    low_z = tl.where(low_z <= top, tl.where(low_z >= bottom, low_z, bottom), top)
    key_x = low_x.to(tl.int32) * tl.load(layout)
    key_y = low_y.to(tl.int32) * tl.load(layout + 1)
    key_z = low_z.to(tl.int32) * tl.load(layout + 2)
    return key_x, key_y, key_z, x - low_x, y - low_y, z - low_z


@_jit
def grid(  # noqa: PLR0913, PLR0917 (a kernel takes tensors and sizes)
    points: "Any",
    table: "Any",
    out: "Any",
    gradient: "Any",
    of_table: "Any",
    of_points: "Any",
    bounds: "Any",
    layout: "Any",
    num_points: "Any",
    levels: tl.constexpr,
    features: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Interpolates one level at a block of points, or computes what it adds to the gradients.

    Axis 0 of a launch counts blocks of points, axis 1 levels: programs that run together read one
    level's table, which fits the GPU's cache. All tensors are contiguous; sums are float32.

    Args:
        points: Positions, float32 (points, 3).
        table: Rows of all levels, float32 (rows, features).
        out: Encodings of any precision (points, levels * features), written; None for gradients.
        gradient: The encodings' gradient in any precision, of the same shape; None without.
        of_table: The table's gradient, float32, added to by atomic operations; None if unwanted.
        of_points: The positions' by level, float32 (levels, points, 3), written; None if unwanted.
        bounds: Scale, least and largest lower corner of each level, float32 (levels, 3).
        layout: Strides along x, y, z, mask and first row of each level, int32 (levels, 5): a mask
            of -1 adds a corner's three products, another one hashes them.
        num_points: Number of points.
        levels: Number of levels.
        features: Features per level.
        width: The next power of two.
        block: Points of a program.
    """
    level = tl.program_id(1)
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_point, column = index < num_points, tl.arange(0, width)[None, :]
    bounds, layout = bounds + level * 3, layout + level * 5
    key_x, key_y, key_z, x, y, z = _locate(points, bounds, layout, index, is_point)
    mask = is_point[:, None] & (column < features)
    place = (index[:, None] * levels + level) * features + column
    values = tl.zeros((block, width), tl.float32)
    if gradient is not None:
        values += tl.load(gradient + place, mask=mask, other=0.0)
    along_x = tl.zeros((block,), tl.float32)
    along_y = tl.zeros((block,), tl.float32)
    along_z = tl.zeros((block,), tl.float32)
    for corner in tl.static_range(8):
        right, up, far = corner & 1, (corner >> 1) & 1, corner >> 2
        row_x, row_y = key_x + right * tl.load(layout), key_y + up * tl.load(layout + 1)
        row_z, hashed = key_z + far * tl.load(layout + 2), tl.load(layout + 3)
        row = tl.where(hashed < 0, row_x + row_y + row_z, (row_x ^ row_y ^ row_z) & hashed)
        cell = (tl.load(layout + 4) + row).to(tl.int64)[:, None] * features + column
        side_x, side_y = x if right else 1.0 - x, y if up else 1.0 - y
        side_z = z if far else 1.0 - z
        weight = (side_x * side_y * side_z)[:, None]
        if out is not None:
            values += weight * tl.load(table + cell, mask=mask, other=0.0)
        if of_table is not None:
            tl.atomic_add(of_table + cell, values * weight, mask=mask, sem="relaxed")
        if of_points is not None:
            value = tl.sum(values * tl.load(table + cell, mask=mask, other=0.0), axis=1)
            along_x += (2 * right - 1) * value * side_y * side_z
            along_y += (2 * up - 1) * value * side_x * side_z
            along_z += (2 * far - 1) * value * side_x * side_y
    if out is not None:
        tl.store(out + place, values, mask=mask)
    if of_points is not None:
        target = of_points + (level.to(tl.int64) * num_points + index) * 3
        tl.store(target, along_x * tl.load(bounds), mask=is_point)
        tl.store(target + 1, along_y * tl.load(bounds), mask=is_point)
        tl.store(target + 2, along_z * tl.load(bounds), mask=is_point)
