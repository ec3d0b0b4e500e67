"""The manifest of a finished cache: ``manifest.json``, schema version 1.

The manifest is written last; chunks without one do not count. It is read as untrusted: every field
has its type, every number its bounds, every file name stays in the folder, and no size in it is
allocated before the files have been checked.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from f3rm.errors import CacheError, F3rmError
from f3rm.store import json_fields as fields
from f3rm.store.codecs import CodecRecord
from f3rm.store.json_fields import InvalidFieldError
from f3rm.store.records import (
    ChunkRecord,
    FailedRecord,
    ImageRecord,
    chunk_of,
    codec_of,
    failed_of,
    image_of,
    spec_of,
)
from f3rm.store.spec import FeatureSpec

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The record of a cache.

    Attributes:
        spec: The features' specification.
        weights_identity: A weight file's hash, or a hub name.
        algorithm: Version of the preparation.
        key: Hash of the specification, the weights and the algorithm.
        channels: Feature channels C.
        has_text: Whether the backbone has a text tower.
        provenance: The backbone's own description of its library and weights.
        versions: Versions of the software that made the cache.
        chunks: The chunk files.
        images: The images, in the order of the dataset.
        failed: Images of the dataset that have no features.
        codec: The codec and its fitted arrays.
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
    failed: tuple[FailedRecord, ...] = ()
    codec: CodecRecord = field(default_factory=CodecRecord)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the cache's files besides the manifest."""
        return tuple(record.file for record in (*self.chunks, *self.codec.arrays))

    @property
    def codec_hash(self) -> str:
        """Hash of the codec's fitted arrays; empty if it has none."""
        return codec_hash(self.codec)

    def to_json(self) -> str:
        """Returns the file's text."""
        dtypes = sorted({chunk.dtype for chunk in self.chunks}) or [self.spec.dtype]
        codec_error = max((chunk.codec_error for chunk in self.chunks), default=0.0)
        plain = {
            "schema_version": SCHEMA_VERSION,
            "feature_type": self.spec.name,
            "tap": self.spec.tap,
            "channels": self.channels,
            "has_text": self.has_text,
            "dtype": "float32" if "float32" in dtypes else dtypes[0],
            "codec": {"error": codec_error, **asdict(self.codec)},
            "spec": self.spec.to_dict(),
            "weights_identity": self.weights_identity,
            "algorithm": self.algorithm,
            "key": self.key,
            "provenance": self.provenance,
            "versions": self.versions,
            "chunks": [asdict(chunk) for chunk in self.chunks],
            "images": [asdict(image) for image in self.images],
            "failed": [asdict(image) for image in self.failed],
        }
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``manifest.json`` in a cache folder, without the files that it names.

    Raises:
        CacheError: If there is none, or it is damaged, of a newer schema, or names files outside
            the folder.
    """
    path = folder / MANIFEST
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(
            f"There is no finished cache in {str(folder)!r}: no {MANIFEST}. Run f3rm extract."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(_damaged(path, f"it is not readable JSON ({error})")) from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CacheError(
            f"{str(path)!r} must have schema version {SCHEMA_VERSION} or older, got "
            f"{version}. It was written by a newer f3rm: update f3rm, or extract again with "
            "--force."
        )
    try:
        return _manifest(plain)
    except (InvalidFieldError, F3rmError, RecursionError) as error:
        raise CacheError(_damaged(path, str(error))) from error


def _damaged(path: Path, reason: str) -> str:
    return f"{str(path)!r} is not a complete manifest: {reason}. Extract again with f3rm extract."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _manifest(plain: object) -> Manifest:
    record = fields.mapping(plain, "the manifest")
    version = fields.integer(record, "schema_version")
    if version != SCHEMA_VERSION:
        raise InvalidFieldError(f"schema_version is {version}")
    chunks = tuple(chunk_of(item) for item in fields.items_of(record, "chunks"))
    images = tuple(image_of(item) for item in fields.items_of(record, "images"))
    failed = tuple(failed_of(item) for item in fields.items_of(record, "failed"))
    manifest = Manifest(
        spec=spec_of(fields.mapping(record.get("spec"), "spec")),
        weights_identity=fields.text(record, "weights_identity"),
        algorithm=fields.integer(record, "algorithm"),
        key=fields.text(record, "key"),
        channels=fields.bounded(record.get("channels"), "channels", 1),
        has_text=fields.boolean(record, "has_text"),
        provenance=fields.texts(record, "provenance"),
        versions=fields.texts(record, "versions"),
        chunks=chunks,
        images=images,
        failed=failed,
        codec=codec_of(record.get("codec")),
    )
    _check_consistent(manifest)
    return manifest


def _check_consistent(manifest: Manifest) -> None:
    """Checks that key, chunks, codec and images agree with one another."""
    if manifest.key != manifest.spec.key(manifest.weights_identity, manifest.algorithm):
        raise InvalidFieldError("key is not the hash of its settings")
    files = [chunk.file for chunk in manifest.chunks]
    names = [image.name for image in (*manifest.images, *manifest.failed)]
    if not files:
        raise InvalidFieldError("it has no chunks")
    if len(set(files)) != len(files) or len(set(names)) != len(names):
        raise InvalidFieldError("a chunk or an image is listed twice")
    if sum(len(chunk.images) for chunk in manifest.chunks) != len(manifest.images) or not names:
        raise InvalidFieldError("chunks and images do not list the same images")
    is_int8 = manifest.codec.name == "int8"
    if any((chunk.dtype == "int8") != is_int8 for chunk in manifest.chunks):
        raise InvalidFieldError("the chunks are not of the codec's type")
    for image in manifest.images:
        _check_image(image, manifest)


def codec_hash(record: CodecRecord) -> str:
    """Returns a hash of a codec's fitted arrays; empty if it has none."""
    text = " ".join(array.checksum for array in record.arrays)
    return xxhash.xxh3_128(text.encode()).hexdigest() if text else ""


def _stored_channels(manifest: Manifest) -> int:
    bases = [array.shape[0] for array in manifest.codec.arrays if array.name == "basis"]
    return bases[0] if bases else manifest.channels


def _check_image(image: ImageRecord, manifest: Manifest) -> None:
    if image.chunk >= len(manifest.chunks):
        raise InvalidFieldError(
            f"image {image.name!r} is in chunk {image.chunk}, which does not exist"
        )
    chunk = manifest.chunks[image.chunk]
    if image.row >= len(chunk.images) or chunk.images[image.row] != image.name:
        raise InvalidFieldError(f"image {image.name!r} is not row {image.row} of {chunk.file}")
    channels = _stored_channels(manifest)
    if chunk.shape[3] != channels:
        raise InvalidFieldError(f"{chunk.file} has {chunk.shape[3]} channels, not {channels}")
    rows, cols = image.valid.cells()
    inside = rows.start >= 0 and cols.start >= 0
    if not (inside and 0 < rows.stop <= chunk.shape[1] and 0 < cols.stop <= chunk.shape[2]):
        raise InvalidFieldError(f"the valid rectangle of {image.name!r} is not inside its map")
    if not (rows and cols):
        raise InvalidFieldError(f"the valid rectangle of {image.name!r} is empty")
