"""A backbone whose features are the coordinates of their cells, or mean colours of patches."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from f3rm.backbones.base import Backbone, Tower
from f3rm.errors import BackboneRef


class GridBackbone(Backbone):
    """Three channels: row, column and mean brightness; patches of 8 pixels."""

    default_model = "grid"
    default_weights = "none"
    default_short_side = 32

    channels = 3
    patch_size = 8
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    has_text = False

    def __init__(self, ref: BackboneRef | None = None) -> None:
        self.ref = ref or BackboneRef("grid", "grid", "none")

    @classmethod
    def load(
        cls, ref: BackboneRef, *, device: str | torch.device, towers: Collection[Tower]
    ) -> "GridBackbone":
        return cls(ref)

    def encode_image(self, images: Tensor) -> Tensor:
        rows, cols = self.feature_grid(images)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        places = torch.stack([y, x]).float().expand(len(images), -1, -1, -1)
        light = avg_pool2d(images, 8).mean(1, keepdim=True)
        return torch.cat([places, light], dim=1).permute(0, 2, 3, 1)

    def provenance(self) -> dict[str, str]:
        return {"library": "grid", "weights": "none"}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")
