"""Lists of images and videos, with labels where there are some, and their file beside a cache.

The position in the list is an item's index; it stays the same when an item fails. Labels decide no
feature, so they are not part of the cache: changing them recomputes nothing.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from f3rm.errors import CacheError, DatasetError
from f3rm.store.chunks import write_atomically
from f3rm.store.items import TRANSFORMS, ImageItem, items_from_paths, read_items
from f3rm.store.npy import load_npy
from f3rm.store.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)

_FORMAT_VERSION = 1
_LARGEST_TARGET = 1 << 48

_WILD = set("*?[")


@dataclass(frozen=True)
class _SplitFile:
    schema_version: int
    names: tuple[str, ...]
    targets: tuple[Annotated[int, Meta(gt=-_LARGEST_TARGET, lt=_LARGEST_TARGET)], ...] | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ItemList:
    """Images and videos in order.

    Attributes:
        items: The files; names are relative to the dataset's folder.
        targets: A label per item; None without labels.
        classes: Names of the labels, if they come from folders.
    """

    items: tuple[ImageItem, ...]
    targets: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.items):
            msg = f"Labels must be as many as items, got {len(self.targets)} for {len(self.items)}."
            raise DatasetError(msg)

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the items, relative to the dataset's folder."""
        return tuple(item.name for item in self.items)


def list_items(source: Path | str | Sequence[Path | str], *, labelled: bool = False) -> ItemList:
    """Lists the items of a folder, a file, a pattern, or a sequence of paths.

    Args:
        source: A folder, searched with its subfolders; a dataset with ``transforms.json`` or such a
            file; a text file with a path per line, or an array ``.npy`` of paths, relative to that
            file; a single image or video; a pattern such as ``shots/*.png``; or paths.
        labelled: Whether the folders in ``source`` are classes, as in torchvision's
            ``ImageFolder``.

    Raises:
        DatasetError: If there is no image or video, or the list is damaged or repeats a file.
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
            msg = f"{str(path)!r} must name every file once. Remove the repeated lines."
            raise DatasetError(msg)
    elif path.is_file():
        found = items_from_paths([path], path.parent)
    elif not _WILD & set(str(path)):
        raise DatasetError(f"No such file or folder: {str(path)!r}.")
    else:
        paths = _matching(path)
        found = items_from_paths(paths, _common_folder(paths)) if paths else []
    if not found:
        raise _nothing(path)
    return ItemList(tuple(found))


def _class_folders(root: Path) -> ItemList:
    """Lists a folder of class folders, with the order and the labels of torchvision."""
    if not root.is_dir():
        raise DatasetError(f"No such folder: {str(root)!r}.")
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
    """Returns the images and videos that match a pattern with ``*``, ``?`` or ``[...]``."""
    # Path.glob takes no absolute pattern, so the part before the first wildcard is its root.
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
        msg = f"{str(path)!r} must hold paths, one per line or an array of texts: {error}."
        raise DatasetError(msg) from error
    return [path.parent / word.strip() for word in words if word.strip()]


def _common_folder(paths: Sequence[Path]) -> Path:
    if not paths:
        raise _nothing(Path())
    return Path(os.path.commonpath([path.expanduser().absolute().parent for path in paths]))


def _nothing(path: Path) -> DatasetError:
    msg = f"No images or videos in {str(path)!r}. Known endings are {', '.join(SUFFIXES)}."
    return DatasetError(msg)


def split_folder(out: Path, split: str) -> Path:
    """Returns the folder of a split's chunks.

    Raises:
        CacheError: If the split's name is empty, hidden or a path.
    """
    if not split or split.startswith(".") or "/" in split or "\\" in split:
        msg = f"A split must have a plain name such as 'train', got {split!r}. Rename it."
        raise CacheError(msg)
    return out.expanduser() / split


def write_split(out: Path, split: str, items: ItemList) -> None:
    """Writes the list of a split's items to ``<split>.items.json``.

    Raises:
        CacheError: If it cannot be written.
    """
    content = msgspec.json.encode(
        _SplitFile(_FORMAT_VERSION, items.names, items.targets, items.classes)
    )
    write_atomically(_items_file(out, split), lambda stream: stream.write(content))


def read_split(out: Path, split: str) -> ItemList:
    """Reads the list of a split's items.

    Raises:
        CacheError: If there is no such split, or the list is damaged.
    """
    path = _items_file(out, split)
    if not path.is_file():
        found = sorted(path.name.removesuffix(".items.json") for path in out.glob("*.items.json"))
        msg = (
            f"{str(out)!r} has no split {split!r}, got {', '.join(found) or 'none'}. "
            "Extract it, or name another."
        )
        raise CacheError(msg)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_SplitFile)
        if found.schema_version != _FORMAT_VERSION:
            raise ValueError("its schema_version is another")
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise CacheError(
            f"{str(path)!r} is not a list of items: {error}. Extract again."
        ) from error
    items = tuple(ImageItem(name, Path(name)) for name in found.names)
    return ItemList(items, found.targets, found.classes)


def _items_file(out: Path, split: str) -> Path:
    return split_folder(out, split).with_name(f"{split}.items.json")
