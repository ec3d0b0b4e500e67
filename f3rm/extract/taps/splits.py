"""The list of a split's items, kept beside its chunks: names, labels, order.

Labels decide no feature, so that they are no part of the cache: changing them recomputes nothing.
"""

import json
from pathlib import Path

from f3rm.errors import CacheError
from f3rm.extract.taps.lists import ItemList
from f3rm.store import json_fields as fields
from f3rm.store.chunks import write_atomically
from f3rm.store.items import ImageItem

ITEMS_VERSION = 1


def split_folder(out: Path, split: str) -> Path:
    """Returns the folder of a split's chunks.

    Raises:
        CacheError: If the name is none for a folder.
    """
    if not split or split.startswith(".") or "/" in split or "\\" in split:
        msg = f"split_folder: split must be a plain name such as 'train', got {split!r}. Rename it."
        raise CacheError(msg)
    return out.expanduser() / split


def items_file(out: Path, split: str) -> Path:
    """Returns the file that lists the items of a split."""
    return split_folder(out, split).with_name(f"{split}.items.json")


def write_items(out: Path, split: str, items: ItemList) -> None:
    """Writes the list of items of a split.

    Raises:
        CacheError: If the file system refuses.
    """
    plain = {
        "schema_version": ITEMS_VERSION,
        "names": list(items.names),
        "targets": None if items.targets is None else list(items.targets),
        "classes": list(items.classes),
    }
    text = json.dumps(plain, ensure_ascii=False).encode()
    write_atomically(items_file(out, split), lambda stream: stream.write(text))


def read_items(out: Path, split: str) -> ItemList:
    """Reads the list of items of a split.

    Raises:
        CacheError: If there is no such split, or the list is damaged.
    """
    path = items_file(out, split)
    if not path.is_file():
        raise CacheError(_no_split(out, split))
    try:
        plain = fields.mapping(json.loads(path.read_text(encoding="utf-8")), "the list")
        if fields.integer(plain, "schema_version") != ITEMS_VERSION:
            raise fields.InvalidFieldError("its schema_version is another")
        names, classes = (
            fields.items_of(plain, "names"),
            fields.items_of(plain, "classes"),
        )
        targets = None
        if plain.get("targets") is not None:
            given = fields.items_of(plain, "targets")
            targets = tuple(fields.bounded(one, "a target", -(2**48)) for one in given)
        if not all(isinstance(text, str) for text in (*names, *classes)):
            raise fields.InvalidFieldError("names must be texts")
    except (OSError, ValueError, RecursionError, fields.InvalidFieldError) as error:
        msg = f"TapStore.open: {str(path)!r} must be a list of items, but {error}. Extract again."
        raise CacheError(msg) from error
    items = tuple(ImageItem(name, Path(name)) for name in names)
    return ItemList(items, targets, tuple(classes))


def _no_split(out: Path, split: str) -> str:
    there = sorted(path.name.removesuffix(".items.json") for path in out.glob("*.items.json"))
    return (
        f"TapStore.open: {str(out)!r} must hold the split {split!r}, got "
        f"{', '.join(there) or 'no split'}. Extract it, or name another."
    )
