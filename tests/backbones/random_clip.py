"""Writes small random CLIPs for tests without a download."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from f3rm.backbones.clip.source import CONFIG_NAME, WEIGHT_NAMES


def write_random_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    width: int = 64,
    layers: int = 3,
    patch_size: int = 14,
    image_size: int = 56,
    embed_dim: int = 32,
    quick_gelu: bool = True,
) -> Path:
    """Writes a small CLIP with random weights.

    Its features carry no meaning: they depend on the image, but a text query finds nothing in them.

    Args:
        folder: Where to write; made if need be. Existing files of the same name are replaced.
        seed: The same seed gives the same weights. The global random state is left alone.
        width: Channels of the image tower, a multiple of 32.
        layers: Blocks of the image tower, at least 2.
        patch_size: Pixels per feature cell.
        image_size: Side of the square that the positional embeddings are made for.
        embed_dim: Channels of the features.
        quick_gelu: Whether the activation is QuickGELU, as in OpenAI's models.

    Returns:
        The folder, in the layout that ``ClipBackbone.load`` reads.
    """
    config = {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": image_size,
            "layers": layers,
            "width": width,
            "head_width": 32,
            "patch_size": patch_size,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    preprocessing = {
        "size": image_size,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    published = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / CONFIG_NAME).write_text(json.dumps(published, indent=2), encoding="utf-8")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHT_NAMES[0])
    return folder
