"""The records of a cache: one per chunk file and one per image, as the manifest lists them."""

from dataclasses import dataclass

from f3rm.store.codecs import CodedDtype, CosineError
from f3rm.store.geometry import PixelAffine, Size, ValidRect
from f3rm.store.items import ImageItem


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk file.

    Attributes:
        file: Name of the file in the cache folder.
        bytes: Length of the file.
        shape: Images, rows, columns, channels.
        dtype: ``float16``, ``float32`` or ``int8``.
        checksum: ``xxh3_128:`` and the hash of the whole file.
        codec_error: Largest relative error that rounding to ``dtype`` made in any cell.
        images: Names of the images, in the order of the rows.
        cosine_error: What the codec cost in this chunk; None if it was not measured.
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
    """One image and where its features are.

    Attributes:
        name: Path relative to the dataset, as in ``transforms.json``.
        bytes: Length of the image file when it was extracted.
        mtime_ns: Its modification time in nanoseconds.
        content: Hash (xxh3_128) of its bytes.
        size: Height and width in pixels.
        chunk: Index of the chunk.
        row: Index within the chunk.
        affine: From pixel centres to feature coordinates.
        valid: Part of the feature map that shows the image.
        error: Always None; images that failed have a :class:`FailedRecord`.
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
    error: str | None = None


@dataclass(frozen=True)
class FailedRecord:
    """An image that has no features.

    Attributes:
        name: Path relative to the dataset.
        bytes: Length of the file when it failed; 0 if it was not there.
        mtime_ns: Its modification time in nanoseconds; 0 if it was not there.
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
