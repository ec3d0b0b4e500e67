"""Files of exports: complete or absent, in formats that other programs open."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import trimesh
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from trimesh.exchange.ply import export_ply

from f3rm.errors import CacheError, F3rmError
from f3rm.store.chunks import write_atomically

CLOUD_SUFFIXES = (".ply",)
MESH_SUFFIXES = (".ply", ".obj", ".glb", ".stl")


class ExportError(F3rmError):
    """A scene or query cannot be exported, or a file cannot be written."""


def check_file(file: Path, suffixes: Collection[str], *, what: str) -> Path:
    """Returns the absolute path of a file whose ending fits.

    Args:
        file: The file.
        suffixes: The endings that fit, in lower case.
        what: The content, as the message names it.

    Raises:
        ExportError: If it has another ending, or is a folder.
    """
    if file.suffix.lower() not in suffixes or file.is_dir():
        msg = (
            f"The file of {what} must end in {' or '.join(suffixes)}, got {str(file)!r}. Give "
            "another --out."
        )
        raise ExportError(msg)
    return file.expanduser().absolute()


def write_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file, then renames it.

    Args:
        file: The file; its folder is created.
        write: Writes the content to an open file.

    Raises:
        ExportError: If it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write)
    except (OSError, CacheError) as error:
        msg = f"Cannot write {str(file)!r}: {error}. Give another --out, or make room there."
        raise ExportError(msg) from error


def write_cloud(
    file: Path,
    positions: Float[ndarray, "points 3"],
    colours: UInt8[ndarray, "points 3"],
    scalars: Mapping[str, ndarray],
) -> None:
    """Writes a point cloud as binary PLY.

    Args:
        file: The file.
        positions: Positions of the points.
        colours: Their RGB.
        scalars: More properties of the points by name, each of shape (points,).

    Raises:
        ExportError: If it cannot be written.
    """
    cloud = trimesh.Trimesh(
        positions, vertex_colors=colours, vertex_attributes=dict(scalars), process=False
    )
    content = export_ply(cloud)
    write_file(file, lambda stream: stream.write(content))


def write_mesh(
    file: Path,
    vertices: Float[ndarray, "vertices 3"],
    triangles: Int[ndarray, "triangles 3"],
    colours: UInt8[ndarray, "vertices 3"],
) -> None:
    """Writes a triangle mesh in the format that the file's ending names.

    Args:
        file: The file.
        vertices: Corners of the triangles.
        triangles: Their indices, counter-clockwise seen from outside.
        colours: RGB of the vertices; STL has none.

    Raises:
        ExportError: If it cannot be written.
    """
    mesh = trimesh.Trimesh(vertices, triangles, vertex_colors=colours, process=False)
    kind = file.suffix.lower().lstrip(".")
    write_file(file, lambda stream: mesh.export(stream, file_type=kind))
