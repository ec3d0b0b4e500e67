"""The records of a cache, one per chunk and one per image, and reading each from JSON.

The manifest lists them, and an unfinished cache's journal notes them chunk by chunk. Every field
read has its type and its bounds.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from f3rm.errors import BackboneRef
from f3rm.store import json_fields as fields
from f3rm.store.codecs import (
    CODEC_FILE,
    CodecArray,
    CodecName,
    CodecRecord,
    CodedDtype,
    CosineError,
)
from f3rm.store.geometry import Fit, PixelAffine, Size, ValidRect
from f3rm.store.items import ImageItem
from f3rm.store.json_fields import InvalidFieldError
from f3rm.store.spec import FeatureSpec, Interpolation, Precision, StoredDtype

_CHUNK_NAME = re.compile(r"chunk_\d{4,9}\.npy")
_ITEM_SIZES = {"float16": 2, "float32": 4, "int8": 1}

Value = TypeVar("Value")


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk file.

    Attributes:
        file: Name of the file in the cache folder.
        bytes: Length of the file.
        shape: Images, rows, columns, channels.
        dtype: ``float16``, ``float32`` or ``int8``.
        checksum: ``xxh3_128:`` and the hash of the whole file.
        codec_error: Largest relative error of a cell from rounding to ``dtype``.
        images: Names of the images, in the order of the rows.
        cosine_error: Error of the codec in this chunk; None if it was not measured.
    """

    file: str
    bytes: int
    shape: tuple[int, int, int, int]
    dtype: CodedDtype
    checksum: str
    codec_error: float
    images: tuple[str, ...]
    cosine_error: CosineError | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image, and its feature map's chunk and geometry.

    Attributes:
        name: Path relative to the dataset, as in ``transforms.json``.
        bytes: Length of the image file when it was extracted.
        mtime_ns: Its modification time in nanoseconds.
        content: Hash (xxh3_128) of its bytes.
        size: Height and width in pixels.
        chunk: Index of the chunk.
        row: Index within the chunk.
        affine: From pixel to feature coordinates.
        valid: Part of the feature map that shows the image.
    """

    name: str
    bytes: int
    mtime_ns: int
    content: str
    size: Size
    chunk: int
    row: int
    affine: PixelAffine
    valid: ValidRect


@dataclass(frozen=True)
class FailedRecord:
    """An image that has no features.

    Attributes:
        name: Path relative to the dataset.
        bytes: Length of the file when it failed; 0 if there was none.
        mtime_ns: Its modification time in nanoseconds; 0 if there was none.
        error: Why it failed.
    """

    name: str
    bytes: int
    mtime_ns: int
    error: str

    @classmethod
    def of(cls, item: ImageItem, error: str) -> "FailedRecord":
        """Records the file as it is now."""
        try:
            status = item.path.stat()
        except OSError:
            return cls(item.name, 0, 0, error)
        return cls(item.name, status.st_size, status.st_mtime_ns, error)


def _window_of(plain: fields.Plain) -> tuple[int, int] | None:
    if plain.get("window") is None:
        return None
    side, step = fields.numbers(plain, "window", 2)
    return int(side), int(step)


def spec_of(plain: fields.Plain) -> FeatureSpec:
    """Rebuilds the specification.

    Raises:
        InvalidFieldError: If a field is missing or out of bounds.
        FeatureTypeError: If a field's value is not allowed.
    """
    backbone = fields.mapping(plain.get("backbone"), "backbone")
    background = fields.numbers(plain, "background", 3)
    return FeatureSpec(
        name=fields.text(plain, "name"),
        backbone=BackboneRef(
            *(fields.text(backbone, part) for part in ("adapter", "model", "weights"))
        ),
        tap=fields.text(plain, "tap"),
        short_side=fields.integer(plain, "short_side"),
        interpolation=cast(
            Interpolation, fields.one_of(plain, "interpolation", ("bicubic", "bilinear"))
        ),
        background=(background[0], background[1], background[2]),
        dtype=cast(StoredDtype, fields.one_of(plain, "dtype", ("float16", "float32"))),
        precision=cast(
            Precision, fields.one_of(plain, "precision", ("float32", "bfloat16", "float16"))
        ),
        codec=fields.text(plain, "codec"),
        fit=cast(Fit, fields.one_of(plain, "fit", ("stretch", "square"))),
        window=_window_of(plain),
        scales=tuple(fields.number(scale, "scales") for scale in fields.items_of(plain, "scales")),
    )


def chunk_of(item: object) -> ChunkRecord:
    """Rebuilds a chunk's record.

    Raises:
        InvalidFieldError: If a field is missing or out of bounds.
    """
    plain = fields.mapping(item, "a chunk")
    file, images, shape = (
        fields.text(plain, "file"),
        fields.items_of(plain, "images"),
        fields.items_of(plain, "shape"),
    )
    if not _CHUNK_NAME.fullmatch(file):
        raise InvalidFieldError(f"file {file!r} is not a chunk of this folder")
    if not all(isinstance(name, str) for name in images):
        raise InvalidFieldError(f"images of {file} must be texts")
    sizes = tuple(fields.bounded(size, "shape", 1) for size in shape)
    dtype = cast(CodedDtype, fields.one_of(plain, "dtype", tuple(_ITEM_SIZES)))
    length = fields.integer(plain, "bytes")
    if len(sizes) != 4 or sizes[0] != len(images):
        raise InvalidFieldError(
            f"the shape {sizes} of {file} does not fit its {len(images)} images"
        )
    if math.prod(sizes) * _ITEM_SIZES[dtype] >= length:
        raise InvalidFieldError(f"{file} cannot have {length} bytes and the shape {sizes}")
    return ChunkRecord(
        file=file,
        bytes=length,
        shape=(sizes[0], sizes[1], sizes[2], sizes[3]),
        dtype=dtype,
        checksum=fields.text(plain, "checksum"),
        codec_error=fields.number(plain.get("codec_error"), "codec_error"),
        images=tuple(images),
        cosine_error=_cosine_error(plain.get("cosine_error")),
    )


def image_of(item: object) -> ImageRecord:
    """Rebuilds an image's record.

    Raises:
        InvalidFieldError: If a field is missing or out of bounds.
    """
    plain = fields.mapping(item, "an image")
    size = fields.items_of(plain, "size")
    if len(size) != 2:
        raise InvalidFieldError("size must be height and width")
    name = fields.text(plain, "name")
    if "error" in plain:  # of a time when images that failed had no record of their own
        raise InvalidFieldError(f"image {name!r} has a record of an earlier f3rm")
    return ImageRecord(
        name=name,
        bytes=fields.integer(plain, "bytes"),
        mtime_ns=_time(plain),
        content=fields.text(plain, "content"),
        size=(fields.bounded(size[0], "size", 1), fields.bounded(size[1], "size", 1)),
        chunk=fields.integer(plain, "chunk"),
        row=fields.integer(plain, "row"),
        affine=_floats(
            plain, "affine", PixelAffine, ("scale_x", "offset_x", "scale_y", "offset_y")
        ),
        valid=_floats(plain, "valid", ValidRect, ("x_min", "y_min", "x_max", "y_max")),
    )


def failed_of(item: object) -> FailedRecord:
    """Rebuilds the record of an image that failed.

    Raises:
        InvalidFieldError: If a field is missing or out of bounds.
    """
    plain = fields.mapping(item, "a failed image")
    return FailedRecord(
        name=fields.text(plain, "name"),
        bytes=fields.integer(plain, "bytes"),
        mtime_ns=_time(plain),
        error=fields.text(plain, "error"),
    )


def codec_of(item: object) -> CodecRecord:
    """Rebuilds the codec's record.

    Raises:
        InvalidFieldError: If a field is missing or out of bounds, or a file is not a codec's.
    """
    plain = fields.mapping(item, "codec")
    name = cast(CodecName, fields.one_of(plain, "name", ("none", "int8", "pca")))
    arrays = tuple(_array(array) for array in fields.items_of(plain, "arrays"))
    return CodecRecord(name, arrays, _cosine_error(plain.get("cosine_error")))


def _array(item: object) -> CodecArray:
    plain = fields.mapping(item, "a codec's array")
    file = fields.text(plain, "file")
    if not CODEC_FILE.fullmatch(file):
        raise InvalidFieldError(f"file {file!r} is not a codec's file in this folder")
    shape = tuple(fields.bounded(size, "shape", 1) for size in fields.items_of(plain, "shape"))
    if not 1 <= len(shape) <= 2:
        raise InvalidFieldError(f"the shape of {file} must have one or two sides")
    length = fields.integer(plain, "bytes")
    if math.prod(shape) * _ITEM_SIZES["float32"] >= length:
        raise InvalidFieldError(f"{file} cannot have {length} bytes and the shape {shape}")
    return CodecArray(
        name=fields.text(plain, "name"),
        file=file,
        bytes=length,
        shape=shape,
        dtype=fields.one_of(plain, "dtype", ("float32",)),
        checksum=fields.text(plain, "checksum"),
    )


def _cosine_error(item: object) -> CosineError | None:
    if item is None:
        return None
    plain = fields.mapping(item, "cosine_error")
    mean, p99, worst = (fields.number(plain.get(part), part) for part in ("mean", "p99", "worst"))
    return CosineError(fields.integer(plain, "num"), mean, p99, worst)


def _time(plain: fields.Plain) -> int:
    return fields.bounded(plain.get("mtime_ns"), "mtime_ns", -(2**63), 2**63)


def _floats(
    plain: fields.Plain, key: str, kind: Callable[..., Value], names: tuple[str, ...]
) -> Value:
    record = fields.mapping(plain.get(key), key)
    return kind(**{name: fields.number(record.get(name), name) for name in names})
