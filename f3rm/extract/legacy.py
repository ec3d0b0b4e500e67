"""Caches of f3rm's earlier extractor, read without conversion: ``chunk_*.npy`` and ``meta.pt``.

``meta.pt`` is a pickled ``{"args": settings, "image_fnames": paths}``; it is read with
``weights_only``, which executes nothing. The earlier extractor resized the short side and did not
round to whole patches; the network dropped the remainder at the right and the bottom, and the
affine computed here accounts for it. Nothing is written: if such a cache fits, its manifest exists
in memory only; otherwise the reason is given and a new cache is made in another folder.
"""

import math
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image, UnidentifiedImageError

from f3rm.errors import CacheError, CacheMismatchError
from f3rm.extract.locks.folders import META
from f3rm.store.chunks import map_chunk
from f3rm.store.geometry import PixelAffine, Size, ValidRect
from f3rm.store.items import ImageItem
from f3rm.store.manifest import ChunkRecord, ImageRecord, Manifest
from f3rm.store.npy import read_npy_header
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import ALGORITHM_VERSION, FeatureSpec

_LARGEST_META = 1 << 26
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    pickle.UnpicklingError,
)
"""Errors of torch's unpickler on bytes that are not a pickle, or not one of plain values."""


def is_legacy(folder: Path) -> bool:
    """Returns whether a folder looks like a cache of the earlier extractor."""
    return (folder / META).is_file() and any(folder.glob("chunk_*.npy"))


def open_legacy(folder: Path, items: Sequence[ImageItem], spec: FeatureSpec) -> FeatureStore:
    """Opens a cache of the earlier extractor if it holds these images in these settings.

    It holds no checksums of images, so that a changed image is not noticed.

    Args:
        folder: The cache folder.
        items: The images that it must hold, in any order.
        spec: The specification that it must have been made with.

    Raises:
        CacheMismatchError: If it does not fit; the message gives the reason.
    """
    spec = spec.settled("float32")[0]
    names, settings = read_meta(folder)
    if spec.backbone.model not in settings.values() or spec.stored.name != "none":
        raise _refused(folder, f"it was not made with {spec.backbone.model} for this codec")
    by_path = _match(folder, names, items)
    chunks = _chunks(folder, [by_path[name].name for name in names], spec.taps[0])
    manifest = Manifest(
        spec=spec,
        weights_identity="legacy",  # unknown: meta.pt does not name the weights
        algorithm=ALGORITHM_VERSION,
        key=spec.key("legacy"),
        channels=chunks[0].shape[3],
        has_text=spec.backbone.adapter == "clip",
        provenance={"library": "f3rm's earlier extractor"},
        versions={},
        chunks=tuple(chunks),
        images=tuple(_images(folder, chunks, {item.name: item for item in items}, spec)),
    )
    return FeatureStore(folder, manifest)


def read_meta(folder: Path) -> tuple[list[str], Mapping[str, object]]:
    """Reads the paths of the images and the settings from a folder's ``meta.pt``.

    Raises:
        CacheMismatchError: If it is missing, or is not what the earlier extractor writes.
    """
    path = folder / META
    try:
        if path.stat().st_size > _LARGEST_META:
            raise _refused(folder, f"{META} is too large to be one")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles that it may refuse
            plain = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(folder, f"{META} is no plain record ({reason})") from error
    if not isinstance(plain, dict):
        raise _refused(folder, f"{META} is no record")
    record = cast(dict[str, object], plain)
    names, settings = record.get("image_fnames"), record.get("args")
    if not isinstance(names, list) or not isinstance(settings, dict):
        raise _refused(folder, f"{META} lacks args or image_fnames")
    texts = cast(list[object], names)
    if not texts or not all(isinstance(name, str) for name in texts):
        raise _refused(folder, "image_fnames are no texts")
    return cast(list[str], names), cast(dict[str, object], settings)


