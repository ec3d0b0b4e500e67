"""Nerfstudio's loaders of evaluation images, with each image's target features.

For a split without images Nerfstudio sets up no evaluation, and ns-eval fails on a missing
attribute; these loaders raise an error that says what is missing.
"""

from collections.abc import Callable
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import (
    EvalDataloader,
    FixedIndicesEvalDataloader,
    RandIndicesEvalDataloader,
)

from f3rm.errors import DatasetError
from f3rm.training.lookup import ImageTargets

HOLD_OUT = (
    "To hold some out, train with a smaller --train-split-fraction (of nerfstudio-data) or with "
    "more images."
)


def check_held_out(dataset: InputDataset) -> None:
    """Checks that a split has images.

    Raises:
        DatasetError: If it has none.
    """
    if not len(dataset):
        raise DatasetError(f"There is nothing to evaluate: this run holds out no image. {HOLD_OUT}")


class _WithTargets(EvalDataloader):
    """Adds an evaluation image's target features to its batch.

    Args:
        dataset: The evaluation images.
        device: Where cameras and batches go.
        targets: Returns an image's target features by its index, or None.
    """

    def __init__(
        self,
        dataset: InputDataset,
        device: torch.device | str,
        targets: Callable[[int], ImageTargets | None],
    ) -> None:
        super().__init__(input_dataset=dataset, device=device)
        self._targets = targets

    def get_camera(self, image_idx: int = 0) -> tuple[Cameras, dict[str, Any]]:
        camera, batch = super().get_camera(image_idx)
        targets = self._targets(image_idx)
        if targets is not None:
            batch["feature_targets"] = targets
        return camera, batch


class FixedEvalLoader(_WithTargets, FixedIndicesEvalDataloader):
    """Every evaluation image in turn."""

    def __iter__(self) -> "FixedEvalLoader":
        """Starts with the first image.

        Raises:
            DatasetError: If there are no evaluation images.
        """
        check_held_out(self.input_dataset)
        super().__iter__()
        return self


class RandomEvalLoader(_WithTargets, RandIndicesEvalDataloader):
    """Evaluation images at random, without end."""

    def __iter__(self) -> "RandomEvalLoader":
        """Continues with a random image.

        Raises:
            DatasetError: If there are no evaluation images.
        """
        check_held_out(self.input_dataset)
        return self
