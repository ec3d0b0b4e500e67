"""A codec's fitted arrays on disk: one ``codec_<name>.npy`` each beside the chunks, no pickles."""

import io
from pathlib import Path

import numpy as np
import xxhash

from f3rm.errors import CacheMismatchError
from f3rm.store.chunks import write_atomically
from f3rm.store.codecs import Codec, load_codec
from f3rm.store.manifest import CodecArray, CodecRecord
from f3rm.store.npy import load_npy

_LARGEST_BYTES = 1 << 30
"""Enough for a basis of 16,384 channels by as many components in fp32."""


def write_codec(folder: Path, codec: Codec) -> tuple[CodecArray, ...]:
    """Writes a codec's arrays, each file atomically; fp16 and fp32 have none.

    Args:
        folder: The cache folder; it exists.
        codec: The codec.

    Returns:
        The records for the manifest.

    Raises:
        CacheError: If the file system refuses.
    """
    records: list[CodecArray] = []
    for name, tensor in codec.arrays.items():
        array = np.ascontiguousarray(tensor.cpu().numpy(), dtype="<f4")
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        content = buffer.getvalue()
        file = f"codec_{name}.npy"
        write_atomically(folder / file, lambda stream, content=content: stream.write(content))
        records.append(CodecArray(name, file, len(content), array.shape, _checksum(content)))
    return tuple(records)


def read_codec(folder: Path, record: CodecRecord, channels: int) -> Codec:
    """Reads a codec's arrays after checking every file's length, checksum, shape and type.

    Args:
        folder: The cache folder.
        record: The manifest's record.
        channels: Feature channels C.

    Raises:
        CacheMismatchError: If a file is missing or not the recorded one.
        CacheError: If the arrays do not fit the codec.
    """
    arrays = {array.name: _read_array(folder, array) for array in record.arrays}
    return load_codec(record.name, arrays, channels)


def _read_array(folder: Path, record: CodecArray) -> np.ndarray:
    path = folder / record.file
    if record.bytes > _LARGEST_BYTES:
        raise _mismatch(path, f"{record.bytes} bytes are too many for a codec")
    try:
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise _mismatch(path, f"it does not have {record.bytes} bytes")
        content = path.read_bytes()
        if _checksum(content) != record.checksum:
            raise _mismatch(path, "its checksum differs")
        array = load_npy(path, largest=record.bytes)
    except (OSError, ValueError) as error:
        raise _mismatch(path, f"it cannot be read ({error})") from error
    if array.shape != record.shape or array.dtype != np.dtype("<f4"):
        raise _mismatch(path, f"it holds {array.shape} {array.dtype}")
    if not np.isfinite(array).all():
        raise _mismatch(path, "it holds NaN or infinity")
    return array


def _checksum(content: bytes) -> str:
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"


def _mismatch(path: Path, reason: str) -> CacheMismatchError:
    return CacheMismatchError(
        f"{str(path)!r} is not the array that the manifest describes: {reason}. Extract again with "
        "--force."
    )
