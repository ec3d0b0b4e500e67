"""Reads and writes Gaussians as ``.ply``: INRIA's layout, which Nerfstudio's ``ns-export`` shares.

A file has one element ``vertex`` of scalar properties: ``x y z``; ``f_dc_0..2`` and, channel after
channel, ``f_rest_*``; ``opacity`` (logit); ``scale_0..2`` (natural logarithm); ``rot_0..3`` (w, x,
y, z). ``ns-export --ply-color-mode rgb`` writes ``red green blue`` for the harmonics. Positions are
in the frame of the program that wrote the file, which the file does not name.

*Source:* ``scene/gaussian_model.py`` of 3D Gaussian Splatting; ``ExportGaussianSplat`` of
Nerfstudio 1.1.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.errors import F3rmError, StrPath, as_path, printable
from f3rm.splats.gaussians import Gaussians, flat_colours
from f3rm.store.chunks import write_atomically

MOST_GAUSSIANS = 8_000_000
"""About 2 GB with all harmonics, and as much again for hidden vectors."""

_LONGEST_HEADER = 1 << 16
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_CENTRE = ("x", "y", "z")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_RGB = ("red", "green", "blue")
_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_REST_COUNTS = (0, 9, 24, 45)
_MOST_LOGIT = 15.0
"""Opacities within 3e-7 of 0 and 1 are written as that; their logit would not be finite."""


class SplatFileError(F3rmError):
    """A .ply of Gaussians, or the features beside it, cannot be read or written."""


@dataclass(frozen=True)
class _Header:
    count: int
    dtype: np.dtype
    start: int


def read_ply(path: StrPath) -> Gaussians:
    """Reads Gaussians, in float32 on the CPU and in the file's own frame.

    Args:
        path: A ``.ply`` in INRIA's or Nerfstudio's layout.

    Raises:
        SplatFileError: If it is no such file, compressed, cut off, empty or too large, or has
            values that are not finite or a rotation of length zero.
    """
    path = as_path(path)
    try:
        with path.open("rb") as stream:
            header = _read_header(stream, path)
            needed = header.count * header.dtype.itemsize
            present = path.stat().st_size - header.start
            if present < needed:
                raise _wrong(
                    path, f"it is cut off: {present:,} of {needed:,} bytes", "Copy it again."
                )
            rows = np.fromfile(stream, header.dtype, header.count)
    except FileNotFoundError as error:
        raise SplatFileError(f"No such file: {str(path)!r}.") from error
    except OSError as error:
        raise SplatFileError(f"Cannot read {str(path)!r}: {error}.") from error
    return _gaussians(rows, path)


def _read_header(stream: BinaryIO, path: Path) -> _Header:
    """Reads the lines before the rows; the stream is then at the first row."""
    if stream.readline(8).strip() != b"ply":
        raise _wrong(path, "it is no .ply", "Give the .ply of a splat.")
    order, elements = "", []
    properties: dict[str, str] = {}
    for words in _header_lines(stream, path):
        match words:
            case ["format", name, *_]:
                order = name
            case ["element", name, count]:
                elements.append((name, count))
            case ["property", kind, name] if len(elements) == 1 and kind in _TYPES:
                if name in properties:
                    raise _wrong(path, f"the property {name!r} appears twice", _PLAIN)
                properties[name] = _TYPES[kind]
            case ["property", *_] if len(elements) == 1:
                raise _wrong(path, f"it has {' '.join(words)!r}", _PLAIN)
    if order not in _ORDERS:
        raise _wrong(path, f"its format is {order or 'not given'}", _PLAIN)
    if not elements or elements[0][0] != "vertex" or "packed_position" in properties:
        found = ", ".join(name for name, _ in elements) or "no element"
        raise _wrong(path, f"it has {found} (a compressed .ply, or no splat)", _PLAIN)
    dtype = np.dtype([(name, _ORDERS[order] + kind) for name, kind in properties.items()])
    return _Header(_count(elements[0][1], path), dtype, stream.tell())


def _header_lines(stream: BinaryIO, path: Path) -> list[list[str]]:
    """Returns the words of each line up to ``end_header``."""
    lines: list[list[str]] = []
    while stream.tell() < _LONGEST_HEADER and (line := stream.readline(_LONGEST_HEADER)):
        words = line.decode("ascii", "replace").split()
        if words == ["end_header"]:
            return lines
        lines.append(words)
    raise _wrong(path, "its header has no end", "Copy it again.")


_PLAIN = "Export it again as a plain binary .ply, e.g. with ns-export gaussian-splat."


def _count(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise _wrong(path, f"it has {text!r} Gaussians", _PLAIN)
    count = int(text)
    if not count:
        raise _wrong(path, "it has no Gaussians", "Export the splat again.")
    if count > MOST_GAUSSIANS:
        raise _wrong(
            path,
            f"it has {count:,} Gaussians, more than {MOST_GAUSSIANS:,}",
            "Prune the splat, or cut out a part of it.",
        )
    return count


def _gaussians(rows: np.ndarray, path: Path) -> Gaussians:
    names = rows.dtype.names or ()
    is_flat = "f_dc_0" not in names and "red" in names
    colours = _RGB if is_flat else _DC
    rest = sorted(
        (name for name in names if name.startswith("f_rest_") and name[7:].isdecimal()),
        key=lambda name: int(name[7:]),
    )
    needed = (*_CENTRE, *colours, "opacity", *_SCALES, *_QUATS)
    missing = [name for name in needed if name not in names]
    if missing:
        raise _wrong(
            path,
            f"it has no {missing[0]!r} (its properties: {', '.join(names[:12])})",
            "A mesh or a point cloud is no splat. Give the .ply of a splat.",
        )
    if len(rest) not in _REST_COUNTS:
        raise _wrong(path, f"it has {len(rest)} f_rest (0, 9, 24 or 45 are known)", _PLAIN)
    scales = np.exp(_columns(rows, _SCALES, path))
    quats = _columns(rows, _QUATS, path)
    _check(np.isfinite(scales).all(axis=1) & (scales > 0).all(axis=1), "scale", path)
    _check((quats**2).sum(axis=1) > 0, "rotation of length other than 0", path)
    sh = _columns(rows, colours, path)[:, None]  # (gaussians, 1, 3)
    if is_flat:
        sh = flat_colours(torch.from_numpy(sh[:, 0] / 255)).numpy()
    elif rest:
        higher = _columns(rows, rest, path).reshape(len(rows), 3, -1)
        sh = np.concatenate((sh, higher.transpose(0, 2, 1)), axis=1)
    logits = torch.from_numpy(_columns(rows, ("opacity",), path)[:, 0])
    return Gaussians(
        means=torch.from_numpy(_columns(rows, _CENTRE, path)),
        quats=torch.from_numpy(quats),
        scales=torch.from_numpy(scales),
        opacities=logits.sigmoid(),
        sh=torch.from_numpy(np.ascontiguousarray(sh)),
    )


def _columns(rows: np.ndarray, names: Sequence[str], path: Path) -> Float[np.ndarray, "rows _"]:
    values = np.stack([rows[name] for name in names], axis=1).astype(np.float32)
    for column, name in enumerate(names):
        _check(np.isfinite(values[:, column]), name, path)
    return values


def _check(good: np.ndarray, name: str, path: Path) -> None:
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise _wrong(
            path,
            f"Gaussian {first} has no finite {name} ({int((~good).sum()):,} such of {len(good):,})",
            "Export it again; ns-export leaves these out.",
        )


def _wrong(path: Path, reason: str, advice: str) -> SplatFileError:
    return SplatFileError(
        printable(f"{str(path)!r} is not a splat that can be read: {reason}. {advice}")
    )


def write_ply(path: StrPath, gaussians: Gaussians) -> None:
    """Writes Gaussians in INRIA's layout, with all their harmonics, atomically.

    Args:
        path: The file; one of that name is replaced.
        gaussians: At least one, in the frame that the file shall have.

    Raises:
        F3rmError: If there are none, or the file system refuses.
    """
    if not len(gaussians):
        raise SplatFileError("A .ply needs at least one Gaussian, got none.")
    rest = gaussians.sh[:, 1:].transpose(1, 2).flatten(1)  # channel after channel
    columns: dict[str, Tensor] = {
        **dict(zip(_CENTRE, gaussians.means.unbind(1), strict=True)),
        **{name: torch.zeros(len(gaussians)) for name in ("nx", "ny", "nz")},
        **dict(zip(_DC, gaussians.sh[:, 0].unbind(1), strict=True)),
        **{f"f_rest_{number}": column for number, column in enumerate(rest.unbind(1))},
        "opacity": gaussians.opacities.double().logit().clamp(-_MOST_LOGIT, _MOST_LOGIT),
        **dict(zip(_SCALES, gaussians.scales.log().unbind(1), strict=True)),
        **dict(zip(_QUATS, gaussians.quats.unbind(1), strict=True)),
    }
    rows = np.empty(len(gaussians), [(name, "<f4") for name in columns])
    for name, column in columns.items():
        rows[name] = column.cpu().numpy()
    properties = "".join(f"property float {name}\n" for name in columns)
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(gaussians)}\n{properties}end_header\n"
    )

    def write(stream: BinaryIO) -> None:
        stream.write(header.encode())
        stream.write(rows.data)

    path = as_path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
