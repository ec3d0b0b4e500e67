"""Draws Gaussians in machine code with numba; imported only where the extra ``fast`` is installed.

The picture is cut into bands of tiles, which threads take in turn. In each tile the Gaussians are
walked nearest first; of each, only the pixels inside the ellipse where it can reach the least alpha
are visited. The readable twin is :mod:`f3rm.splats.torch_rasterizer`.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.splats.projection import (
    LEAST_ALPHA,
    LEAST_TRANSMITTANCE,
    MOST_ALPHA,
    TILE,
    PinholeCamera,
    Projected,
)

_Kernel = Callable[..., Any]
_BAND = 2
"""Rows of tiles in a band: the same for every number of threads, and so are the sums."""
_SLACK = 0.05
_ROUNDING = {"contract"}


class _Scene(NamedTuple):
    """A projected scene as arrays, with the Gaussians of every tile.

    Attributes:
        ids, means, conics, opacities: As in :class:`Projected`.
        reaches: The largest sigma at which alpha is not too small; negative if it always is.
        starts: First entry of each tile in ``members``, row by row, and the end.
        members: Gaussians of the tiles, nearest first.
        columns: Tiles in a row.
    """

    ids: np.ndarray
    means: np.ndarray
    conics: np.ndarray
    opacities: np.ndarray
    reaches: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    columns: int


class KernelRasterizer:
    """One picture's Gaussians, sorted into tiles.

    Args:
        projected: The Gaussians in the picture, on the CPU.
        camera: Its camera.
        num_gaussians: Number of all Gaussians.
    """

    def __init__(self, projected: Projected, camera: PinholeCamera, num_gaussians: int) -> None:
        self._camera, self._num_gaussians = camera, num_gaussians
        first, last = (bounds.numpy() for bounds in projected.tile_bounds(camera))
        starts, members = _sorted_into_tiles()(first, last, *camera.tiles)
        reaches = (projected.opacities.double() / LEAST_ALPHA).log().numpy()
        self._scene = _Scene(
            ids=projected.ids.numpy(),
            means=projected.means.contiguous().numpy(),
            conics=projected.conics.contiguous().numpy(),
            opacities=projected.opacities.numpy(),
            reaches=reaches,
            starts=starts,
            members=members,
            columns=camera.tiles[1],
        )

    def composite(
        self, values: Float[Tensor, "gaussians channels"]
    ) -> Float[Tensor, "height width channels"]:
        """Returns values composited at every pixel."""
        picture = values.new_zeros(*self._camera.size, values.shape[1])
        source, target = values.contiguous().numpy(), picture.numpy()
        draw = _drawing(source.dtype)
        for _ in self._in_bands(lambda tiles: draw(tiles, self._scene, source, target)):
            pass
        return picture

    def adjoint(
        self, picture: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "gaussians channels"]:
        """Returns the sum over pixels of each Gaussian's weight times the pixel's values."""
        sums = picture.new_zeros(self._num_gaussians, picture.shape[-1])
        source, target = picture.contiguous().numpy(), sums.numpy()
        gather = _gathering(source.dtype)
        # Bands share Gaussians, so each has sums of its own; they are added band after band.
        for ids, parts in self._in_bands(lambda tiles: gather(tiles, self._scene, source)):
            _add_rows()(target, ids, parts)
        return sums

    def _in_bands(self, work: Callable[[tuple[int, int]], Any]) -> Iterator[Any]:
        """Yields a function's results for bands of tiles: the first, and the one after the last."""
        rows, columns = self._camera.tiles
        starts = range(0, rows, _BAND)
        bands = [(row * columns, min(row + _BAND, rows) * columns) for row in starts]
        threads = min(torch.get_num_threads(), len(bands))
        if threads == 1:
            yield from map(work, bands)
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, bands)


def _compile(function: _Kernel, **options: Any) -> Any:
    # The shape checker of the tests wraps functions in closures that numba cannot compile.
    return numba.njit(inspect.unwrap(function), nogil=True, **options)


