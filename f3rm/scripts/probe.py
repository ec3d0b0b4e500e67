"""``f3rm probe``: how well labels can be told from extracted features."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from f3rm.extract.taps.probe import Probe, ProbeError, ProbeKind, Score
from f3rm.extract.taps.store import Table, TapStore
from f3rm.scripts.command import Command
from f3rm.store.npy import load_npy


@dataclass
class ProbeCommand(Command):
    """Fit a linear or nearest-neighbour classifier to extracted features, and say how good it is.

    Labels are those of f3rm extract --labelled, or a file. Without --test-split a part of the items
    is kept for testing. Needs scikit-learn (the extra probe; docs/install.md).
    """

    store: Path
    """Folder that f3rm extract --out was given."""
    tap: str | None = None
    """Which tap; may be left out if there is only one."""
    split: str = "all"
    """The split to learn from."""
    test_split: str | None = None
    """The split to test on."""
    labels: Path | None = None
    """A .npy or text file with a whole number per item of the split, in its order."""
    test_labels: Path | None = None
    """The same for the test split."""
    kind: ProbeKind = "logistic"
    """Logistic or ridge regression, or the vote of the nearest neighbours."""
    strength: float = 1.0
    """Inverse regularisation of logistic regression, or regularisation of ridge regression."""
    neighbours: int = 20
    """How many neighbours vote."""
    test_fraction: float = 0.2
    """How much of the split is kept for testing if there is no test split."""
    seed: int = 0
    """Decides which items these are."""
    save: Path | None = None
    """Folder for the fitted probe: probe.safetensors and probe.json."""

    def run(self) -> None:
        """Fits, tests and prints.

        Raises:
            F3rmError: If there are no features, no labels or too few of either.
        """
        table = TapStore.open(self.store, self.split).load(self.tap)
        labels = _labels(table, self.labels)
        features = table.features
        if self.test_split is None:
            order = np.random.default_rng(self.seed).permutation(len(labels))
            kept = max(1, round(self.test_fraction * len(labels)))
            test, train = np.sort(order[:kept]), np.sort(order[kept:])
            known, asked = (features[train], labels[train]), (features[test], labels[test])
        else:
            other = TapStore.open(self.store, self.test_split).load(self.tap)
            known, asked = (features, labels), (other.features, _labels(other, self.test_labels))
        probe = Probe(self.kind, strength=self.strength, neighbours=self.neighbours).fit(*known)
        if self.save is not None:
            probe.save(self.save)
        print(_report(probe.score(*asked), len(known[1]), len(asked[1])))


def _labels(table: Table, file: Path | None) -> Int[np.ndarray, " items"]:
    if file is None:
        if table.targets is None:
            msg = (
                "f3rm probe: items must have labels, got none. Extract with --labelled, or pass "
                "--labels FILE (--test-labels FILE for the test split)."
            )
            raise ProbeError(msg)
        return table.targets
    try:
        if file.suffix == ".npy":
            labels = load_npy(file).reshape(-1)
        else:
            labels = np.array([int(word) for word in file.read_text().split()])
        return labels.astype(np.int64)[table.indices]
    except (OSError, ValueError, IndexError) as error:
        msg = (
            f"f3rm probe: {str(file)!r} must hold a whole number for every item, failed ones too, "
            f"got: {error}."
        )
        raise ProbeError(msg) from error


def _report(score: Score, num_known: int, num_asked: int) -> str:
    return (
        f"learnt from {num_known} items, tested on {num_asked}: top-1 {score.top1:.4f}, "
        f"macro F1 {score.macro_f1:.4f}, {len(score.classes)} classes"
    )
