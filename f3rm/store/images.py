"""Decodes images as training does, and checks every image before anything is written.

Colours follow Nerfstudio: RGB is kept, greyscale replicated, alpha composited over a background,
the EXIF orientation ignored. Modes that Nerfstudio would misread (palettes, 16 bit, CMYK, ...) are
refused, with a command that converts them.
"""

import io
import logging
import os
import shlex
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from f3rm.errors import ImageError, printable
from f3rm.store.geometry import Size
from f3rm.store.items import ImageItem, is_regular_file
from f3rm.store.progress import track

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_ACCEPTED = ("RGB", "L", "RGBA")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION_TAG = 0x0112
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
LEAVE_OUT = (
    "pass --on-error record to go on without it (f3rm extract), or "
    "--pipeline.datamanager.feature-on-error record (ns-train)."
)
"""Advice in messages about one bad image, with the options of both commands that extract."""
_THREADS = max(2, min(8, os.cpu_count() or 2))
_SHOWN = 3
_JPEG_END = b"\xff\xd9"
_TAIL = 1 << 16
"""Bytes at the end of a JPEG where its end is searched: cameras append data of their own."""


@dataclass(frozen=True)
class ImageInfo:
    """An image that has been checked.

    Attributes:
        item: The image.
        bytes: Length of the file.
        mtime_ns: Modification time of the file in nanoseconds.
        content: Hash (xxh3_128) of the file's bytes.
        size: Height and width in pixels.
    """

    item: ImageItem
    bytes: int
    mtime_ns: int
    content: str
    size: Size


_Found = tuple[ImageInfo, str, bool]
"""An image's record, its mode if that is refused (else ""), and whether EXIF turns the image."""


