"""Chunk files: plain ``.npy``, written atomically and checked before they are mapped.

A chunk has the shape (images, rows, cols, channels). Its header fills one page, so that the data
starts on a page boundary; ``np.load`` reads the file like any other.
"""

import contextlib
import errno
import math
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from jaxtyping import Shaped

from f3rm.errors import CacheError, CacheMismatchError
from f3rm.store.codecs import CodedDtype
from f3rm.store.manifest import ChunkRecord
from f3rm.store.mapped_files import expect_random, map_file
from f3rm.store.npy import read_npy_header

HEADER_BYTES = 4096
_BLOCK_BYTES = 1 << 22
_SYNCED_BYTES = 1 << 25
"""Bytes after which a growing chunk is synced; all of it at the end would hold up the network."""
# NumPy's own writer pads to 64 bytes only, hence a header of our own.
_MAGIC = b"\x93NUMPY\x01\x00"

Rows = Shaped[np.ndarray, "images rows cols channels"]


@dataclass(frozen=True)
class WrittenChunk:
    """Length in bytes and checksum of a chunk file that has been written."""

    bytes: int
    checksum: str


def write_chunk(
    path: Path, shape: tuple[int, int, int, int], dtype: CodedDtype, parts: Iterable[Rows]
) -> WrittenChunk:
    """Writes a chunk to a temporary name, makes it durable, and renames it into place.

    Args:
        path: The final name; its folder exists.
        shape: Images, rows, columns, channels of the whole chunk.
        dtype: Type on disk.
        parts: Consecutive images of that type; may be computed as they are asked for.

    Raises:
        CacheError: If the file system refuses.
    """
    digest = xxhash.xxh3_128()

    def write(stream: BinaryIO) -> None:
        header = _header(shape, dtype)
        stream.write(header)
        digest.update(header)
        with ThreadPoolExecutor(1, "f3rm-sync") as pool:  # the disk works while more is written
            unsynced, syncing = 0, pool.submit(stream.flush)
            for part in parts:
                block = np.ascontiguousarray(part).data.cast("B")
                stream.write(block)
                digest.update(block)
                unsynced += len(block)
                if unsynced >= _SYNCED_BYTES:
                    stream.flush()
                    syncing.result()
                    unsynced, syncing = 0, pool.submit(os.fsync, stream.fileno())
            syncing.result()

    write_atomically(path, write)
    expected = HEADER_BYTES + math.prod(shape) * np.dtype(dtype).itemsize
    return WrittenChunk(expected, f"xxh3_128:{digest.hexdigest()}")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Fills a temporary file, syncs it and renames it to ``path``; a failure leaves no file.

    Raises:
        CacheError: If the file system refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        # Synced before the rename, and the folder after it: else a crash could leave the final name
        # with no content, or no name at all.
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        publish(temporary, path)
    except OSError as error:
        raise CacheError(_unwritten(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(part: Path, path: Path, *, sync: bool = True) -> None:
    """Renames a finished file to its final name, durably if ``sync``.

    Raises:
        CacheError: If the file system refuses.
    """
    try:
        part.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise CacheError(_unwritten(path, error)) from error


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_chunk(folder: Path, record: ChunkRecord) -> None:
    """Checks a chunk's length, shape and type against its record; reads only the header.

    Raises:
        CacheMismatchError: If it is missing, or one of them differs.
    """
    with _checked(folder, record):
        pass


def verify_chunk(folder: Path, record: ChunkRecord) -> None:
    """Checks a chunk like :func:`check_chunk`, and its content against the checksum.

    Raises:
        CacheMismatchError: If it is not the recorded chunk.
    """
    check_chunk(folder, record)
    digest = xxhash.xxh3_128()
    with (folder / record.file).open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    if f"xxh3_128:{digest.hexdigest()}" != record.checksum:
        raise _mismatch(folder / record.file, "its checksum differs")


def map_chunk(folder: Path, record: ChunkRecord) -> Rows:
    """Maps a chunk into memory, read-only, shared and without read-ahead, after checking it.

    The checked file is the one mapped, even if another takes its name meanwhile. While it is mapped
    it must keep its length: reading a page that was cut off ends the process (SIGBUS).

    Raises:
        CacheMismatchError: If the file does not have the recorded length, shape and type.
    """
    with _checked(folder, record) as (stream, offset):
        try:
            mapped = map_file(stream.fileno(), record.bytes)
        except OSError as error:
            path = folder / record.file
            raise _mismatch(path, f"it cannot be mapped ({error})") from error
    expect_random(mapped.ctypes.data, len(mapped))
    return mapped[offset:].view(_stored_dtype(record)).reshape(record.shape)


def _header(shape: tuple[int, ...], dtype: CodedDtype) -> bytes:
    """Builds a version 1.0 header of exactly one page.

    *Source:* https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    text = repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    length = HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1).encode("latin1") + b"\n"


@contextlib.contextmanager
def _checked(folder: Path, record: ChunkRecord) -> Generator[tuple[BinaryIO, int]]:
    """Opens a chunk that is as recorded; yields the stream and the offset of the data in bytes."""
    path = folder / record.file
    with contextlib.ExitStack() as closing:
        try:
            if not path.is_file():
                raise _mismatch(path, "it is missing or not a file")
            stream = closing.enter_context(path.open("rb"))
            length = os.fstat(stream.fileno()).st_size
            if length != record.bytes:
                raise _mismatch(path, f"it has {length} bytes instead of {record.bytes}")
            header = read_npy_header(stream, length)
        except (OSError, ValueError) as error:
            raise _mismatch(path, f"its header cannot be read ({error})") from error
        expected = _stored_dtype(record)
        if header.fortran_order or (header.shape, header.dtype) != (record.shape, expected):
            found = f"{header.shape} {header.dtype}"
            raise _mismatch(path, f"it holds {found} instead of {record.shape} {expected}")
        yield stream, header.offset


def _stored_dtype(record: ChunkRecord) -> np.dtype:
    return np.dtype(record.dtype).newbyteorder("<")


def _unwritten(path: Path, error: OSError) -> str:
    """Says why a file could not be written, with the free space if that is the reason."""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            room = f" ({shutil.disk_usage(path.parent).free} bytes are free)"
    return (
        f"{str(path)!r} must be writable, got: {error}{room}. Free some space or pass --cache-dir, "
        "then run again: finished chunks are kept."
    )


def _mismatch(path: Path, reason: str) -> CacheMismatchError:
    return CacheMismatchError(
        f"{str(path)!r} is not the chunk that the manifest describes: {reason}. Run f3rm extract "
        "again."
    )
