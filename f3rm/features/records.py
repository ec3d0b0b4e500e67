"""The records of a cache: one per chunk file and one per image, as the manifest lists them."""

from dataclasses import dataclass

from f3rm.features.geometry import PixelAffine, Size, ValidRect
from f3rm.features.spec import StoredDtype


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk file.

    Attributes:
        file: Name of the file in the cache folder.
        bytes: Length of the file.
        shape: Images, rows, columns, channels.
        dtype: ``float16`` or ``float32``.
        checksum: ``xxh3_128:`` and the hash of the whole file.
        codec_error: Largest relative error that rounding to ``dtype`` made in any cell.
        images: Names of the images, in the order of the rows.
    """

    file: str
    bytes: int
    shape: tuple[int, int, int, int]
    dtype: StoredDtype
    checksum: str
    codec_error: float
    images: tuple[str, ...]


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
        error: Why the image has no features; always None in this version.
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