class ImageFailedError(ImageError):
    """An image cannot be extracted; name and reason can be recorded in place of its features.

    Attributes:
        name: The image's name in the cache.
        reason: Why it failed, as a clause.
    """

    def __init__(self, message: str, name: str, reason: str) -> None:
        """Passes all three on, so that the error can be pickled between processes."""
        super().__init__(message, name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        """Returns the message."""
        return printable(str(self.args[0]), lines=True)


def inspect_images(
    items: Sequence[ImageItem],
    *,
    progress: bool = False,
    failed: dict[str, str] | None = None,
) -> list[ImageInfo]:
    """Decodes every image once, so that a bad one is found before anything is written.

    Args:
        items: The images.
        progress: Whether to show a progress bar.
        failed: Receives the reason of each image that cannot be decoded, by name; without it, the
            first such image raises.

    Returns:
        One record per decoded image, in the order of ``items``.

    Raises:
        ImageError: If an image is missing or damaged and ``failed`` is not given, or one is in a
            mode that training would misread.
    """

    def inspect(item: ImageItem) -> _Found | ImageFailedError:
        try:
            return _inspect(item)
        except ImageFailedError as error:
            if failed is None:
                raise
            return error

    checked = list(
        track(prefetched(inspect, items), total=len(items), label="checking images", show=progress)
    )
    found = [result for result in checked if not isinstance(result, ImageFailedError)]
    for result in checked:
        if failed is not None and isinstance(result, ImageFailedError):
            failed[result.name] = result.reason
    refused = [(info.item, mode) for info, mode, _ in found if mode]
    if refused:
        raise ImageError(_mode_message(refused))
    turned = [info.item.name for info, _, turned in found if turned]
    if turned:
        log.warning(
            "%d image(s) have an EXIF orientation, e.g. %s; it is ignored, as in Nerfstudio.",
            len(turned),
            printable(turned[0]),
        )
    return [info for info, _, _ in found]


def check_complete(items: Iterable[ImageItem]) -> None:
    """Checks that image files are whole, in a fraction of the time of decoding them.

    Of PNG the checksums are compared, of JPEG the end is searched; other formats are decoded.

    Raises:
        ImageError: If an image is missing or damaged.
    """
    for _ in prefetched(_check_whole, items):
        pass


def _check_whole(item: ImageItem) -> None:
    try:
        content = _content(item.path)
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG" or _JPEG_END not in content[-_TAIL:]:
                image.load()
    except _BROKEN as error:
        raise _broken(item.name, error) from error


def content_hash(path: Path) -> str:
    """Returns the xxh3_128 hash of a file's bytes, in hexadecimal.

    Raises:
        OSError: If it is not a file, or cannot be read.
    """
    return xxhash.xxh3_128(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    """Reads a regular file; a device or a pipe would never end."""
    if not is_regular_file(path):
        raise FileNotFoundError(f"{str(path)!r} is missing or not a file")
    return path.read_bytes()


def _content_of(item: ImageItem) -> bytes:
    try:
        return _content(item.path)
    except OSError as error:
        raise _broken(item.name, error) from error


def read_image(
    path: Path, background: tuple[float, float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to 8-bit RGB; its EXIF orientation is ignored.

    Args:
        path: The image file.
        background: RGB colour in [0, 1] behind an alpha channel.

    Raises:
        ImageError: If the file is missing, damaged, or in a mode that training would misread.
    """
    item = ImageItem(str(path), path)
    return _decode(_content_of(item), item, background)


def read_inspected(
    info: ImageInfo, background: tuple[float, float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image like :func:`read_image` after checking that it has not changed.

    Args:
        info: The record of :func:`inspect_images`.
        background: RGB colour in [0, 1] behind an alpha channel.

    Raises:
        ImageError: If the file is missing, or its content has changed since.
    """
    content = _content_of(info.item)
    if xxhash.xxh3_128(content).hexdigest() != info.content:
        raise ImageError(
            f"{info.item.name!r} must not change during extraction, but its content did. Run again."
        )
    return _decode(content, info.item, background)


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 2 * _THREADS
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` in order; a few threads compute ahead.

    Args:
        function: Called in worker threads.
        items: The inputs.
        ahead: Results that may wait to be taken, which bounds the memory.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # else leaving the pool would first compute all that was submitted
            for future in waiting:
                future.cancel()


def _decode(
    content: bytes, item: ImageItem, background: tuple[float, float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode = image.mode
            pixels = np.array(image)
    except _BROKEN as error:
        raise _broken(item.name, error) from error
    if mode not in _ACCEPTED:
        raise ImageError(_mode_message([(item, mode)]))
    if mode == "L":
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if mode == "RGB":
        return pixels
    alpha = pixels[:, :, 3:].astype(np.float32) / 255
    colour = np.asarray(background, dtype=np.float32) * 255
    return np.floor(pixels[:, :, :3] * alpha + colour * (1 - alpha) + 0.5).astype(np.uint8)


def _inspect(item: ImageItem) -> _Found:
    try:
        content = _content(item.path)
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            # A JPEG at an eighth of its size, in two thirds of the time: its whole stream is read.
            reduced = image.draft(None, (1, 1)) is not None
            image.load()
            size = (height, width) if reduced else (image.height, image.width)
            mode = "" if image.mode in _ACCEPTED else image.mode
            turned = image.getexif().get(_ORIENTATION_TAG, 1) not in (0, 1)
        changed = item.path.stat().st_mtime_ns
    except _BROKEN as error:
        raise _broken(item.name, error) from error
    digest = xxhash.xxh3_128(content).hexdigest()
    return ImageInfo(item, len(content), changed, digest, size), mode, turned


def _broken(name: str, error: Exception) -> ImageFailedError:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "its format is unknown" if unknown else str(error) or type(error).__name__
    msg = (
        f"{name!r} must be a complete image, got: {reason}. Copy or export the file "
        f"again, remove its frame from transforms.json, or {LEAVE_OUT}"
    )
    return ImageFailedError(msg, name=name, reason=f"it is not a complete image: {reason}")


def _mode_message(refused: Sequence[tuple[ImageItem, str]]) -> str:
    """Names the refused images of the first mode found, with a command that converts them."""
    mode = refused[0][1]
    paths = [str(item.path) for item, other in refused if other == mode]
    names = ", ".join(printable(item.name) for item, _ in refused[:_SHOWN])
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    return (
        f"Images must be 8-bit RGB, RGBA or greyscale, got mode {mode!r} in "
        f"{names}{more}. Training would misread it. Convert with (keep a copy; the files are "
        f"replaced)\n  {_conversion(mode, paths)}"
    )


def _conversion(mode: str, paths: Sequence[str]) -> str:
    if mode in _SIXTEEN_BIT:  # Pillow's own conversion may clip 16 bits, not scale them
        shifted = "(np.asarray(Image.open(p)).astype(np.uint32) >> 8).astype(np.uint8)"
        imports = "import sys, numpy as np; from PIL import Image"
        loop = f"[Image.fromarray({shifted}).save(p) for p in sys.argv[1:]]"
    else:
        step = "i.convert('RGBA' if i.has_transparency_data else 'RGB').save(p, quality=95)"
        imports = "import sys; from PIL import Image"
        loop = f"[{step} for p in sys.argv[1:] for i in [Image.open(p)]]"
    files = " ".join(shlex.quote(path) for path in paths)
    return f'python -c "{imports}; {loop}" {files}'
