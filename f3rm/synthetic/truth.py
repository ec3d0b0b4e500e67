"""Reads what is known about a generated dataset: what is in the scene, and what each pixel shows.

It needs no Nerfstudio and no ray caster. :mod:`f3rm.synthetic.scene_truth` writes these files.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from PIL import Image, UnidentifiedImageError

from f3rm.errors import DatasetError, StrPath, as_path
from f3rm.scene.metres import METRES_KEY, SCENE_FILE, affine_map, finite_number

IMAGE_FOLDER = "images"
IDS_FOLDER = "truth/ids"
DEPTH_FOLDER = "truth/depth"

MILLIMETRES_PER_METRE = 1000.0

ObjectKind = Literal["object", "surface"]

_GREY_MODES = ("L", "I;16", "I")


@dataclass(frozen=True)
class TruthObject:
    """One object of the scene.

    Attributes:
        id: Its number in the truth's masks.
        name: What it is called; several objects may share a name.
        instance: Tells objects of one name apart, from 0.
        kind: ``"object"`` for a thing that can be asked for, ``"surface"`` for walls, floor and
            furniture.
        centre: Middle of its box, in metres.
        half_size: Half the extent of its box along x, y and z before it is turned, in metres.
        yaw: How far the box is turned about z, in radians.
    """

    id: int
    name: str
    instance: int
    kind: ObjectKind
    centre: tuple[float, float, float]
    half_size: tuple[float, float, float]
    yaw: float


@dataclass(frozen=True)
class TruthQuery:
    """A text that has an answer in the scene.

    Attributes:
        text: The name of things.
        ids: All objects of that name.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ViewTruth:
    """What a photograph shows.

    Attributes:
        ids: Number of the object at each pixel, -1 where there is nothing.
        depth: Metres along the optical axis, infinite where there is nothing.
    """

    ids: Int32[np.ndarray, "height width"]
    depth: Float32[np.ndarray, "height width"]

    def mask(self, ids: Iterable[int]) -> Bool[np.ndarray, "height width"]:
        """Returns where any of some objects is seen.

        Args:
            ids: Their numbers.
        """
        return np.isin(self.ids, list(ids))


@dataclass(frozen=True)
class SceneTruth:
    """What is known about a generated dataset.

    Attributes:
        folder: The dataset.
        kind: What sort of scene it is, e.g. ``"tabletop"``.
        seed: What it was drawn from.
        objects: Everything in it; an object's ``id`` is its index.
        queries: Texts with an answer, one per name of a thing.
        absent: Names of things that are not there.
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
            DatasetError: If the dataset has no truth, as photographs of one's own, or if its truth
                is damaged.
        """
        folder = as_path(folder)
        folder = folder.expanduser().absolute()
        content = _read_json(folder / SCENE_FILE)
        try:
            return _scene_truth(folder, content)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            _fail_damaged(folder / SCENE_FILE, f"{type(error).__name__}: {error}", error)

    def view(self, file_path: str | Path) -> ViewTruth:
        """Reads what a photograph shows.

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
            what = f"object {ids.max()} of {len(self.objects)}"
            _fail_damaged(ids_path, what)
        depth = _read_grey(depth_path, size).astype(np.float32) / np.float32(MILLIMETRES_PER_METRE)
        return ViewTruth(ids=ids, depth=np.where(depth > 0, depth, np.float32(np.inf)))

    def _photograph(self, file_path: Path) -> Path:
        images = self.folder / IMAGE_FOLDER
        path = Path(os.path.normpath(self.folder / file_path))
        known = path.parent == images or path.parent.resolve() == images.resolve()
        if not (known and path.is_file()):
            msg = (
                f"SceneTruth.view: file_path must name a photograph in {str(images)!r}, got "
                f"{str(file_path)!r}. Take a frame's file_path from transforms.json."
            )
            raise DatasetError(msg)
        return path


def truth_files(folder: StrPath, name: str) -> tuple[Path, Path]:
    """Returns where a photograph's object numbers and depths are.

    Args:
        folder: The dataset.
        name: File name of the photograph.
    """
    folder = as_path(folder)
    return folder / IDS_FOLDER / name, folder / DEPTH_FOLDER / name


def _scene_truth(folder: Path, content: Mapping[str, Any]) -> SceneTruth:
    objects = tuple(_object(entry, index) for index, entry in enumerate(content["objects"]))
    queries = tuple(_query(entry, objects) for entry in content["queries"])
    return SceneTruth(
        folder=folder,
        kind=_text(content["scene"]),
        seed=_whole(content["seed"]),
        objects=objects,
        queries=queries,
        absent=tuple(_text(name) for name in content["absent"]),
        metres_from_dataset=affine_map(content[METRES_KEY]),
    )


def _object(entry: Any, index: int) -> TruthObject:
    if _whole(entry["id"]) != index:
        msg = f"object {index} has the id {entry['id']!r}"
        raise ValueError(msg)
    kind = entry["kind"]
    if kind not in ("object", "surface"):
        msg = f"object {index} is of the kind {kind!r}"
        raise ValueError(msg)
    return TruthObject(
        id=index,
        name=_text(entry["name"]),
        instance=_whole(entry["instance"]),
        kind=kind,
        centre=_triple(entry["centre"]),
        half_size=_triple(entry["half_size"]),
        yaw=finite_number(entry["yaw"]),
    )


def _query(entry: Any, objects: tuple[TruthObject, ...]) -> TruthQuery:
    ids = tuple(_whole(number) for number in entry["ids"])
    if not ids or max(ids) >= len(objects):
        msg = f"a query is for the objects {ids} of {len(objects)}"
        raise ValueError(msg)
    return TruthQuery(text=_text(entry["text"]), ids=ids)


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (finite_number(value) for value in values)
    return x, y, z


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"{value!r} is no whole number from 0"
        raise ValueError(msg)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        msg = f"{value!r} is no text"
        raise ValueError(msg)
    return value


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = (
            f"SceneTruth.read: folder must be a dataset that f3rm make-scene wrote, got "
            f"{str(path.parent)!r} without {path.name}: photographs of one's own have no truth. "
            "Make such a scene with: f3rm make-scene tabletop --out FOLDER."
        )
        raise DatasetError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        _fail_damaged(path, str(error), error)
    if not isinstance(content, Mapping) or METRES_KEY not in content:
        _fail_damaged(path, "no description with truth")
    return content


def _read_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        _fail_damaged(path, str(error), error)


def _read_grey(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture of one channel whose width and height must be known before it is read."""
    try:
        with Image.open(path) as image:
            if image.mode not in _GREY_MODES or image.size != size:
                width, height = image.size
                what = f"mode {image.mode} and {height} x {width}, the photograph being "
                _fail_damaged(path, f"{what}{size[1]} x {size[0]}")
            image.verify()  # checksums up to the end mark, which loading does not need
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        _fail_damaged(path, str(error), error)


def _fail_damaged(path: Path, found: str, error: Exception | None = None) -> NoReturn:
    msg = (
        f"SceneTruth: {str(path)!r} must be as f3rm make-scene wrote it, got {found}. Move the "
        "dataset away and make it again."
    )
    raise DatasetError(msg) from error
