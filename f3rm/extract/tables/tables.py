"""Features item by item: from a finished extraction, or from anything else that computes them.

A store's files are memory-mapped; only the wanted tap of the wanted items is read.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import CacheError, StrPath, as_path
from f3rm.extract.tables.items import ItemList, read_split, split_folder
from f3rm.store.layout import Shape
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec


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
    """One split of an extraction, open for reading; a view of its cache by items and labels.

    Attributes:
        store: The cache.
        split: The split's name.
        items: All items of the list, failed ones too.
        failed: Name of a failed item -> reason.
        indices: Positions in :attr:`items` of those with features, ascending.
        dtype: Type of the values; the widest on disk if chunks differ.
    """

    def __init__(self, store: FeatureStore, items: ItemList) -> None:
        """Matches the items to the images of a cache; see :meth:`open`."""
        self.store = store
        self.split = store.folder.name
        self.items = items
        self.failed = {record.name: record.error for record in store.manifest.failed}
        places = {name: place for place, name in enumerate(store.names)}
        # Position in the list -> index in the cache, -1 without features.
        self._places = np.array([places.get(name, -1) for name in items.names], np.int64)
        self.indices = np.flatnonzero(self._places >= 0)
        self.dtype = store.value_dtype

    @classmethod
    def open(cls, out: StrPath, split: str = "all", *, items: ItemList | None = None) -> "TapStore":
        """Opens a split after checking its manifest and the length and type of every chunk.

        Args:
            out: The folder that was given to :func:`f3rm.extract.tables.run.extract`.
            split: The split's name.
            items: The items; None reads them from the folder.

        Raises:
            CacheError: If there is no such split, or it is damaged.
        """
        out = as_path(out)
        items = read_split(out, split) if items is None else items
        return cls(FeatureStore.open(split_folder(out, split)), items)

    def __len__(self) -> int:
        """Returns the number of items that have features."""
        return len(self.indices)

    def __reduce__(self) -> tuple[object, ...]:
        """Lets worker processes open the folder instead of copying features."""
        return TapStore.open, (self.folder.parent, self.split)

    @property
    def folder(self) -> Path:
        """The folder of the chunks."""
        return self.store.folder

    @property
    def spec(self) -> FeatureSpec:
        """The specification."""
        return self.store.manifest.spec

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return self.store.taps

    def shape(self, index: int, tap: str | None = None) -> Shape:
        """Returns the shape of a value, channels last.

        Args:
            index: Position in the list of items.
            tap: The tap; None if the store has only one.

        Raises:
            CacheError: If there is no such tap.
            IndexError: If the item has no features.
        """
        return self.store.value_shape(int(self._found([index])[0]), self._tap(tap))

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
        return max(len(chunk.images) for chunk in self.store.manifest.chunks)

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
        wanted = np.asarray(indices, dtype=np.int64)
        features = self.store.values(self._found(wanted), self._tap(tap))
        return Table.of(features, self.items, wanted)

    def _tap(self, tap: str | None) -> str:
        if tap is None and len(self.taps) == 1:
            return self.taps[0]
        name = None if tap is None else str(Tap.parse(tap))
        if name is not None and name in self.taps:
            return name
        hint = near_matches(name, self.taps) if name else f"Name one of {', '.join(self.taps)}."
        raise CacheError(f"tap must be one of the {len(self.taps)} extracted, got {name!r}; {hint}")

    def _found(self, wanted: Sequence[int] | np.ndarray) -> Int[np.ndarray, " items"]:
        """Returns the indices in the cache of the items at some positions."""
        places = self._places[np.asarray(wanted, dtype=np.int64)]
        for index in np.asarray(wanted)[places < 0].tolist()[:1]:
            name = self.items.names[index]
            reason = self.failed.get(name, "it was not extracted")
            raise IndexError(f"The item {index}, {name!r}, has no features: {reason}.")
        return places


@runtime_checkable
class FeatureSource(Protocol):
    """The interface that a store on disk (:class:`TapStore`) and a ``LiveSource`` share.

    Attributes:
        items: All items.
        indices: Positions of those with features.
    """

    items: ItemList
    indices: Int[np.ndarray, " items"]

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        ...

    def take(
        self, indices: Sequence[int] | Int[np.ndarray, " wanted"], tap: str | None = None
    ) -> Table:
        """Returns features of some items."""
        ...


class FeatureDataset(Dataset[dict[str, Tensor]]):
    """Features with label and index, item by item or in batches.

    A ``DataLoader`` asks for whole batches at once, so that a live source runs its model once per
    batch.

    Attributes:
        source: A store or a live source.
        tap: The tap; None if the source has only one.
    """

    def __init__(
        self,
        source: FeatureSource,
        tap: str | None = None,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            source: A store or a live source.
            tap: The tap; None if the source has only one.
            transform: Applied to the features of a batch (items, ...).
        """
        self.source = source
        self.tap = tap
        self._transform = transform

    def __len__(self) -> int:
        """Returns the number of items that have features."""
        return len(self.source.indices)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Returns one item: ``features``, ``index`` and, with labels, ``target``."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Tensor]]:
        """Returns a batch of items."""
        table = self.source.take(self.source.indices[numbers], self.tap)
        features = torch.from_numpy(table.features).float()
        if self._transform is not None:
            features = self._transform(features)
        return samples_of(table, features)


def samples_of(table: Table, features: Shaped[Tensor, "items ..."]) -> list[dict[str, Tensor]]:
    """Returns ``features``, ``index`` and, with labels, ``target`` of every item of a table."""
    columns = {"features": features, "index": torch.from_numpy(table.indices)}
    if table.targets is not None:
        columns["target"] = torch.from_numpy(table.targets)
    return [{name: column[row] for name, column in columns.items()} for row in range(len(features))]
