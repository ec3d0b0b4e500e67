"""Writes small checkpoints in LLaVA's layout: random weights, the real names and files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

VISION_SHARD = "model-00002-of-00002"
LANGUAGE_SHARD = "model-00001-of-00002"


def tower_config() -> CLIPVisionConfig:
    """CLIP ViT-L/14-336's shape, small: 64 channels per head, QuickGELU."""
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=1,
        patch_size=14,
        image_size=56,
        hidden_act="quick_gelu",
    )


def make_parts(channels: int = 40) -> tuple[CLIPVisionModel, nn.Sequential]:
    """The same random tower and projector at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tower = CLIPVisionModel(tower_config())
        for parameter in tower.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        projector = nn.Sequential(nn.Linear(64, channels), nn.GELU(), nn.Linear(channels, channels))
    return tower.eval().requires_grad_(False), projector.eval().requires_grad_(False)


def write_llava(
    folder: Path, *, channels: int = 40, suffix: str = ".safetensors", own_tower: bool = True
) -> Path:
    """Writes a sharded checkpoint whose language shard is not readable by anything."""
    tower, projector = make_parts(channels)
    tensors: dict[str, Tensor] = {
        f"model.mm_projector.{name}": tensor.half().float()
        for name, tensor in projector.state_dict().items()
    }
    if own_tower:
        prefix = "model.vision_tower.vision_tower.vision_model."
        tensors |= {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    shard = VISION_SHARD + suffix
    if suffix == ".safetensors":
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / shard)
    (folder / (LANGUAGE_SHARD + suffix)).write_bytes(b"13 billion parameters")
    places = dict.fromkeys(tensors, shard) | {"model.layers.0.w": LANGUAGE_SHARD + suffix}
    kind = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"model_type": "llava_llama", "mm_vision_select_layer": -2, "hidden_size": channels}
    if own_tower:
        config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"  # as published ones say
    (folder / "config.json").write_text(json.dumps(config))
    return folder