@lru_cache
def _sorted_into_tiles() -> _Kernel:
    """Returns the function that lists the Gaussians of every tile, in their order."""

    def sort(first: Any, last: Any, rows: int, columns: int) -> tuple[Any, Any]:
        starts = np.zeros(rows * columns + 1, np.int64)
        for number in range(len(first)):
            for row in range(first[number, 1], last[number, 1]):
                for column in range(first[number, 0], last[number, 0]):
                    starts[row * columns + column + 1] += 1
        starts = np.cumsum(starts)
        members, filled = np.empty(starts[-1], np.int32), starts[:-1].copy()
        for number in range(len(first)):
            for row in range(first[number, 1], last[number, 1]):
                for column in range(first[number, 0], last[number, 0]):
                    tile = row * columns + column
                    members[filled[tile]] = number
                    filled[tile] += 1
        return starts, members

    return _compile(sort)


@lru_cache
def _add_rows() -> _Kernel:
    def add(target: Any, ids: Any, parts: Any) -> None:
        for row in range(len(ids)):
            for channel in range(target.shape[1]):
                target[ids[row], channel] += parts[row, channel]

    return _compile(add)


def _fast_exp(value: Any) -> Any:
    """Returns ``exp`` of a float32 from -87 to 0 without a call, so that a loop is vectorised.

    Below, it is that of -87. The relative error is below 3e-7.
    """
    value = max(value, np.float32(-87))
    whole = np.floor(value * np.float32(1.44269504) + np.float32(0.5))
    rest = value - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(0.5)
    series = series * rest + np.float32(1)
    series = series * rest + np.float32(1)
    exponent = np.int32((np.int32(whole) + np.int32(127)) << 23)
    return series * exponent.view(np.float32)


@lru_cache
def _row_weights(dtype: np.dtype) -> _Kernel:
    """Returns the function that computes a Gaussian's weights along a row of a tile."""
    number = dtype.type
    exp = _compile(_fast_exp, inline="always") if dtype == np.float32 else math.exp
    half, one, zero = number(0.5), number(1), number(0)
    most, least, end = number(MOST_ALPHA), number(LEAST_ALPHA), number(LEAST_TRANSMITTANCE)

    def weigh(
        mean_x: Any,
        down: Any,
        conic: tuple[Any, Any, Any],
        opacity: Any,
        span: tuple[int, int],
        place: tuple[int, int],
        transmittance: Any,
        weights: Any,
    ) -> int:
        """Fills ``weights`` and updates ``transmittance``; returns how many pixels ended.

        A pixel that has ended has a transmittance of 0.
        """
        ended = 0
        start, (row, offset) = span[0], place
        for pixel in range(span[1] - start):
            across = mean_x - (number(start + pixel) + half)
            sigma = half * (conic[0] * across * across + conic[2] * down * down)
            sigma += conic[1] * across * down
            alpha = min(most, opacity * exp(-sigma))
            before = transmittance[row, offset + pixel]
            after = before * (one - alpha)
            is_shown = (sigma >= zero) & (alpha >= least)
            goes_on = after > end
            weights[pixel] = alpha * before if is_shown & goes_on else zero
            ended += is_shown & (not goes_on) & (before > zero)
            left = after if goes_on else zero
            transmittance[row, offset + pixel] = left if is_shown else before
        return ended

    return _compile(weigh, fastmath=_ROUNDING)


def _spans(
    mean: tuple[float, float],
    conic: tuple[float, float, float],
    reach: float,
    rows: tuple[int, int],
    columns: tuple[int, int],
    spans: Any,
) -> tuple[int, int]:
    """Finds the pixels of a tile where a Gaussian may count: first and last x, row by row.

    They are those whose centres are in the ellipse of sigma up to ``reach``, and a little around
    it: there, the alpha decides. In double precision, because thin ellipses lose all of single.

    Returns:
        The first row that has such pixels, and the one after the last.
    """
    xx, xy, yy = conic
    determinant = max(xx * yy - xy * xy, 1e-30)
    limit = 2 * xx * reach
    tall, inverse = math.sqrt(limit / determinant) + _SLACK, 1 / xx
    top = max(rows[0], math.ceil(max(mean[1] - tall, -1.0) - 0.5))
    bottom = min(rows[1], math.floor(max(min(mean[1] + tall, rows[1] + 1.0), -1.0) - 0.5) + 1)
    low, high = columns
    for row in range(top, bottom):
        down = row + 0.5 - mean[1]
        half = math.sqrt(max(limit - determinant * down * down, 0.0)) * inverse + _SLACK
        middle = mean[0] - xy * down * inverse
        first, last = max(middle - half, low - 1.0), min(middle + half, high + 1.0)
        spans[row - rows[0], 0] = max(low, math.ceil(first - 0.5))
        spans[row - rows[0], 1] = min(high, math.floor(last - 0.5) + 1) if first <= last else low
    return top, bottom


