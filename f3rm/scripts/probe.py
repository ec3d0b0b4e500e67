"""``f3rm probe``: fit a classifier to extracted features and test it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from f3rm.extract.tables.probe import Probe, ProbeError, ProbeKind
from f3rm.extract.tables.tables import Table, TapStore
from f3rm.scripts.command import Command
from f3rm.store.npy import load_npy


@dataclass
class ProbeCommand(Command):
    """Fit a linear or nearest-neighbour classifier to extracted features, and measure it.

    Labels come from f3rm extract --labelled, or from a file. Without --test-split, a part of the
    items is kept for testing. Linear ones need scikit-learn (the extra probe; docs/install.md).
    """

    store: Path
    """The folder of f3rm extract --out."""
    tap: str | None = None
    """The tap; not needed if there is only one."""
    split: str = "all"
    """The split to fit to."""
    test_split: str | None = None
    """The split to test on."""
    labels: Path | None = None
    """A .npy or text file with a whole number per item of the split, in its order."""
    test_labels: Path | None = None
    """The same for the test split."""
    kind: ProbeKind = "logistic"
    """Logistic or ridge regression, or the vote of the nearest neighbours (knn)."""
    strength: float = 1.0
    """Inverse regularisation of logistic regression, or regularisation of ridge regression."""
    neighbours: int = 20
    """Number of neighbours that vote."""
    test_fraction: float = 0.2
    """Share of the split that is kept for testing if there is no test split."""
    seed: int = 0
    """Seed of the choice of these items."""
    save: Path | None = None
    """Folder for the fitted probe: probe.safetensors and probe.json."""

    def run(self) -> None:
        """Fits, tests and prints.

        Raises:
            F3rmError: If features or labels are missing or too few.
        """
        table = TapStore.open(self.store, self.split).load(self.tap)
        labels = _labels(table, self.labels)
        features = table.features
        if self.test_split is None:
            order = np.random.default_rng(self.seed).permutation(len(labels))
            kept = max(1, round(self.test_fraction * len(labels)))
            chosen, rest = np.sort(order[:kept]), np.sort(order[kept:])
            train, test = (features[rest], labels[rest]), (features[chosen], labels[chosen])
        else:
            other = TapStore.open(self.store, self.test_split).load(self.tap)
            train, test = (features, labels), (other.features, _labels(other, self.test_labels))
        probe = Probe(self.kind, strength=self.strength, neighbours=self.neighbours).fit(*train)
        if self.save is not None:
            probe.save(self.save)
        score = probe.score(*test)
        print(
            f"learnt from {len(train[1])} items, tested on {len(test[1])}: top-1 {score.top1:.4f}, "
            f"macro F1 {score.macro_f1:.4f}, {len(score.classes)} classes"
        )


def _labels(table: Table, file: Path | None) -> Int[np.ndarray, " items"]:
    if file is None:
        if table.targets is None:
            msg = (
                "The items have no labels. Extract with --labelled, or pass --labels FILE "
                "(--test-labels FILE for the test split)."
            )
            raise ProbeError(msg)
        return table.targets
    if not file.exists():
        raise ProbeError(f"No such file: {str(file)!r}.")
    try:
        if file.suffix == ".npy":
            labels = load_npy(file).reshape(-1)
        else:
            labels = np.array([int(word) for word in file.read_text().split()])
        return labels.astype(np.int64)[table.indices]
    except (OSError, ValueError, IndexError) as error:
        msg = f"{str(file)!r} must hold a whole number per item, failed ones too: {error}."
        raise ProbeError(msg) from error
