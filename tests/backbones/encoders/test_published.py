"""The published models, built by transformers without memory: what an adapter reads is there."""

from typing import Any

import pytest
import torch
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    RadioConfig,
    RadioModel,
    SiglipConfig,
    SiglipModel,
    Tipsv2Config,
    Tipsv2Model,
)

from f3rm.backbones import load_backbone
from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from f3rm.backbones.cards import CARDS, log_card
from f3rm.backbones.dino.backbone import DinoBackbone
from f3rm.backbones.radio.backbone import RadioBackbone
from f3rm.backbones.siglip2.backbone import Siglip2Backbone
from f3rm.backbones.tipsv2.backbone import Tipsv2Backbone
from f3rm.store.spec import PRESETS

STATISTICS: Any = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
WIDE: dict[str, Any] = {"intermediate_size": 4096}


def tipsv2(ref):
    """google/tipsv2-l14."""
    text = {**LARGE, **WIDE, "num_hidden_layers": 12}
    model = Tipsv2Model(Tipsv2Config(vision_config=LARGE, text_config=text))
    tower = model.vision_model
    return model, Tipsv2Backbone(ref, tower, None, config=tower.config, **STATISTICS)


def siglip2(ref):
    """google/siglip2-large-patch16-512."""
    vision = {**LARGE, **WIDE, "image_size": 512}
    text = {**LARGE, **WIDE, "vocab_size": 256000}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    tower = model.vision_model
    return model, Siglip2Backbone(ref, tower, None, config=tower.config, **STATISTICS)


def dinov3(ref):
    """facebook/dinov3-vitl16-pretrain-lvd1689m."""
    model = DINOv3ViTModel(DINOv3ViTConfig(**LARGE, **WIDE, num_register_tokens=4))
    return model, DinoBackbone(ref, model)


def radio(ref):
    """nvidia/C-RADIOv4-H, which has the library's default configuration."""
    model = RadioModel(RadioConfig())
    return model, RadioBackbone(ref, model, config=model.config, **STATISTICS)


PUBLISHED = {"TIPSV2": tipsv2, "SIGLIP2": siglip2, "DINOV3": dinov3, "RADIO": radio}
BLOCK = "vision_model.encoder.layer.23."
SIGLIP_BLOCK = "vision_model.encoder.layers.23."
READ: dict[str, dict[str, tuple[int, ...]]] = {
    "TIPSV2": {
        "vision_model.embeddings.cls_token": (1, 1, 1024),
        "vision_model.embeddings.register_tokens": (1, 1, 1024),
        "vision_model.embeddings.position_embeddings": (1, 1 + 32 * 32, 1024),
        "vision_model.embeddings.patch_embeddings.projection.weight": (1024, 3, 14, 14),
        f"{BLOCK}attention.v_proj.weight": (1024, 1024),
        f"{BLOCK}attention.o_proj.weight": (1024, 1024),
        f"{BLOCK}layer_scale1.lambda1": (1024,),
        f"{BLOCK}mlp.fc1.weight": (4096, 1024),
        "vision_model.layernorm.weight": (1024,),
        "text_model.embeddings.token_embedding.weight": (32000, 1024),
        "text_model.final_layer_norm.weight": (1024,),
    },
    "SIGLIP2": {
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (32 * 32, 1024),
        f"{SIGLIP_BLOCK}self_attn.v_proj.weight": (1024, 1024),
        f"{SIGLIP_BLOCK}self_attn.out_proj.weight": (1024, 1024),
        "vision_model.post_layernorm.weight": (1024,),
        "vision_model.head.attention.in_proj_weight": (3 * 1024, 1024),
        "vision_model.head.attention.out_proj.weight": (1024, 1024),
        "vision_model.head.mlp.fc1.weight": (4096, 1024),
        "text_model.embeddings.token_embedding.weight": (256000, 1024),
        "text_model.embeddings.position_embedding.weight": (64, 1024),
        "text_model.head.weight": (1024, 1024),
    },
    "DINOV3": {
        "embeddings.register_tokens": (1, 4, 1024),
        "embeddings.patch_embeddings.weight": (1024, 3, 16, 16),
        "model.layer.23.attention.q_proj.weight": (1024, 1024),
        "model.layer.23.layer_scale2.lambda1": (1024,),
        "model.layer.23.mlp.up_proj.weight": (4096, 1024),
        "norm.weight": (1024,),
    },
    "RADIO": {
        "input_conditioner.norm_mean": (3, 1, 1),
        "embeddings.patch_projection.weight": (1280, 768),
        "embeddings.position_embedding": (1, 128 * 128, 1280),
        "embeddings.cls_register_token": (10, 1280),
        "encoder.layer.31.attention.v_proj.weight": (1280, 1280),
        "encoder.layer.31.mlp.fc1.weight": (5120, 1280),
    },
}
SHAPES = {
    "TIPSV2": (64, 64, 1024),
    "SIGLIP2": (64, 64, 1024),
    "DINOV3": (64, 64, 1024),
    "RADIO": (64, 64, 1280),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_model_has_what_its_adapter_reads(name):
    spec = PRESETS[name]
    with torch.device("meta"):
        model, backbone = PUBLISHED[name](spec.backbone)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: shapes.get(key) for key in READ[name]} == READ[name]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert CARDS[spec.backbone.model].parameters == round(millions)
    (tap,) = spec.taps
    side = spec.prep.size
    assert isinstance(side, int)
    assert backbone.shape(tap, side, side) == SHAPES[name]
    images = torch.empty(1, 3, side, side, device="meta")
    (features,) = backbone.run(images, [tap]).values()
    assert features.shape[1:] == SHAPES[name]


def test_a_models_licence_is_logged_once(caplog):
    ref = PRESETS["TINYCLIP"].backbone
    log_card.cache_clear()
    with caplog.at_level("INFO", logger="f3rm"):
        load_backbone(ref, towers=("text",))
        load_backbone(ref, towers=("text",))
    assert caplog.messages == ["tinyclip: 4 M parameters, licence of the weights: MIT"]
