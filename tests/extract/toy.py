"""A small backbone and small datasets for the tests; importable from subprocesses too.

What the backbone does depends on the model's name; every load and every run is noted in the file
that the environment variable ``F3RM_TOY_LOG`` names.
"""

import json
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from f3rm.backbones.base import Backbone, Tower
from f3rm.errors import BackboneRef
from f3rm.extract.extraction import extract_features
from f3rm.store.geometry import Prep
from f3rm.store.items import ImageItem, read_items
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec

PATCH = 4


def note(event: str) -> None:
    if log := os.environ.get("F3RM_TOY_LOG"):
        with Path(log).open("a") as stream:
            stream.write(f"{event}\n")


class ToyBackbone(Backbone):
    """Mean colours of patches; ``coords``, ``nan``, ``large`` and ``slow`` are variations."""

    default_model = "mean"
    default_weights = "toy"
    default_tap = "final"
    default_short_side = 32

    channels = 3
    patch_size = PATCH
    mean = (0.5, 0.4, 0.3)
    std = (0.5, 0.25, 0.125)
    has_text = False

    def __init__(self, ref: BackboneRef, device: torch.device) -> None:
        self.ref = ref
        self._device = device

    @classmethod
    def load(
        cls, ref: BackboneRef, *, device: str | torch.device, towers: Collection[Tower]
    ) -> "ToyBackbone":
        assert tuple(towers) == ("image",)
        note("load")
        return cls(ref, torch.device(device))

    def encode_image(self, images: Tensor) -> Tensor:
        note(f"run {len(images)}")
        if self.ref.model == "slow":
            time.sleep(0.04)
        if self.ref.model == "coords":
            return self._coordinates(images)
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        colours = images * std + mean
        features = avg_pool2d(colours, PATCH).permute(0, 2, 3, 1)
        bright = colours.mean(dim=(1, 2, 3)) > 0.9
        if self.ref.model == "nan":
            features[bright, 0, 0] = torch.nan
        if self.ref.model == "large":
            features[bright] *= 1e6
        return features

    def provenance(self) -> dict[str, str]:
        return {"library": "toy", "weights": "none"}

    @property
    def device(self) -> torch.device:
        return self._device

    def _coordinates(self, images: Tensor) -> Tensor:
        rows, cols = images.shape[2] // PATCH, images.shape[3] // PATCH
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols
        grid = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.zeros(rows, cols)], dim=-1)
        return grid.expand(len(images), -1, -1, -1)


def toy_spec(model: str = "mean", **changes: Any) -> FeatureSpec:
    """The specification of the toy; ``tap``, ``short_side`` and fields of Prep are short forms."""
    prep = {"size": changes.pop("short_side", 32)}
    prep |= {name: changes.pop(name) for name in list(changes) if hasattr(Prep(), name)}
    settings = {"codec": "fp16", "precision": "float32", "name": "toy", **changes}
    taps = (settings.pop("tap", "final"),)
    return FeatureSpec(BackboneRef("toy", model, "toy"), taps, Prep(**prep), **settings)


def random_pixels(size: tuple[int, int], seed: int, *, low: int = 0, high: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8)


def write_dataset(root: Path, sizes: Sequence[tuple[int, int]] = ((24, 33),) * 5) -> Path:
    """Writes a dataset with one random image per size, named ``images/0.png``, ..."""
    (root / "images").mkdir(parents=True)
    names = [f"images/{number}.png" for number in range(len(sizes))]
    for seed, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.fromarray(random_pixels(size, seed)).save(root / name)
    write_frames(root, names)
    return root


def write_frames(root: Path, names: Sequence[object]) -> None:
    frames = [{"file_path": name} for name in names]
    (root / "transforms.json").write_text(json.dumps({"frames": frames}))


def items_of(root: Path) -> list[ImageItem]:
    return read_items(root)


def files_of(root: Path) -> dict[str, bytes]:
    """All files below a folder by relative path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def folder_of(root: Path) -> Path:
    return root / "features" / "toy"


def building_of(root: Path) -> Path:
    return root / "features" / "toy.building"


def notes_of(root: Path) -> list[Path]:
    """The notes of chunks that an unfinished run has done."""
    return sorted((building_of(root) / "progress").glob("chunk_*.json"))


def extract(root: Path, spec: FeatureSpec | None = None, **options: Any) -> FeatureStore:
    """Extracts with the toy backbone into the dataset, two images per chunk."""
    settings: dict[str, Any] = {
        "folder": folder_of(root),
        "shard_size": 2,
        "load": ToyBackbone.load,
    }
    return extract_features(
        items_of(root), spec or toy_spec(), **{**settings, "progress": False, **options}
    )


def never(*_: object, **__: object) -> ToyBackbone:
    """Stands for a loader where no model may be loaded."""
    raise AssertionError("the model must not be loaded")


def drop_frame(root: Path) -> None:
    write_frames(root, [f"images/{i}.png" for i in range(4)])