def _match(folder: Path, names: Sequence[str], items: Sequence[ImageItem]) -> dict[str, ImageItem]:
    """Finds the item of every recorded path: the same path, or one that ends with its name."""
    found: dict[str, ImageItem] = {}
    for name in names:
        fitting = [
            item
            for item in items
            if Path(name) == item.path
            or Path(name).as_posix().endswith(f"/{item.name}")
            or name == item.name
        ]
        if len(fitting) != 1:
            raise _refused(folder, f"the dataset has {len(fitting)} images like {name!r}")
        found[name] = fitting[0]
    if len({item.name for item in found.values()}) != len(items) or len(names) != len(items):
        raise _refused(folder, f"it has {len(names)} images, the dataset {len(items)}")
    return found


def _chunks(folder: Path, names: Sequence[str], tap: str) -> list[ChunkRecord]:
    """Describes the chunk files; together they hold the images in order."""
    records: list[ChunkRecord] = []
    start = 0
    for path in sorted(folder.glob("chunk_*.npy")):
        record = _chunk(folder, path, names[start:], tap)
        records.append(record)
        start += record.shape[0]
    if start != len(names):
        raise _refused(folder, f"its chunks hold {start} images, {META} lists {len(names)}")
    if len({record.shape[3] for record in records}) != 1:
        raise _refused(folder, "its chunks have different numbers of channels")
    return records


def _chunk(folder: Path, path: Path, names: Sequence[str], tap: str) -> ChunkRecord:
    try:
        length = path.stat().st_size
        with path.open("rb") as stream:
            header = read_npy_header(stream, length)
        shape, dtype = header.shape, header.dtype
        if len(shape) != 4 or dtype.name not in ("float16", "float32"):
            raise _refused(folder, f"{path.name} holds {shape} {dtype}")
        four = (shape[0], shape[1], shape[2], shape[3])
        part = tuple(names[: shape[0]])
        stored = "float16" if dtype.name == "float16" else "float32"
        if len(part) != shape[0] or math.prod(shape) == 0:
            raise _refused(folder, f"{path.name} holds {shape[0]} images, not {len(part)}")
        taps = {tap: four[1:]}
        record = ChunkRecord(path.name, length, four, stored, "", 0.0, part, taps)
        map_chunk(folder, record)
    except (OSError, ValueError, CacheError) as error:
        raise _refused(folder, f"{path.name} cannot be read ({error})") from error
    return record


def _images(
    folder: Path,
    chunks: Sequence[ChunkRecord],
    items: Mapping[str, ImageItem],
    spec: FeatureSpec,
) -> list[ImageRecord]:
    records: list[ImageRecord] = []
    for number, chunk in enumerate(chunks):
        grid = chunk.shape[1], chunk.shape[2]
        for row, name in enumerate(chunk.images):
            path = items[name].path
            try:
                with Image.open(path) as image:
                    size = (image.height, image.width)
                status = path.stat()
            except (OSError, UnidentifiedImageError) as error:
                raise _refused(folder, f"the image {name!r} cannot be read ({error})") from error
            affine = _affine(folder, size, grid, spec.prep.size)
            file = status.st_size, status.st_mtime_ns, "", size  # "": no content hash is known
            valid = ValidRect.full(grid)
            records.append(ImageRecord(name, *file, number, row, affine, valid))
    return records


def _affine(folder: Path, size: Size, grid: Size, short_side: int | Size | None) -> PixelAffine:
    """Returns the pixel-to-cell map of an image whose remainder the network dropped."""
    if not isinstance(short_side, int):
        raise _refused(folder, "it was made of images whose shorter side was resized")
    # The patch size is not recorded: the grid tells it.
    patch = short_side // min(grid)
    resized = [short_side * side // min(size) for side in size]
    if not patch or [side // patch for side in resized] != list(grid):
        raise _refused(folder, f"its maps of {grid} cells do not fit images of {size} pixels")
    scale_y, scale_x = (side / pixels / patch for side, pixels in zip(resized, size, strict=True))
    return PixelAffine(scale_x, 0.5 * scale_x - 0.5, scale_y, 0.5 * scale_y - 0.5)


def _refused(folder: Path, reason: str) -> CacheMismatchError:
    return CacheMismatchError(
        f"The cache of f3rm's earlier extractor in {str(folder)!r} does not fit: {reason}. It is "
        "kept; extract again."
    )
