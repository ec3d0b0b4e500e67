"""Reading an extraction: all items, a random sample, batches, single items.

Files are memory-mapped; only the wanted tap of the wanted items is read.
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
from f3rm.extract.taps.lists import ItemList, read_split, split_folder
from f3rm.extract.taps.spec import ExtractionSpec
from f3rm.extract.taps.worker import SHAPES
from f3rm.store.chunks import map_chunk
from f3rm.store.manifest import Manifest, read_manifest
from f3rm.store.records import ChunkRecord

# Errors that an altered manifest can cause on the way to its shapes.
_UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)


class Table(NamedTuple):
    """Features of some items.

    Attributes:
        features: One row per item, channels last; of the stored type.
        targets: (items,) labels; None without labels.
        indices: (items,) positions in the extracted list.
        names: Names of the items.
    """

    features: Shaped[np.ndarray, "items ..."]
    targets: Int[np.ndarray, " items"] | None
    indices: Int[np.ndarray, " items"]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        features: Shaped[np.ndarray, "items ..."],
        items: ItemList,
        indices: Int[np.ndarray, " items"],
    ) -> "Table":
        """Adds labels and names to the features of the items at ``indices``."""
        targets = None if items.targets is None else np.array(items.targets, np.int64)[indices]
        names = items.names
        return cls(features, targets, indices, tuple(names[index] for index in indices.tolist()))


class TapStore:
    """One split of an extraction, open for reading.

    Attributes:
        folder: The folder of its chunks.
        split: Its name.
        spec: The specification.
        items: All items of the list, failed ones too.
        failed: Name of a failed item -> reason.
        indices: Positions in :attr:`items` of those with features, ascending.
        dtype: Type on disk; the widest if chunks differ.
    """

    def __init__(self, folder: Path, manifest: Manifest, items: ItemList) -> None:
        """Maps the chunks that a manifest names; see :meth:`open`.

        Raises:
            SpecError: If the cache was extracted without taps.
            CacheError: If its chunks do not have the shapes of its taps.
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
        # Name -> (chunk, row): rows are in the order of extraction, not of the list.
        self._rows = {image.name: (image.chunk, image.row) for image in manifest.images}
        found = (index for index, name in enumerate(items.names) if name in self._rows)
        self.indices = np.fromiter(found, dtype=np.int64)

    @classmethod
    def open(cls, out: StrPath, split: str = "all", *, items: ItemList | None = None) -> "TapStore":
        """Opens a split after checking its manifest and the length and type of every chunk.

        Args:
            out: The folder that was given to :func:`f3rm.extract.taps.run.extract`.
            split: The split's name.
            items: The items; None reads them from the folder.

        Raises:
            CacheError: If there is no such split, or it is damaged.
        """
        out = as_path(out)
        folder = split_folder(out, split)
        items = read_split(out, split) if items is None else items
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
            tap: The tap; None if the store has only one.

        Raises:
            CacheError: If there is no such tap.
            IndexError: If the item has no features.
        """
        chunk, _ = self._row(index)
        return self._layouts[chunk].shapes[self._tap(tap)]

    def load(self, tap: str | None = None) -> Table:
        """Reads one tap of all items, in the order of the list.

        Args:
            tap: The tap; None if the store has only one.

        Raises:
            CacheError: If there is no such tap, or items differ in shape.
        """
        return self.take(self.indices, tap)

    def sample(self, num: int, seed: int = 0, tap: str | None = None) -> Table:
        """Draws items at random, without repetition; reads only these.

        The result depends on items and seed, not on the files that hold them.

        Args:
            num: Number of items; all if negative, or if there are fewer.
            seed: Seed of the draw.
            tap: The tap; None if the store has only one.

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
        """Yields all items in batches.

        Args:
            size: Items per batch.
            tap: The tap; None if the store has only one.
        """
        for start in range(0, len(self), size):
            yield self.take(self.indices[start : start + size], tap)

    def take(self, indices: Sequence[int] | np.ndarray, tap: str | None = None) -> Table:
        """Reads the items at some positions.

        Args:
            indices: Positions in the list of items.
            tap: The tap; None if the store has only one.

        Raises:
            CacheError: If there is no such tap, or items differ in shape.
            IndexError: If an item has no features.
        """
        name = self._tap(tap)
        wanted = np.asarray(indices, dtype=np.int64)
        found = [self._row(index) for index in wanted.tolist()]
        rows = np.array(found, dtype=np.int64).reshape(-1, 2)  # (items, 2): chunk and row
        numbers = sorted(set(rows[:, 0].tolist())) or [0]  # chunk 0 gives no items their shape
        shapes = {self._layouts[number].shapes[name] for number in numbers}
        if len(shapes) > 1:
            msg = (
                f"Items have values of different shapes for {name!r}: {sorted(shapes)}. Extract "
                "with resize='exact' or a pooling operation, or take one item at a time."
            )
            raise CacheError(msg)
        features = np.empty((len(wanted), *shapes.pop()), dtype=self.dtype)
        for number in numbers:
            mine = np.flatnonzero(rows[:, 0] == number)
            layout, chunk = self._layouts[number], self._chunks[number]
            features[mine] = layout.unpack(chunk, name, rows[mine, 1])
        return Table.of(features, self.items, wanted)

    def _tap(self, tap: str | None) -> str:
        if tap is None and len(self.taps) == 1:
            return self.taps[0]
        name = None if tap is None else str(Tap.parse(tap))
        if name is not None and name in self.taps:
            return name
        hint = near_matches(name, self.taps) if name else f"Name one of {', '.join(self.taps)}."
        raise CacheError(f"tap must be one of the {len(self.taps)} extracted, got {name!r}; {hint}")

    def _row(self, index: int) -> tuple[int, int]:
        name = self.items.names[index]
        if name not in self._rows:
            reason = self.failed.get(name, "it was not extracted")
            msg = f"The item {index}, {name!r}, has no features: {reason}."
            raise IndexError(msg)
        return self._rows[name]


def _layouts(folder: Path, manifest: Manifest, taps: tuple[str, ...]) -> list[Layout]:
    """Returns the layout of every chunk, checked against its shape."""
    try:
        plain: Any = json.loads(manifest.provenance[SHAPES])
        kinds = [
            {tap: tuple(int(side) for side in shape) for tap, shape in kind[SHAPES].items()}
            for kind in plain["kinds"]
        ]
        found = [Layout(kinds[number], manifest.channels) for number in plain["chunks"]]
        if len(found) != len(manifest.chunks) or not all(map(_fits, found, manifest.chunks)):
            raise ValueError("they do not fit its chunks")
        if any(set(layout.shapes) != set(taps) for layout in found):
            raise ValueError("they are of other taps")
    except _UNREADABLE as error:
        msg = f"The manifest in {str(folder)!r} has no usable shapes: {error}. Extract again."
        raise CacheError(msg) from error
    return found


def _fits(layout: Layout, chunk: ChunkRecord) -> bool:
    """Returns whether a chunk's rows hold exactly the values of an untrusted layout."""
    if any(not shape or min(shape) < 1 for shape in layout.shapes.values()):
        return False
    total = sum(math.prod(shape) for shape in layout.shapes.values())
    rows, cols, channels = chunk.shape[1:]
    return total == rows * cols * channels and layout.grid == (rows, cols)
