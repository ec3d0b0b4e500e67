"""Reads the ground truth of a generated dataset: its objects, and object and depth at each pixel.

:mod:`f3rm.synthetic.scene_truth` writes these files. Reading needs neither Nerfstudio nor Open3D.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

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

AbsentKind = Literal["unknown_word", "absent_word", "absent_pair", "swapped", "wrong_material"]

_GREY_MODES = ("L", "I;16", "I")


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
        shape: Its shape, e.g. ``"mug"``; None for a surface.
    """

    id: int
    name: str
    instance: int
    kind: ObjectKind
    centre: tuple[float, float, float]
    half_size: tuple[float, float, float]
    yaw: float
    shape: str | None


@dataclass(frozen=True)
class TruthQuery:
    """A name and the ids of all objects that have it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class AbsentPrompt:
    """A prompt that is true of no object of the scene.

    Attributes:
        text: The prompt.
        kind: ``"unknown_word"`` has a word outside the generator's vocabulary; ``"absent_word"`` a
            known one that no object's name has; ``"absent_pair"`` a colour and a shape that are
            both in the scene, but never together; ``"swapped"`` exchanges the colours of two
            objects; ``"wrong_material"`` has a colour and shape of the scene, of another material.
        shared_words: Most words that it has in common with one object's name.
    """

    text: str
    kind: AbsentKind
    shared_words: int


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
        absent: Prompts that are true of no object of the scene.
        metres_from_dataset: Affine map from the frame of ``transforms.json`` to metres.
    """

    folder: Path
    kind: str
    seed: int
    objects: tuple[TruthObject, ...]
    queries: tuple[TruthQuery, ...]
    absent: tuple[AbsentPrompt, ...]
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
        content = _read_json(folder / SCENE_FILE)
        try:
            return _scene_truth(folder, content)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            _fail_damaged(folder / SCENE_FILE, f"{type(error).__name__}: {error}", error)

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


def _scene_truth(folder: Path, content: Mapping[str, Any]) -> SceneTruth:
    objects = tuple(_object(entry, index) for index, entry in enumerate(content["objects"]))
    queries = tuple(_query(entry, objects) for entry in content["queries"])
    return SceneTruth(
        folder=folder,
        kind=_text(content["scene"]),
        seed=_whole(content["seed"]),
        objects=objects,
        queries=queries,
        absent=tuple(map(_absent, content["absent"])),
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
        shape=_text(entry["words"]["shape"]) if kind == "object" else None,
    )


def _query(entry: Any, objects: tuple[TruthObject, ...]) -> TruthQuery:
    ids = tuple(_whole(number) for number in entry["ids"])
    if not ids or max(ids) >= len(objects):
        msg = f"a query is for the objects {ids} of {len(objects)}"
        raise ValueError(msg)
    return TruthQuery(text=_text(entry["text"]), ids=ids)


def _absent(entry: Any) -> AbsentPrompt:
    kind = entry["kind"]
    if kind not in get_args(AbsentKind):
        msg = f"an absent prompt is of the kind {kind!r}"
        raise ValueError(msg)
    return AbsentPrompt(_text(entry["text"]), kind, _whole(entry["shared_words"]))


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
            f"{str(path.parent)!r} has no {path.name}: photographs of one's own have no truth. "
            "Make a scene that has it with: f3rm make-scene tabletop --out FOLDER."
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
