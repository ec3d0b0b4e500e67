"""Reading what was extracted: all items, a random sample, batches, single ones.

Files are memory-mapped; nothing is read but the tap and the items asked for.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.taps.layout import Layout, Shape
from f3rm.extract.taps.lists import ItemList
from f3rm.extract.taps.spec import ExtractionSpec
from f3rm.extract.taps.splits import read_items, split_folder
from f3rm.extract.taps.worker import SHAPES
from f3rm.store.chunks import map_chunk
from f3rm.store.manifest import Manifest, read_manifest
from f3rm.store.records import ChunkRecord

_UNREADABLE = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class Table(NamedTuple):
    """Features of some items.

    Attributes:
        features: One row per item, channels last; of the stored type.
        targets: (items,) labels; None if there are none.
        indices: (items,) positions in the list that was extracted.
        names: Names of the items.
    """

    features: Shaped[np.ndarray, "items ..."]
    targets: Int[np.ndarray, " items"] | None
    indices: Int[np.ndarray, " items"]
    names: tuple[str, ...]


class TapStore:
    """One split of an extraction, open for reading.

    Attributes:
        folder: Where its chunks lie.
        split: Its name.
        spec: What was extracted.
        items: All items that were asked for, whether they succeeded or not.
        failed: Why items have no features, by name.
        indices: Positions in :attr:`items` of those that have features, ascending.
        dtype: Type on disk; the widest where chunks differ.
    """

    def __init__(self, folder: Path, manifest: Manifest, items: ItemList) -> None:
        """Maps the chunks that a manifest names; see :meth:`open`.

        Raises:
            CacheError: If the chunks were not written by this toolkit.
        """
        self.folder = folder
        self.split = folder.name
        self.items = items
        self.spec = ExtractionSpec.of_recorded(manifest.spec)
        self._chunk_sizes = [len(chunk.images) for chunk in manifest.chunks]
        self.failed = {record.name: record.error for record in manifest.failed}
        self._layouts = _layouts(folder, manifest, self.taps)
        self._chunks = [map_chunk(folder, chunk) for chunk in manifest.chunks]
        self.dtype = np.result_type(*(chunk.dtype for chunk in self._chunks))
        self._places = {image.name: (image.chunk, image.row) for image in manifest.images}
        found = (index for index, name in enumerate(items.names) if name in self._places)
        self.indices = np.fromiter(found, dtype=np.int64)

    @classmethod
    def open(cls, out: StrPath, split: str = "all", *, items: ItemList | None = None) -> "TapStore":
        """Opens a split after checking its manifest and the length and type of every chunk.

        Args:
            out: The folder that was given to :func:`f3rm.extract.taps.run.extract`.
            split: Which list of items.
            items: The items, if they are at hand; else they are read from the folder.

        Raises:
            CacheError: If there is no such split, or it is damaged.
        """
        out = as_path(out)
        folder = split_folder(out, split)
        if items is None:
            items = read_items(out, split)
        return cls(folder, read_manifest(folder), items)

    def __len__(self) -> int:
        """Returns the number of items that have features."""
        return len(self.indices)

    def __reduce__(self) -> tuple[object, ...]:
        """Lets worker processes open the folder instead of copying features."""
        return TapStore.open, (self.folder.parent, self.split)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return self.spec.taps

    def shape(self, index: int, tap: str | None = None) -> Shape:
        """Returns the shape of a value, channels last.

        Args:
            index: Position in the list of items.
            tap: Which one; may be left out if there is only one.

        Raises:
            CacheError: If there is no such tap.
            IndexError: If the item has no features.
        """
        chunk, _ = self._place(index)
        return self._layouts[chunk].shapes[self._tap(tap)]

    def load(self, tap: str | None = None) -> Table:
        """Reads one tap of all items, in the order of the list.

        Args:
            tap: Which one; may be left out if there is only one.

        Raises:
            CacheError: If there is no such tap, or items differ in shape.
        """
        return self.take(self.indices, tap)

    def sample(self, num: int, seed: int = 0, tap: str | None = None) -> Table:
        """Draws items at random, without repetition; reads only these.

        The result depends on items and seed, not on how they are cut into files.

        Args:
            num: How many; all if negative, or if there are fewer.
            seed: Seed of the draw.
            tap: Which one; may be left out if there is only one.

        Returns:
            The items in the order of the list.

        Raises:
            CacheError: If there is no such tap, or items differ in shape.
        """
        if num < 0 or num >= len(self):
            return self.load(tap)
        chosen = np.random.default_rng(seed).choice(len(self), size=num, replace=False)
        return self.take(np.sort(self.indices[chosen]), tap)

    @property
    def chunk_size(self) -> int:
        """Items per file of the extraction; the last file may have fewer."""
        return max(self._chunk_sizes, default=1)

    def batches(self, size: int = 1024, tap: str | None = None) -> Iterator[Table]:
        """Yields all items, some at a time.

        Args:
            size: Items at a time.
            tap: Which one; may be left out if there is only one.
        """
        for start in range(0, len(self), size):
            yield self.take(self.indices[start : start + size], tap)

    def take(self, indices: Sequence[int] | np.ndarray, tap: str | None = None) -> Table:
        """Reads some items.

        Args:
            indices: Positions in the list of items.
            tap: Which one; may be left out if there is only one.

        Raises:
            CacheError: If there is no such tap, or items differ in shape.
            IndexError: If an item has no features.
        """
        name = self._tap(tap)
        wanted = np.asarray(indices, dtype=np.int64)
        found = [self._place(index) for index in wanted.tolist()]
        places = np.array(found, dtype=np.int64).reshape(-1, 2)
        numbers = sorted(set(places[:, 0].tolist())) or [0]
        shapes = {self._layouts[number].shapes[name] for number in numbers}
        if len(shapes) > 1:
            msg = (
                f"TapStore.take: items must have values of one shape, got {sorted(shapes)} for "
                f"{name!r}. Extract with resize='exact', pool, or take one item at a time."
            )
            raise CacheError(msg)
        features = np.empty((len(wanted), *shapes.pop()), dtype=self.dtype)
        for number in numbers:
            mine = np.flatnonzero(places[:, 0] == number)
            features[mine] = self._layouts[number].unpack(
                self._chunks[number], name, places[mine, 1]
            )
        names = self.items.names
        targets = self.items.targets
        return Table(
            features,
            None if targets is None else np.array(targets, dtype=np.int64)[wanted],
            wanted,
            tuple(names[index] for index in wanted.tolist()),
        )

    def _tap(self, tap: str | None) -> str:
        if tap is None and len(self.taps) == 1:
            return self.taps[0]
        name = str(Tap.parse(tap)) if tap is not None else None
        if name in self.taps and name is not None:
            return name
        hint = near_matches(name, self.taps) if name else f"Name one of {', '.join(self.taps)}."
        msg = f"TapStore: tap must be one of the {len(self.taps)} extracted, got {name!r}; {hint}"
        raise CacheError(msg)

    def _place(self, index: int) -> tuple[int, int]:
        name = self.items.names[index]
        if name not in self._places:
            reason = self.failed.get(name, "it was not extracted")
            msg = f"TapStore: the item {index}, {name!r}, has no features: {reason}."
            raise IndexError(msg)
        return self._places[name]


def _layouts(folder: Path, manifest: Manifest, taps: tuple[str, ...]) -> list[Layout]:
    """Returns the layout of every chunk, checked against its shape."""
    try:
        plain: Any = json.loads(manifest.provenance[SHAPES])
        kinds = [
            {tap: tuple(int(side) for side in shape) for tap, shape in kind[SHAPES].items()}
            for kind in plain["kinds"]
        ]
        found = [Layout(kinds[number], manifest.channels) for number in plain["chunks"]]
    except _UNREADABLE as error:
        raise CacheError(_no_shapes(folder, f"got {error!r}")) from error
    if len(found) != len(manifest.chunks) or not all(map(_fits, found, manifest.chunks)):
        raise CacheError(_no_shapes(folder, "its shapes do not fit its chunks"))
    if any(set(layout.shapes) != set(taps) for layout in found):
        raise CacheError(_no_shapes(folder, "its shapes are of other taps"))
    return found


def _fits(layout: Layout, chunk: ChunkRecord) -> bool:
    """Returns whether a chunk's rows hold exactly the values of a layout."""
    if any(not shape or min(shape) < 1 for shape in layout.shapes.values()):
        return False
    total = sum(math.prod(shape) for shape in layout.shapes.values())
    rows, cols, channels = chunk.shape[1:]
    return total == rows * cols * channels and layout.grid == (rows, cols)


def _no_shapes(folder: Path, reason: str) -> str:
    return (
        f"TapStore.open: {str(folder)!r} must say what shapes its chunks have, but {reason}. "
        "Extract again."
    )
