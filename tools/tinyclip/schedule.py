"""What TINYCLIP sees at which point of its training, and how quickly it learns there."""

import math
from dataclasses import dataclass

import numpy as np

Grid = tuple[int, int]
"""Cells of a cut-out: rows, columns."""


@dataclass(frozen=True)
class Schedule:
    """Kinds of batches and how often each is drawn, by the share of the training that is over.

    Attributes:
        kinds: Cells and pictures of each kind of batch.
        shares: Points of the training between which chances are interpolated, from 0 to 1.
        chances: Of each kind, how often it is drawn at these points.
    """

    kinds: tuple[tuple[Grid, int], ...] = (
        ((2, 2), 192),
        ((3, 3), 96),
        ((4, 5), 44),
        ((5, 7), 24),
        ((7, 9), 16),
    )
    # Small cut-outs teach shapes quickly, but from their borders a cell also learns where it is.
    # Large ones come last: only they hold things that fill a photograph.
    shares: tuple[float, ...] = (0.0, 0.12, 0.1201, 0.45, 0.55, 1.0)
    chances: tuple[tuple[float, ...], ...] = (
        (0.70, 0.5875, 0.05, 0.00, 0.00, 0.00),
        (0.30, 0.3375, 0.25, 0.15, 0.05, 0.05),
        (0.00, 0.0375, 0.30, 0.30, 0.20, 0.20),
        (0.00, 0.0375, 0.40, 0.55, 0.35, 0.35),
        (0.00, 0.0000, 0.00, 0.00, 0.40, 0.40),
    )

    def draw(self, share: float, rng: np.random.Generator) -> tuple[Grid, int]:
        """Returns cells and number of pictures of a batch at this share of the training."""
        chances = np.array([np.interp(share, self.shares, kind) for kind in self.chances])
        return self.kinds[int(rng.choice(len(self.kinds), p=chances / chances.sum()))]


def rate_at(step: int, steps: int, *, warm: int = 100) -> float:
    """Returns the learning rate as a share of the highest: it falls along half a cosine to zero."""
    risen = min(1.0, (step + 1) / warm)
    return risen * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
