"""Writes small random TIPSv2s, SigLIP2s and RADIOs in the layout of the published ones."""

import string
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    RadioConfig,
    RadioModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    Tipsv2Config,
    Tipsv2Model,
    Tipsv2Tokenizer,
)

WIDTH = 24
CONTEXT = 8
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_radio(folder: Path) -> Path:
    """Writes a RADIO of patch 16 with 3 class tokens and 7 registers."""
    config = RadioConfig(**SIZES, max_img_size=64, norm_mean=[0.4, 0.5, 0.6], norm_std=[0.2] * 3)
    return _save(folder, RadioModel, config)


def write_tipsv2(folder: Path) -> Path:
    """Writes a TIPSv2 of patch 14, trained at 56 x 56."""
    config = Tipsv2Config(
        vision_config={**SIZES, "patch_size": 14, "image_size": 56},
        text_config={**SIZES, **_text(_words("<pad>", "<unk>"))},
    )
    Tipsv2Tokenizer(vocab=_words("<pad>", "<unk>"), merges=[]).save_pretrained(folder)
    return _save(folder, Tipsv2Model, config)


def write_siglip2(folder: Path, *, flexible: bool = False) -> Path:
    """Writes a SigLIP2 of patch 16, of a fixed resolution (64 x 64) or NaFlex."""
    words = _words("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    ends = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = {**SIZES, **_text(words), **ends}
    vision = {**SIZES, "patch_size": 16, "intermediate_size": 2 * WIDTH}
    tokenizer = Siglip2Tokenizer(
        vocab=words, merges=[], add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    if flexible:
        config = Siglip2Config(vision_config={**vision, "num_patches": 16}, text_config=text)
        return _save(folder, Siglip2Model, config)
    config = SiglipConfig(vision_config={**vision, "image_size": 64}, text_config=text)
    return _save(folder, SiglipModel, config)


def _words(*special: str) -> dict[str, int]:
    return {word: index for index, word in enumerate([*special, "▁", *string.ascii_letters])}


def _text(words: dict[str, int]) -> dict[str, int]:
    return {
        "vocab_size": len(words),
        "max_position_embeddings": CONTEXT,
        "intermediate_size": 2 * WIDTH,
    }


def _save(folder: Path, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Path:
    """Draws parameters that are large enough for every part to matter, and writes the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network: Any = model_class(config)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    network.save_pretrained(folder)
    return folder
