"""Reads ``.npy`` files without trusting their headers.

NumPy allocates a header's shape before it reads any data, and evaluates the header as an
expression. Here a header must match one pattern, and its shape and type must give exactly the
file's length: no more is allocated than the file holds, and no object is unpickled.

*Source:* https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from f3rm.store.mapped_files import map_file

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
"""Major version of the format -> bytes of the header's length."""
_LARGEST_HEADER = 1 << 16
_LARGEST_SIDE = 1 << 48
_MOST_AXES = 32
_LAST_LETTER = 0x10FFFF
_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<dtype>[<>|=]?(?:[bBiufcSU]\d{1,9}|O8?))',"
    r"\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d\sL,]*)\),?\s*\}\s*",
    re.ASCII,
)


@dataclass(frozen=True)
class NpyHeader:
    """The header of a ``.npy`` file.

    Attributes:
        shape: Shape of the array.
        dtype: Numbers, booleans or texts; or objects, whose data is never read.
        fortran_order: Whether the first axis varies fastest.
        offset: Start of the data in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int

    @property
    def num_bytes(self) -> int:
        """Length of the whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: BinaryIO, length: int) -> NpyHeader:
    """Reads the header at the beginning of a file; allocates nothing of the size that it gives.

    Args:
        stream: The file, at its beginning.
        length: Its length in bytes.

    Raises:
        ValueError: If there is no valid header, or its shape does not give the length; the message
            is a clause.
    """
    start = stream.read(len(_MAGIC) + 2)
    if start[: len(_MAGIC)] != _MAGIC or len(start) < len(_MAGIC) + 2:
        raise ValueError("it is not a .npy file")
    if start[-2] not in _LENGTH_BYTES:
        raise ValueError(f"its format version {start[-2]} is unknown")
    width = _LENGTH_BYTES[start[-2]]
    size = int.from_bytes(stream.read(width), "little")
    if size > min(length, _LARGEST_HEADER):
        raise ValueError(f"its header cannot have {size} bytes")
    header = _parsed(stream.read(size).decode("latin1"), len(start) + width + size)
    if header.num_bytes != length and not header.dtype.hasobject:
        raise ValueError(
            f"its {length} bytes do not fit the shape {header.shape} of {header.dtype}"
        )
    return header


def load_npy(path: Path, *, largest: int | None = None) -> np.ndarray:
    """Reads an array into memory.

    Args:
        path: The file.
        largest: Largest length allowed, in bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a ``.npy`` file, not of its header's length, or too large.
    """
    with _regular(path) as stream:
        header = _data_header(stream)
        if largest is not None and header.num_bytes > largest:
            raise ValueError(f"its {header.num_bytes} bytes are more than {largest}")
        content = stream.read(header.num_bytes - header.offset)
    return _array(np.frombuffer(content, np.uint8), header).copy()


def map_npy(path: Path) -> np.ndarray:
    """Maps an array read-only; arguments and errors as of :func:`load_npy`."""
    with _regular(path) as stream:
        header = _data_header(stream)
        content = map_file(stream.fileno(), header.num_bytes)
    return _array(content[header.offset :], header)


def _data_header(stream: BinaryIO) -> NpyHeader:
    header = read_npy_header(stream, os.fstat(stream.fileno()).st_size)
    if header.dtype.hasobject:
        raise ValueError("it holds objects, which would have to be unpickled")
    return header


def _regular(path: Path) -> BinaryIO:
    """Opens a regular file; a pipe or a device could block for ever."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file")
    return path.open("rb")


def _parsed(text: str, offset: int) -> NpyHeader:
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError("its header is not that of a plain array of numbers or texts")
    words = [word.strip().removesuffix("L") for word in found["shape"].split(",")]
    if not all(word.isdecimal() for word in words[:-1]) or not (words[-1] or "0").isdecimal():
        raise ValueError("its shape is malformed")
    sides = tuple(int(word[:20]) for word in words if word)
    if len(sides) > _MOST_AXES or any(side >= _LARGEST_SIDE for side in sides):
        raise ValueError("its shape is out of bounds")
    try:
        dtype = np.dtype(found["dtype"])
    except (TypeError, ValueError) as error:
        raise ValueError("its type is unknown") from error
    return NpyHeader(sides, dtype, found["fortran"] == "True", offset)


def _array(content: np.ndarray, header: NpyHeader) -> np.ndarray:
    """Views the bytes after a header as its array."""
    if header.dtype.itemsize == 0 or 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    if header.dtype.kind == "U":
        letters = content.view(header.dtype.str[0] + "u4")
        if ((letters > _LAST_LETTER) | ((letters >= 0xD800) & (letters <= 0xDFFF))).any():
            raise ValueError("its texts are not valid Unicode")
    order = "F" if header.fortran_order else "C"
    return content.view(header.dtype).reshape(header.shape, order=order)
