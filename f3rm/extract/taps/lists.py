"""Which images and videos there are, with labels where they have some.

The position in the list is an item's index; it stays the same when an item fails.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from f3rm.errors import DatasetError
from f3rm.extract.taps.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from f3rm.store.items import TRANSFORMS, ImageItem, items_from_paths, read_items
from f3rm.store.npy import load_npy

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)

_WILD = set("*?[")


@dataclass(frozen=True)
class ItemList:
    """Images and videos in order.

    Attributes:
        items: The files; names are relative to the dataset's folder.
        targets: A label per item; None if there are none.
        classes: Names of the labels where they come from folders.
    """

    items: tuple[ImageItem, ...]
    targets: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.items):
            msg = (
                f"ItemList: targets must be as many as items, got {len(self.targets)} for "
                f"{len(self.items)}. Give every item one label."
            )
            raise DatasetError(msg)

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the items."""
        return tuple(item.name for item in self.items)


def list_items(source: Path | str | Sequence[Path | str], *, labelled: bool = False) -> ItemList:
    """Lists the items of a folder, a file, a pattern, or a sequence of paths.

    Args:
        source: A folder, searched with its subfolders; a dataset with ``transforms.json`` or such a
            file; a text file with a path per line, or an array ``.npy`` of paths, relative to that
            file; a single image or video; a pattern such as ``shots/*.png``; or paths.
        labelled: Whether the folders in a folder are classes, as in torchvision's ``ImageFolder``.

    Raises:
        DatasetError: If there is nothing.
    """
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
        return ItemList(tuple(items_from_paths(paths, _common_folder(paths))))
    path = Path(source).expanduser()
    if labelled:
        return _class_folders(path)
    if path.is_dir() and not (path / TRANSFORMS).is_file():
        found = items_from_paths(_below(path), path)
    elif path.is_dir() or path.suffix == ".json":
        found = read_items(path)
    elif path.suffix in (".txt", ".npy") and path.is_file():
        listed = _listed(path)
        found = items_from_paths(listed, path.parent)
        if len(found) != len(listed):
            msg = f"list_items: {str(path)!r} must name every file once. Take repeated lines out."
            raise DatasetError(msg)
    elif path.is_file():
        found = items_from_paths([path], path.parent)
    else:
        paths = _matching(path)
        found = items_from_paths(paths, _common_folder(paths)) if paths else []
    if not found:
        raise _nothing(path)
    return ItemList(tuple(found))


def _class_folders(root: Path) -> ItemList:
    """Lists a folder of class folders in the order of torchvision's ``ImageFolder``."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    items: list[ImageItem] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        found = items_from_paths(_below(root / name), root)
        items.extend(found)
        targets.extend([target] * len(found))
    if not items:
        raise _nothing(root)
    return ItemList(tuple(items), tuple(targets), tuple(classes))


def _below(folder: Path) -> list[Path]:
    """Returns the images and videos of a folder and its subfolders, folder by folder."""
    found: list[Path] = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        chosen = (name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)
        found.extend(Path(parent, name) for name in chosen)
    return found


def _matching(pattern: Path) -> list[Path]:
    """Returns the images and videos that a pattern with ``*``, ``?`` or ``[...]`` fits."""
    fixed = list(itertools.takewhile(lambda part: not _WILD & set(part), pattern.parts))
    rest = pattern.parts[len(fixed) :]
    found = Path(*fixed).glob(str(Path(*rest))) if rest else []
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _listed(path: Path) -> list[Path]:
    try:
        if path.suffix == ".npy":
            words = [str(word) for word in load_npy(path).reshape(-1)]
        else:
            words = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        msg = (
            f"list_items: {str(path)!r} must be a list of paths, one per line or an array of "
            f"texts, got: {error}. Write it again."
        )
        raise DatasetError(msg) from error
    return [path.parent / word.strip() for word in words if word.strip()]


def _common_folder(paths: Sequence[Path]) -> Path:
    if not paths:
        raise _nothing(Path())
    return Path(os.path.commonpath([path.expanduser().absolute().parent for path in paths]))


def _nothing(path: Path) -> DatasetError:
    return DatasetError(
        f"list_items: source must hold images or videos, got none in {str(path)!r}. Known endings "
        f"are {', '.join(SUFFIXES)}."
    )
