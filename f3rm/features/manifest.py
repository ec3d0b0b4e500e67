"""What a finished cache says about itself: ``manifest.json``, schema version 1.

The manifest is written last and is the only thing that makes chunks valid. Reading it is strict:
every field has its type, every number its bounds, every file name stays in the folder; nothing is
opened or allocated on its word alone.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, cast

from f3rm._types import BackboneRef, CacheError, F3rmError
from f3rm.features import checked
from f3rm.features.geometry import PixelAffine, ValidRect
from f3rm.features.records import ChunkRecord, ImageRecord
from f3rm.features.spec import FeatureSpec, Interpolation, StoredDtype

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

_CHUNK_NAME = re.compile(r"chunk_\d{4,9}\.npy")
_ITEM_SIZES = {"float16": 2, "float32": 4}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Manifest:
    """The whole record of a cache.

    Attributes:
        spec: What was extracted.
        weights_identity: What the weights were: a file's hash, or a hub name.
        algorithm: Version of the preparation.
        key: Hash of the specification, the weights and the algorithm.
        channels: Feature channels C.
        has_text: Whether the backbone has a text tower.
        provenance: What the backbone says about itself.
        versions: Versions of the software that made the cache.
        chunks: The files.
        images: The images, in the order of the dataset.
    """

    spec: FeatureSpec
    weights_identity: str
    algorithm: int
    key: str
    channels: int
    has_text: bool
    provenance: dict[str, str]
    versions: dict[str, str]
    chunks: tuple[ChunkRecord, ...]
    images: tuple[ImageRecord, ...]

    def to_json(self) -> str:
        """Returns the file's text."""
        dtypes = {chunk.dtype for chunk in self.chunks}
        codec_error = max((chunk.codec_error for chunk in self.chunks), default=0.0)
        plain = {
            "schema_version": SCHEMA_VERSION,
            "feature_type": self.spec.name,
            "tap": self.spec.tap,
            "channels": self.channels,
            "has_text": self.has_text,
            "dtype": "float32" if "float32" in dtypes else "float16",
            "codec": {"name": "none", "error": codec_error},
            "spec": self.spec.to_dict(),
            "weights_identity": self.weights_identity,
            "algorithm": self.algorithm,
            "key": self.key,
            "provenance": self.provenance,
            "versions": self.versions,
            "chunks": [asdict(chunk) for chunk in self.chunks],
            "images": [asdict(image) for image in self.images],
        }
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``manifest.json`` in a cache folder; looks at no other file.

    Raises:
        CacheError: If there is none, or it is damaged, of a newer schema, or names files outside
            the folder.
    """
    path = folder / MANIFEST
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = (
            f"read_manifest: folder must hold a finished cache, got {str(folder)!r} without "
            f"{MANIFEST}. Run f3rm extract."
        )
        raise CacheError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(_damaged(path, f"it is not readable JSON ({error})")) from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        msg = (
            f"read_manifest: {str(path)!r} must have schema version {SCHEMA_VERSION} or older, got "
            f"{version}. It was written by a newer f3rm: update f3rm, or extract again with "
            "--force."
        )
        raise CacheError(msg)
    try:
        return _manifest(plain)
    except (checked.InvalidFieldError, F3rmError) as error:
        raise CacheError(_damaged(path, str(error))) from error


def _damaged(path: Path, reason: str) -> str:
    return (
        f"read_manifest: {str(path)!r} must be a complete manifest, but {reason}. Extract again "
        "with f3rm extract."
    )


def _refuse_constant(name: str) -> float:
    msg = f"{name} is no JSON number"
    raise ValueError(msg)


def _manifest(plain: object) -> Manifest:
    record = checked.mapping(plain, "the manifest")
    if checked.integer(record, "schema_version") != SCHEMA_VERSION:
        raise checked.InvalidFieldError(f"schema_version is {record['schema_version']!r}")
    chunks = tuple(_chunk(item) for item in checked.items_of(record, "chunks"))
    images = tuple(_image(item) for item in checked.items_of(record, "images"))
    manifest = Manifest(
        spec=_spec(checked.mapping(record.get("spec"), "spec")),
        weights_identity=checked.text(record, "weights_identity"),
        algorithm=checked.integer(record, "algorithm"),
        key=checked.text(record, "key"),
        channels=checked.integer(record, "channels"),
        has_text=checked.boolean(record, "has_text"),
        provenance=checked.texts(record, "provenance"),
        versions=checked.texts(record, "versions"),
        chunks=chunks,
        images=images,
    )
    _check_consistent(manifest)
    return manifest


def _check_consistent(manifest: Manifest) -> None:
    """Checks that key, chunks and images agree with one another."""
    if manifest.key != manifest.spec.key(manifest.weights_identity, manifest.algorithm):
        raise checked.InvalidFieldError("key does not belong to its settings")
    files = [chunk.file for chunk in manifest.chunks]
    names = [image.name for image in manifest.images]
    if len(set(files)) != len(files) or len(set(names)) != len(names):
        raise checked.InvalidFieldError("a chunk or an image is listed twice")
    if sum(len(chunk.images) for chunk in manifest.chunks) != len(names) or not names:
        raise checked.InvalidFieldError("chunks and images do not list the same images")
    for image in manifest.images:
        _check_place(image, manifest)


def _check_place(image: ImageRecord, manifest: Manifest) -> None:
    if image.chunk >= len(manifest.chunks):
        raise checked.InvalidFieldError(
            f"image {image.name!r} is in chunk {image.chunk}, which does not exist"
        )
    chunk = manifest.chunks[image.chunk]
    if image.row >= len(chunk.images) or chunk.images[image.row] != image.name:
        raise checked.InvalidFieldError(
            f"image {image.name!r} is not row {image.row} of {chunk.file}"
        )
    if chunk.shape[3] != manifest.channels:
        raise checked.InvalidFieldError(
            f"{chunk.file} has {chunk.shape[3]} channels, not {manifest.channels}"
        )
    rows, cols = image.valid.cells()
    inside = rows.start >= 0 and cols.start >= 0
    if not (inside and 0 < rows.stop <= chunk.shape[1] and 0 < cols.stop <= chunk.shape[2]):
        raise checked.InvalidFieldError(
            f"the valid rectangle of {image.name!r} is not inside its map"
        )
    if not (rows and cols):
        raise checked.InvalidFieldError(f"the valid rectangle of {image.name!r} is empty")


def _spec(plain: checked.Plain) -> FeatureSpec:
    backbone = checked.mapping(plain.get("backbone"), "backbone")
    background = checked.numbers(plain, "background", 3)
    return FeatureSpec(
        name=checked.text(plain, "name"),
        backbone=BackboneRef(
            *(checked.text(backbone, part) for part in ("adapter", "model", "weights"))
        ),
        tap=checked.text(plain, "tap"),
        short_side=checked.integer(plain, "short_side"),
        interpolation=cast(
            Interpolation, checked.one_of(plain, "interpolation", ("bicubic", "bilinear"))
        ),
        background=(background[0], background[1], background[2]),
        dtype=_dtype(plain),
    )


def _chunk(item: object) -> ChunkRecord:
    plain = checked.mapping(item, "a chunk")
    file, images, shape = (
        checked.text(plain, "file"),
        checked.items_of(plain, "images"),
        checked.items_of(plain, "shape"),
    )
    if not _CHUNK_NAME.fullmatch(file):
        raise checked.InvalidFieldError(f"file {file!r} is no chunk of this folder")
    if not all(isinstance(name, str) for name in images):
        raise checked.InvalidFieldError(f"images of {file} must be texts")
    sizes = tuple(checked.bounded(size, "shape", 1) for size in shape)
    dtype, length = _dtype(plain), checked.integer(plain, "bytes")
    if len(sizes) != 4 or sizes[0] != len(images):
        raise checked.InvalidFieldError(
            f"the shape {shape} of {file} does not fit its {len(images)} images"
        )
    if math.prod(sizes) * _ITEM_SIZES[dtype] >= length:
        raise checked.InvalidFieldError(f"{file} cannot have {length} bytes and the shape {shape}")
    error = checked.number(plain.get("codec_error"), "codec_error")
    checksum = checked.text(plain, "checksum")
    four = (sizes[0], sizes[1], sizes[2], sizes[3])
    return ChunkRecord(file, length, four, dtype, checksum, error, tuple(images))


def chunk_from_dict(plain: object) -> ChunkRecord:
    """Rebuilds a :class:`ChunkRecord` from its JSON form.

    Raises:
        CacheError: If a field is missing or out of bounds.
    """
    try:
        return _chunk(plain)
    except checked.InvalidFieldError as error:
        msg = (
            f"chunk_from_dict: plain must be a complete chunk record, but {error}. Extract that "
            "chunk again."
        )
        raise CacheError(msg) from error


def _image(item: object) -> ImageRecord:
    plain = checked.mapping(item, "an image")
    size = checked.items_of(plain, "size")
    if len(size) != 2:
        raise checked.InvalidFieldError(f"size must be height and width, not {size}")
    error = plain.get("error")
    if error is not None:
        raise checked.InvalidFieldError(f"image {plain.get('name')!r} has an error: {error!r}")
    return ImageRecord(
        name=checked.text(plain, "name"),
        bytes=checked.integer(plain, "bytes"),
        mtime_ns=checked.bounded(plain.get("mtime_ns"), "mtime_ns", -(2**63), 2**63),
        content=checked.text(plain, "content"),
        size=(checked.bounded(size[0], "size", 1), checked.bounded(size[1], "size", 1)),
        chunk=checked.integer(plain, "chunk"),
        row=checked.integer(plain, "row"),
        affine=_floats(
            plain, "affine", PixelAffine, ("scale_x", "offset_x", "scale_y", "offset_y")
        ),
        valid=_floats(plain, "valid", ValidRect, ("x_min", "y_min", "x_max", "y_max")),
    )


def _floats(
    plain: checked.Plain, key: str, kind: Callable[..., Value], names: tuple[str, ...]
) -> Value:
    record = checked.mapping(plain.get(key), key)
    return kind(**{name: checked.number(record.get(name), name) for name in names})


def _dtype(plain: checked.Plain) -> StoredDtype:
    return cast(StoredDtype, checked.one_of(plain, "dtype", tuple(_ITEM_SIZES)))
