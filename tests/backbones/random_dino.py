"""Writes small random DINOs, DINOv2s and DINOv3s for tests without a download."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

DinoFamily = Literal["dino", "dinov2", "dinov2_with_registers", "dinov3"]


def write_random_checkpoint(
    folder: Path,
    *,
    family: DinoFamily = "dino",
    seed: int = 0,
    width: int = 48,
    layers: int = 3,
    patch_size: int = 8,
    image_size: int = 32,
) -> Path:
    """Writes a small DINO of some version with random weights.

    Its features carry no meaning: they depend on the image, but do not tell objects apart.

    Args:
        folder: Where to write; made if need be. Existing files of the same name are replaced.
        family: Which architecture.
        seed: The same seed gives the same weights. The global random state is left alone.
        width: Channels of the features, a multiple of 4.
        layers: Blocks.
        patch_size: Pixels per feature cell.
        image_size: Side of the square that the positional embeddings are made for.

    Returns:
        The folder, in the layout that ``DinoBackbone.load`` reads.
    """
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "patch_size": patch_size,
        "image_size": image_size,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if family == "dino":
            network = ViTModel(
                ViTConfig(**sizes, intermediate_size=4 * width), add_pooling_layer=False
            )
        elif family == "dinov2":
            network = Dinov2Model(Dinov2Config(**sizes))
        elif family == "dinov3":
            config = DINOv3ViTConfig(**sizes, intermediate_size=4 * width, num_register_tokens=4)
            network = DINOv3ViTModel(config)
        else:
            network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    return folder
