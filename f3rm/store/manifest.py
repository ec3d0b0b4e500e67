"""The manifest of a finished cache, ``manifest.json``, and its records.

The manifest is written last; chunks without one do not count. It is read as untrusted: msgspec
checks that every field has its type and every number its bounds, :func:`read_manifest` that the
records agree, every file name stays in the folder, and no size in it is allocated before the files
have been checked. An unfinished cache's journal notes the same records chunk by chunk.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from f3rm.errors import CacheError, F3rmError, printable
from f3rm.store.codecs import CodecName, CodedDtype, CosineError
from f3rm.store.geometry import PixelAffine, ValidRect
from f3rm.store.items import ImageItem
from f3rm.store.spec import FeatureSpec

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"

_LARGEST = 1 << 48
_LATEST = 1 << 62
_ITEM_SIZES = {"float16": 2, "float32": 4, "int8": 1}
_NO_RECORD = (msgspec.MsgspecError, ValueError, RecursionError, F3rmError)

Count = Annotated[int, Meta(ge=0, lt=_LARGEST)]
Side = Annotated[int, Meta(ge=1, lt=_LARGEST)]
Time = Annotated[int, Meta(gt=-_LATEST, lt=_LATEST)]
Number = Annotated[float, Meta(gt=-_LARGEST, lt=_LARGEST)]
ChunkFile = Annotated[str, Meta(pattern=r"^chunk_[0-9]{4,9}\.npy\Z")]
CodecFile = Annotated[str, Meta(pattern=r"^codec_(scale|offset|mean|basis)\.npy\Z")]


@dataclass(frozen=True)
class CodecArray:
    """The record of one fitted array of a codec, a ``.npy`` file of float32 beside the chunks.

    Attributes:
        name: ``scale``, ``offset``, ``mean`` or ``basis``.
        file: Name of the file in the cache folder.
        bytes: Length of the file.
        shape: Shape of the array.
        checksum: ``xxh3_128:`` and the hash of the whole file.
    """

    name: str
    file: CodecFile
    bytes: Count
    shape: tuple[Side, ...]
    checksum: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 2:
            raise ValueError(f"the shape of {self.file} must have one or two sides")
        _check_bytes(self.file, self.bytes, self.shape, "float32")


@dataclass(frozen=True)
class CodecRecord:
    """The codec.

    Attributes:
        name: ``none``, ``int8`` or ``pca``.
        arrays: Its fitted arrays.
        cosine_error: Its error over all stored vectors; None if it was not measured.
    """

    name: CodecName = "none"
    arrays: tuple[CodecArray, ...] = ()
    cosine_error: CosineError | None = None

    @property
    def hash(self) -> str:
        """Hash of the fitted arrays; empty if there are none."""
        text = " ".join(array.checksum for array in self.arrays)
        return xxhash.xxh3_128(text.encode()).hexdigest() if text else ""


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
        taps: Tap -> shape of its value for one image, channels last, in the order of storage.
        cosine_error: Error of the codec in this chunk; None if it was not measured.
    """

    file: ChunkFile
    bytes: Count
    shape: tuple[Side, Side, Side, Side]
    dtype: CodedDtype
    checksum: str
    codec_error: Number
    images: tuple[str, ...]
    taps: dict[str, tuple[Side, ...]]
    cosine_error: CosineError | None = None

    def __post_init__(self) -> None:
        if self.shape[0] != len(self.images):
            raise ValueError(
                f"the shape {self.shape} of {self.file} does not fit its {len(self.images)} images"
            )
        _check_bytes(self.file, self.bytes, self.shape, self.dtype)


@dataclass(frozen=True)
class ImageRecord:
    """One image or video, and the chunk and geometry of its features.

    Attributes:
        name: Path relative to the dataset, as in ``transforms.json``.
        bytes: Length of the file when it was extracted.
        mtime_ns: Its modification time in nanoseconds.
        content: Hash (xxh3_128) of its bytes.
        size: Height and width in pixels.
        chunk: Index of the chunk.
        row: Index within the chunk.
        affine: From pixel to feature coordinates.
        valid: Part of the feature map that shows the image.
    """

    name: str
    bytes: Count
    mtime_ns: Time
    content: str
    size: tuple[Side, Side]
    chunk: Count
    row: Count
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
    bytes: Count
    mtime_ns: Time
    error: str

    @classmethod
    def of(cls, item: ImageItem, error: str) -> "FailedRecord":
        """Records the file as it is now."""
        try:
            status = item.path.stat()
        except OSError:
            return cls(item.name, 0, 0, error)
        return cls(item.name, status.st_size, status.st_mtime_ns, error)


