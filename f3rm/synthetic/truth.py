"""Reads the ground truth of a generated dataset: its objects, and object and depth at each pixel.

:mod:`f3rm.synthetic.scene_truth` writes these files. Reading needs neither Nerfstudio nor Open3D.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from msgspec import Meta
from PIL import Image, UnidentifiedImageError

from f3rm.errors import DatasetError, StrPath, as_path
from f3rm.scene.metres import SCENE_FILE, affine_map

IMAGE_FOLDER = "images"
IDS_FOLDER = "truth/ids"
DEPTH_FOLDER = "truth/depth"

MILLIMETRES_PER_METRE = 1000.0

ObjectKind = Literal["object", "surface"]

_GREY_MODES = ("L", "I;16", "I")


Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True)
class TruthObject:
    """One object of the scene.

    Attributes:
        id: Its number in the truth's id maps.
        name: Its name, which several objects may share.
        instance: Its number among the objects of its name, from 0.
        kind: ``"surface"`` for walls, floor and furniture, ``"object"`` for all others, which
            queries name.
        centre: Centre of its box, in metres.
        half_size: Half the extent of its box along x, y and z before it is turned, in metres.
        yaw: Rotation of the box about z, in radians.
    """

    id: Count
    name: Text
    instance: Count
    kind: ObjectKind
    centre: tuple[float, float, float]
    half_size: tuple[float, float, float]
    yaw: float


@dataclass(frozen=True)
class TruthQuery:
    """A name and the ids of all objects that have it."""

    text: Text
    ids: Annotated[tuple[Count, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class _SceneFile:
    scene: Text
    seed: Count
    objects: tuple[TruthObject, ...]
    queries: tuple[TruthQuery, ...]
    absent: tuple[Text, ...]
    metres_from_dataset: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        num = len(self.objects)
        if [entry.id for entry in self.objects] != list(range(num)):
            raise ValueError("the ids of the objects are not 0, 1, 2, ...")
        for query in self.queries:
            if max(query.ids) >= num:
                raise ValueError(f"{query.text!r} names the objects {query.ids} of {num}")


@dataclass(frozen=True)
class ViewTruth:
    """The truth of a photograph.

    Attributes:
        ids: Id of the object at each pixel, -1 for none.
        depth: Metres along the optical axis, infinite where there is no surface.
    """

    ids: Int32[np.ndarray, "height width"]
    depth: Float32[np.ndarray, "height width"]

    def mask(self, ids: Iterable[int]) -> Bool[np.ndarray, "height width"]:
        """Returns the mask of all pixels that show one of some objects, given by id."""
        return np.isin(self.ids, list(ids))


@dataclass(frozen=True)
class SceneTruth:
    """The ground truth of a generated dataset.

    Attributes:
        folder: The dataset's folder.
        kind: The kind of scene, e.g. ``"tabletop"``.
        seed: The seed that it was drawn with.
        objects: All objects and surfaces; an ``id`` is an index.
        queries: One per name of an object; surfaces have none.
        absent: Names of no object of the scene.
        metres_from_dataset: Affine map from the frame of ``transforms.json`` to metres.
    """

    folder: Path
    kind: str
    seed: int
    objects: tuple[TruthObject, ...]
    queries: tuple[TruthQuery, ...]
    absent: tuple[str, ...]
    metres_from_dataset: Float64[np.ndarray, "4 4"]

    @classmethod
    def read(cls, folder: StrPath) -> "SceneTruth":
        """Reads a generated dataset's truth.

        Args:
            folder: The dataset's folder.

        Raises:
            DatasetError: If the dataset has no truth, as photographs of one's own have none, or
                its truth is damaged.
        """
        folder = as_path(folder).expanduser().absolute()
        path = folder / SCENE_FILE
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_SceneFile)
            metres = affine_map(found.metres_from_dataset)
        except FileNotFoundError as error:
            msg = (
                f"{str(folder)!r} has no {SCENE_FILE}: photographs of one's own have no truth. "
                "Make a scene that has it with: f3rm make-scene tabletop --out FOLDER."
            )
            raise DatasetError(msg) from error
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            _fail_damaged(path, str(error), error)
        parts = found.objects, found.queries, found.absent
        return cls(folder, found.scene, found.seed, *parts, metres_from_dataset=metres)

    def view(self, file_path: str | Path) -> ViewTruth:
        """Reads the truth of a photograph.

        Args:
            file_path: Its path as in ``transforms.json``, or absolute.

        Raises:
            DatasetError: If it is no photograph of the dataset, or its truth is missing or damaged.
        """
        photograph = self._photograph(Path(file_path))
        size = _read_size(photograph)
        ids_path, depth_path = truth_files(self.folder, photograph.name)
        ids = _read_grey(ids_path, size).astype(np.int32) - 1
        if ids.max() >= len(self.objects):
            _fail_damaged(ids_path, f"object {ids.max()} of {len(self.objects)}")
        depth = _read_grey(depth_path, size).astype(np.float32) / np.float32(MILLIMETRES_PER_METRE)
        return ViewTruth(ids=ids, depth=np.where(depth > 0, depth, np.float32(np.inf)))

    def _photograph(self, file_path: Path) -> Path:
        images = self.folder / IMAGE_FOLDER
        path = Path(os.path.normpath(self.folder / file_path))
        known = path.parent == images or path.parent.resolve() == images.resolve()
        if not (known and path.is_file()):
            msg = (
                f"{str(file_path)!r} is no photograph in {str(images)!r}. Take a frame's file_path "
                "from transforms.json."
            )
            raise DatasetError(msg)
        return path


def truth_files(folder: StrPath, name: str) -> tuple[Path, Path]:
    """Returns the files of a photograph's object ids and depths.

    Args:
        folder: The dataset's folder.
        name: File name of the photograph.
    """
    folder = as_path(folder)
    return folder / IDS_FOLDER / name, folder / DEPTH_FOLDER / name


def _read_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        _fail_damaged(path, str(error), error)


def _read_grey(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a picture of one channel; a file of another (width, height) is refused unread."""
    try:
        with Image.open(path) as image:
            if image.mode not in _GREY_MODES or image.size != size:
                width, height = image.size
                found = f"mode {image.mode} and {height} x {width}, the photograph being "
                _fail_damaged(path, f"{found}{size[1]} x {size[0]}")
            image.verify()  # all checksums; loading stops at the last pixel and misses damage
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        _fail_damaged(path, str(error), error)


def _fail_damaged(path: Path, found: str, error: Exception | None = None) -> NoReturn:
    msg = (
        f"{str(path)!r} is not as f3rm make-scene wrote it: {found}. "
        "Move the dataset away and make it again."
    )
    raise DatasetError(msg) from error
