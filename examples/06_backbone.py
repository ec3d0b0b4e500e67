"""A backbone of your own: a small subclass of Backbone, extracted with like those that ship.

    python examples/06_backbone.py --data datasets/tabletop

Here the class itself loads the backbone. A package of yours offers it to every command by an entry
point of the group ``f3rm.backbones``: docs/backbones.md, "A backbone of your own".
"""

from pathlib import Path
from typing import Self

import torch
import tyro
from torch import Tensor

from f3rm import BackboneRef
from f3rm.backbones import Backbone
from f3rm.extract import FeatureSpec, extract, list_items


class ColourStatistics(Backbone):
    """Mean and spread of the colours in every 8 x 8 pixels."""

    channels, patch_size, has_text = 6, 8, False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # colours stay in [0, 1]

    def __init__(self, ref: BackboneRef, device: torch.device) -> None:
        self.ref, self._device = ref, device

    @classmethod
    def load(cls, ref: BackboneRef, *, device: str | torch.device, towers: object) -> Self:
        """Makes the backbone, which has neither weights nor a text tower."""
        del towers
        return cls(ref, torch.device(device))

    def encode_image(self, images: Tensor) -> Tensor:
        """Computes a feature map, shape (batch, rows, cols, channels)."""
        cells = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)  # batch 3 rows cols 64
        return torch.cat([cells.mean(-1), cells.std(-1)], dim=1).permute(0, 2, 3, 1)

    def provenance(self) -> dict[str, str]:
        """Returns what the cache records of the backbone."""
        return {"library": "statistics 1.0", "weights": "none"}

    @property
    def device(self) -> torch.device:
        """The device that images are sent to."""
        return self._device


def main(data: Path = Path("datasets/tabletop"), out: Path = Path("statistics")) -> None:
    """Extracts the feature map and its mean from each image in ``data``, into ``out``."""
    spec = FeatureSpec.of(BackboneRef("statistics", "colours", "none"), ["final", "final|mean"])
    store = extract(list_items(data), spec, out, load=ColourStatistics.load, progress=False)
    maps, means = (store.load(tap).features for tap in store.taps)
    print(f"feature maps {tuple(maps.shape)}, means {tuple(means.shape)}")


if __name__ == "__main__":
    tyro.cli(main)
