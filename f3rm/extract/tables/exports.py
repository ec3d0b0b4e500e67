"""Extractions as files for other programs: one array, or one file per item.

Items are read some at a time, so memory does not grow with their number.
"""

import itertools
import math
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy.typing import DTypeLike

from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.tables.tables import FeatureSource
from f3rm.store.chunks import sync_folder, write_atomically
from f3rm.store.layout import Shape
from f3rm.store.names import place_below, safe_paths

_BATCH = 256

Transform = Callable[[Shaped[np.ndarray, "items ..."]], Shaped[np.ndarray, "items ..."]]


def export_array(
    source: FeatureSource,
    path: StrPath,
    tap: str | None = None,
    *,
    dtype: DTypeLike = np.float32,
    transform: Transform | None = None,
) -> Shape:
    """Writes one tap of all items to one ``.npy`` file, in the order of the list.

    Args:
        source: A store, or a live source, which computes them now.
        path: The file; it appears when it is complete.
        tap: The tap; None if the source has only one.
        dtype: Type in the file.
        transform: Applied to batches, e.g. :func:`flat_channels_first`.

    Returns:
        The shape of the array.

    Raises:
        CacheError: If no item has features, items differ in shape, or the file cannot be written.
    """
    path = as_path(path)
    if not len(source.indices):
        raise CacheError(f"No item has features to write to {str(path)!r}.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = _write(source, temporary, tap, np.dtype(dtype), transform)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        msg = f"{str(path)!r} cannot be written: {error}. Make room, or choose another folder."
        raise CacheError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)
    return shape


def _write(
    source: FeatureSource,
    path: Path,
    tap: str | None,
    dtype: np.dtype,
    transform: Transform | None,
) -> Shape:
    """Fills a mapped array batch by batch; the first batch decides its shape."""
    count = len(source.indices)
    starts = range(0, count, _BATCH)
    parts = (source.take(source.indices[start : start + _BATCH], tap).features for start in starts)
    arranged = (part if transform is None else transform(part) for part in parts)
    first = next(arranged)
    shape = (count, *first.shape[1:])
    array = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    for start, part in zip(starts, itertools.chain([first], arranged), strict=True):
        array[start : start + len(part)] = part
        array.flush()
    return shape


def export_per_item(
    source: FeatureSource, folder: StrPath, tap: str | None = None, *, dtype: DTypeLike = np.float32
) -> int:
    """Writes one ``.npy`` file per item below a folder; returns how many.

    An item's file is at the item's own relative path, made safe by :mod:`f3rm.store.names`, so
    that items of the same name in different folders do not collide.

    Args:
        source: A store or a live source.
        folder: The folder of the files.
        tap: The tap; None if the source has only one.
        dtype: Type in the files.

    Raises:
        UnsafeNameError: If two items would have one file (before anything is written), or a file
            would be outside ``folder``.
        CacheError: If a file cannot be written.
    """
    paths = safe_paths(source.items.names)
    folder = as_path(folder)
    for index in source.indices.tolist():
        table = source.take([index], tap)
        relative = paths[table.names[0]]
        path = place_below(folder, relative.with_name(f"{relative.name}.npy"))
        row = np.ascontiguousarray(table.features[0], dtype=dtype)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{str(path.parent)!r} cannot be made: {error}.") from error
        write_atomically(path, lambda stream, row=row: np.save(stream, row))
    return len(source.indices)


def first_channels(features: Shaped[np.ndarray, "items ..."]) -> Shaped[np.ndarray, "items ..."]:
    """Returns (items, channels, ...) of (items, ..., channels)."""
    return np.moveaxis(features, -1, 1)


def flat_channels_first(
    features: Shaped[np.ndarray, "items ..."],
) -> Shaped[np.ndarray, "items values"]:
    """Returns the values of every item in one axis, channel by channel, as torch flattens maps."""
    num_values = math.prod(features.shape[1:])  # -1 would fail without items
    return first_channels(features).reshape(len(features), num_values)


def slug_of(tap: str) -> str:
    """Returns a tap as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", tap).strip("_")
