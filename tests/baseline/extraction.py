"""What a fixed extraction stores: hashes where arithmetic is exact, else a few values."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from f3rm.backbones.registry import load_backbone
from f3rm.extract.standalone import extract_features_for_dataset
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import PRESETS, FeatureSpec
from tests.extract.toy import PATCH, ToyBackbone, extract, toy_spec, write_dataset
from tests.viewer.colour_backbone import SPECS

UNRESIZED = ((32, 44), (40, 32), (32, 32))
"""Their shorter side is the network's."""
RESIZED = ((24, 33), (50, 41), (24, 33))
PHRASES = ("a red mug", "an orange box")


class ExactBackbone(ToyBackbone):
    """Mean levels of patches, or coordinates: whole numbers and divisions, equal everywhere."""

    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def encode_image(self, images: Tensor) -> Tensor:
        if self.ref.model == "coords":  # whatever the pixels are
            return self._coordinates(images)
        levels = (images * 255).round()
        return avg_pool2d(levels, PATCH).permute(0, 2, 3, 1)  # sums of 16 levels, over 16


def exact_chunks(root: Path) -> dict[str, Any]:
    """Extracts generated images with an exact backbone, by every codec without a solver."""
    found: dict[str, Any] = {}
    for model, sizes in (("mean", UNRESIZED), ("coords", RESIZED)):
        data = write_dataset(root / model, sizes)
        for name, changes in _codecs().items():
            folder = root / model / name
            store = extract(
                data,
                toy_spec(model, **changes),
                load=ExactBackbone.load,
                folder=folder,
                device="cpu",
            )
            files = sorted(folder.rglob("*.npy"))
            found[f"{model} {name}"] = {
                "key": store.manifest.key,
                **{file.name: _hash(file) for file in files},
            }
    return found


def _codecs() -> dict[str, dict[str, str]]:
    return {"fp16": {}, "fp32": {"codec": "fp32"}, "int8": {"codec": "int8"}}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def cache_keys() -> dict[str, Any]:
    """Lists what the key of each feature type's cache is made of; another key extracts anew."""
    return {
        name: {**spec.settings("weights"), "key": spec.key("weights")}
        for name, spec in (
            (name, preset.settled("float32")[0]) for name, preset in shipped().items()
        )
    }


def shipped() -> dict[str, FeatureSpec]:
    """Returns f3rm's own feature types, without those that other tests add for the session."""
    return {name: preset for name, preset in PRESETS.items() if name not in SPECS}


def tinyclip_values(root: Path) -> dict[str, Any]:
    """Extracts one image with the CLIP that ships with f3rm, and embeds phrases."""
    data = write_dataset(root / "tinyclip", [(48, 64)])
    options = {"device": "cpu", "codec": "fp32", "progress": False}
    store: FeatureStore = extract_features_for_dataset(data, "TINYCLIP", **options)["tinyclip"]
    features = store.feature_map(0)  # (rows, cols, channels)
    text = load_backbone(PRESETS["TINYCLIP"].backbone, towers=("text",)).encode_text(PHRASES)
    return {
        "key": store.manifest.key,
        "shape": list(features.shape),
        "features": a_few(features),
        "norms": a_few(features.norm(dim=-1)),
        "text": a_few(text),
    }


def a_few(values: Tensor, num: int = 8) -> list[float]:
    """Returns numbers that are spread over a tensor, with the digits that a baseline needs."""
    flat = values.detach().flatten().double()
    places = torch.linspace(0, len(flat) - 1, num).round().long()
    return [float(f"{value:.6g}") for value in flat[places].tolist()]
