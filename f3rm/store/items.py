"""Lists a dataset's images: the frames of ``transforms.json``, in its order.

Only ``file_path`` is read: no cameras, no train and eval splits, and no Nerfstudio is needed. For
other dataparsers, :func:`items_from_paths` takes their image paths.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from f3rm.errors import DatasetError, ImageError, StrPath, as_path, printable

TRANSFORMS = "transforms.json"
MOVED_DATA = "F3RM_DATA"
"""Environment variable that says where the dataset of a run was moved to."""
_SHOWN = 3
_SHOWN_LETTERS = 200


@dataclass(frozen=True)
class ImageItem:
    """One image of a dataset.

    Attributes:
        name: POSIX path relative to the dataset, as written in ``file_path``; the key of the image
            in caches.
        path: Absolute path of the file.
    """

    name: str
    path: Path


def dataset_root(data: StrPath) -> Path:
    """Returns the absolute folder of a dataset, given the folder or a ``.json`` file in it."""
    data = as_path(data)
    folder = data.parent if data.suffix == ".json" else data
    return folder.expanduser().absolute()


def located(data: Path) -> Path:
    """Returns where the dataset of a trained run is now.

    Args:
        data: Where it was when the run was trained. If it is no longer there, the environment
            variable ``F3RM_DATA`` is asked.

    Raises:
        DatasetError: If it is in neither place.
    """
    path = data.expanduser().absolute()
    if not path.exists() and MOVED_DATA in os.environ:
        path = Path(os.environ[MOVED_DATA]).expanduser().absolute()
    if not path.exists():
        msg = (
            f"No such dataset: {str(path)!r}. If it was moved since training, give its new path "
            f"with --data (data= in Python), or with {MOVED_DATA}=PATH before an ns-* command, "
            "e.g. ns-eval."
        )
        raise DatasetError(msg)
    return path


def read_items(data: StrPath, *, present: bool = True) -> list[ImageItem]:
    """Lists the images of a dataset in the order of its frames; a file named twice counts once.

    Args:
        data: The dataset folder, with ``transforms.json`` in it, or such a ``.json`` file.
        present: Whether to check that every image file exists.

    Raises:
        DatasetError: If there is no usable list of frames.
        ImageError: If ``present``, and image files are missing.
    """
    data = as_path(data)
    root = dataset_root(data)
    source = data.expanduser() if data.suffix == ".json" else root / TRANSFORMS
    items: dict[str, ImageItem] = {}
    for number, frame in enumerate(_frames(source)):
        name = _frame_name(frame, number, source)
        items.setdefault(name, ImageItem(name, root / name))
    if present:
        check_present(list(items.values()), source)
    return list(items.values())


def items_from_paths(paths: Iterable[Path], root: Path) -> list[ImageItem]:
    """Names the images of a dataparser: relative to ``root`` if inside it, else absolute.

    Args:
        paths: Image files, absolute or relative to the working directory.
        root: The dataset folder.

    Raises:
        DatasetError: If a name is not valid Unicode.
    """
    base = Path(os.path.normpath(root.expanduser().absolute()))
    items: dict[str, ImageItem] = {}
    for path in paths:
        absolute = path.expanduser().absolute()
        _check_name(str(absolute), "The name of an image or video")
        plain = Path(os.path.normpath(absolute))
        name = (plain.relative_to(base) if plain.is_relative_to(base) else plain).as_posix()
        items.setdefault(name, ImageItem(name, absolute))
    return list(items.values())


def _frames(source: Path) -> list[object]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not source.parent.exists():
            raise DatasetError(
                f"No such folder: {str(source.parent)!r}. Check the path given with --data."
            ) from error
        raise DatasetError(
            f"--data must be a dataset with {TRANSFORMS}, got {str(source.parent)!r} without "
            f"{source.name}. Point --data at such a folder, or make one with ns-process-data."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{str(source)!r} must be readable JSON, got: {error}. Make it again with "
            "ns-process-data."
        ) from error
    frames = content.get("frames") if isinstance(content, Mapping) else None
    if not isinstance(frames, list) or not frames:
        found = "an empty list" if frames == [] else "none"
        raise DatasetError(
            f'{str(source)!r} must have "frames", at least one, got {found}. '
            "Check how the file was made; ns-process-data writes such a list."
        )
    return frames


def _frame_name(frame: object, number: int, source: Path) -> str:
    name = frame.get("file_path") if isinstance(frame, Mapping) else None
    if not isinstance(name, str) or not name:
        raise DatasetError(
            f'Frame {number} of {str(source)!r} must have a "file_path", got none. '
            "Add the path of its image, relative to the dataset folder."
        )
    _check_name(name, f'The "file_path" of frame {number} in {str(source)!r}')
    return Path(name).as_posix()


def _check_name(name: str, what: str) -> None:
    """Refuses names that no file system accepts, or that a manifest cannot hold."""
    if "\0" in name or not is_unicode(name):
        raise DatasetError(
            f"{what} must be Unicode text without NUL, got {name[:_SHOWN_LETTERS]!r}. "
            "Rename the file."
        )


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8; Python's strings may hold lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_regular_file(path: Path) -> bool:
    """Returns whether a path is a regular file; False for one that the system does not accept."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_present(items: Sequence[ImageItem], source: Path) -> None:
    """Checks that the image files exist.

    Args:
        items: The images.
        source: File or folder that lists them, for the message.

    Raises:
        ImageError: If some are missing; the message names the first of them.
    """
    missing = [printable(item.name) for item in items if not is_regular_file(item.path)]
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
    raise ImageError(
        f"Every frame's image must exist, but {len(missing)} of {len(items)} named in "
        f"{str(source)!r} are missing: {shown}. Put the files there, or remove these frames."
    )