@dataclass(frozen=True)
class Manifest:
    """The record of a cache.

    Attributes:
        spec: The features' specification.
        weights_identity: A weight file's hash, or a hub name.
        algorithm: Version of the preparation.
        key: Hash of the specification, the weights and the algorithm.
        channels: Feature channels C.
        has_text: Whether texts can be embedded into the features' space.
        provenance: The backbone's own description of its library and weights.
        versions: Versions of the software that made the cache.
        chunks: The chunk files.
        images: The images, in the order of the dataset.
        failed: Images of the dataset that have no features.
        codec: The codec and its fitted arrays.
    """

    spec: FeatureSpec
    weights_identity: str
    algorithm: Count
    key: str
    channels: Side
    has_text: bool
    provenance: dict[str, str]
    versions: dict[str, str]
    chunks: tuple[ChunkRecord, ...]
    images: tuple[ImageRecord, ...]
    failed: tuple[FailedRecord, ...] = ()
    codec: CodecRecord = field(default_factory=CodecRecord)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the cache's files besides the manifest."""
        return tuple(record.file for record in (*self.chunks, *self.codec.arrays))

    def to_json(self) -> str:
        """Returns the file's text."""
        plain = {"schema_version": SCHEMA_VERSION, **vars(self)}
        return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode() + "\n"


@dataclass(frozen=True)
class _Version:
    schema_version: int


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``manifest.json`` in a cache folder, without the files that it names.

    Raises:
        CacheError: If there is none, or it is damaged, of a newer schema, or names files outside
            the folder.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(
            f"There is no finished cache in {str(folder)!r}: no {MANIFEST}. Run f3rm extract."
        ) from error
    except OSError as error:
        raise _damaged(path, str(error)) from error
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise CacheError(
                f"{str(path)!r} must have schema version {SCHEMA_VERSION} or older, got "
                f"{version}. It was written by a newer f3rm: update f3rm, or extract again with "
                "--force."
            )
        if version < SCHEMA_VERSION:
            raise _damaged(path, f"an earlier f3rm wrote it (schema version {version})")
    except _NO_RECORD[:-1] as error:
        raise _damaged(path, str(error)) from error
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        _check_consistent(manifest)
    except _NO_RECORD as error:
        raise _damaged(path, str(error)) from error
    return manifest


def _damaged(path: Path, reason: str) -> CacheError:
    return CacheError(
        f"{str(path)!r} is not a complete manifest: {printable(reason)}. Extract again with "
        "f3rm extract."
    )


def _check_bytes(file: str, length: int, shape: tuple[int, ...], dtype: str) -> None:
    if math.prod(shape) * _ITEM_SIZES[dtype] >= length:
        raise ValueError(f"{file} cannot have {length} bytes and the shape {shape}")


def _check_consistent(manifest: Manifest) -> None:
    """Checks that key, chunks, codec and images agree with one another."""
    if manifest.key != manifest.spec.key(manifest.weights_identity, manifest.algorithm):
        raise ValueError("key is not the hash of its settings")
    files = [chunk.file for chunk in manifest.chunks]
    names = [image.name for image in (*manifest.images, *manifest.failed)]
    if not files:
        raise ValueError("it has no chunks")
    if len(set(files)) != len(files) or len(set(names)) != len(names):
        raise ValueError("a chunk or an image is listed twice")
    if sum(len(chunk.images) for chunk in manifest.chunks) != len(manifest.images) or not names:
        raise ValueError("chunks and images do not list the same images")
    bases = [array.shape[0] for array in manifest.codec.arrays if array.name == "basis"]
    for chunk in manifest.chunks:
        _check_chunk(chunk, manifest, stored=bases[0] if bases else manifest.channels)
    for image in manifest.images:
        _check_image(image, manifest)


def _check_chunk(chunk: ChunkRecord, manifest: Manifest, *, stored: int) -> None:
    if (chunk.dtype == "int8") != (manifest.codec.name == "int8"):
        raise ValueError(f"{chunk.file} is not of the codec's type")
    _, rows, cols, channels = chunk.shape
    if channels != stored:
        raise ValueError(f"{chunk.file} has {channels} channels, not {stored}")
    values = sum(map(math.prod, chunk.taps.values()))
    if tuple(chunk.taps) != manifest.spec.taps or values != rows * cols * manifest.channels:
        raise ValueError(f"the taps of {chunk.file} do not fit its shape")


def _check_image(image: ImageRecord, manifest: Manifest) -> None:
    if image.chunk >= len(manifest.chunks):
        raise ValueError(f"image {image.name!r} is in chunk {image.chunk}, which does not exist")
    chunk = manifest.chunks[image.chunk]
    if image.row >= len(chunk.images) or chunk.images[image.row] != image.name:
        raise ValueError(f"image {image.name!r} is not row {image.row} of {chunk.file}")
    if max(map(abs, (*vars(image.affine).values(), *vars(image.valid).values()))) >= _LARGEST:
        raise ValueError(f"the geometry of {image.name!r} is out of bounds")
    rows, cols = image.valid.cells()
    inside = rows.start >= 0 and cols.start >= 0
    if not (inside and 0 < rows.stop <= chunk.shape[1] and 0 < cols.stop <= chunk.shape[2]):
        raise ValueError(f"the valid rectangle of {image.name!r} is not inside its map")
    if not (rows and cols):
        raise ValueError(f"the valid rectangle of {image.name!r} is empty")
