"""A PyTorch dataset of features, from a store on disk or computed on demand."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from f3rm.extract.taps.lists import ItemList
from f3rm.extract.taps.store import Table


@runtime_checkable
class FeatureSource(Protocol):
    """The interface that a store on disk (``TapStore``) and a ``LiveSource`` share.

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