@lru_cache
def _walking(dtype: np.dtype, use: _Kernel) -> _Kernel:
    """Returns the function that walks one tile and calls ``use`` with each row of weights."""
    weigh, number = _row_weights(dtype), dtype.type
    spans_of = _compile(_spans)

    def walk(tile: int, scene: _Scene, picture: Any, rows: Any, places: Any) -> None:
        top, left = tile // scene.columns * TILE, tile % scene.columns * TILE
        bottom, right = min(top + TILE, picture.shape[0]), min(left + TILE, picture.shape[1])
        transmittance = np.ones((TILE, TILE), scene.means.dtype)
        weights = np.empty(TILE, scene.means.dtype)
        spans = np.empty((TILE, 2), np.int64)
        alive = (bottom - top) * (right - left)
        for member in scene.members[scene.starts[tile] : scene.starts[tile + 1]]:
            # No slices of arrays in here: making one takes as long as two pixels.
            reach, opacity = scene.reaches[member], scene.opacities[member]
            if reach < 0:
                continue
            x, y = scene.means[member, 0], scene.means[member, 1]
            xx, xy, yy = (
                scene.conics[member, 0],
                scene.conics[member, 1],
                scene.conics[member, 2],
            )
            exact = float(xx), float(xy), float(yy)
            centre, edges = (float(x), float(y)), (left, right)
            low, high = spans_of(centre, exact, reach, (top, bottom), edges, spans)
            for row in range(low, high):
                span = spans[row - top, 0], spans[row - top, 1]
                if span[0] < span[1]:
                    down = y - (number(row) + number(0.5))
                    place = row - top, span[0] - left
                    conic = xx, xy, yy
                    alive -= weigh(x, down, conic, opacity, span, place, transmittance, weights)
                    use(weights, row, span, picture, rows, places[member])
            if alive <= 0:
                break

    return _compile(walk)


@lru_cache
def _drawing(dtype: np.dtype) -> _Kernel:
    """Returns the function that composites the values of a band."""

    def use(
        weights: Any, row: int, span: tuple[int, int], picture: Any, values: Any, place: int
    ) -> None:
        for column in range(span[0], span[1]):
            weight = weights[column - span[0]]
            if weight > 0:
                for channel in range(values.shape[1]):
                    picture[row, column, channel] += weight * values[place, channel]

    walk = _walking(dtype, _compile(use, fastmath=_ROUNDING))

    def draw(tiles: tuple[int, int], scene: _Scene, values: Any, picture: Any) -> None:
        for tile in range(tiles[0], tiles[1]):
            walk(tile, scene, picture, values, scene.ids)

    return _compile(draw)


@lru_cache
def _gathering(dtype: np.dtype) -> _Kernel:
    """Returns the function that sums a band's pixels over the weights of its Gaussians."""

    def use(
        weights: Any, row: int, span: tuple[int, int], picture: Any, sums: Any, place: int
    ) -> None:
        for column in range(span[0], span[1]):
            weight = weights[column - span[0]]
            if weight > 0:
                for channel in range(sums.shape[1]):
                    sums[place, channel] += weight * picture[row, column, channel]

    walk = _walking(dtype, _compile(use, fastmath=_ROUNDING))

    def gather(tiles: tuple[int, int], scene: _Scene, picture: Any) -> tuple[Any, Any]:
        """Returns the numbers of the band's Gaussians and their sums."""
        places, count = np.full(len(scene.ids), -1, np.int64), 0
        present = np.empty(len(scene.ids), np.int64)
        for member in scene.members[scene.starts[tiles[0]] : scene.starts[tiles[1]]]:
            if places[member] < 0:
                places[member] = count
                present[count] = scene.ids[member]
                count += 1
        sums = np.zeros((count, picture.shape[2]), picture.dtype)
        for tile in range(tiles[0], tiles[1]):
            walk(tile, scene, picture, sums, places)
        return present[:count], sums

    return _compile(gather)
