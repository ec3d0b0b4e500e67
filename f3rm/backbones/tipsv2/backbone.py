"""TIPSv2 through transformers: image and text towers whose patches are comparable with texts.

Its tokens are two class tokens (of captions from the web and of generated ones), then patches. The
input stays in [0, 1].

Source: Cao et al., "TIPSv2: Advancing Vision-Language Pretraining with Enhanced Patch-Text
Alignment", CVPR 2026; the rule ``values`` is that of its zero-shot segmentation,
https://github.com/google-deepmind/tips, pytorch/TIPS_zeroshot_segmentation.ipynb.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Tipsv2Config,
    Tipsv2TextModel,
    Tipsv2Tokenizer,
    Tipsv2VisionModel,
)

from f3rm.backbones.hf_source import NOT_NORMALISED, read_config
from f3rm.backbones.hf_text import HfText, HfTextBackbone, HfTowers
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.hub import READ_ERRORS
from f3rm.backbones.vit import Vit
from f3rm.errors import BackboneRef

_SIZES: Mapping[str, Mapping[str, Any]] = {
    "vit_base": {"num_hidden_layers": 12, "num_attention_heads": 12},
    "vit_large": {"num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_so400m": {"num_hidden_layers": 27, "num_attention_heads": 16, "mlp_ratio": 3.7362},
    "vit_giant2": {"num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}
"""Of the image towers, by the names that the authors' own configuration files use."""


class Tipsv2Backbone(HfTextBackbone):
    """A frozen TIPSv2; ``@cls`` is its first class token, ``@reg`` the second."""

    default_tap = "-1|dense(values)"
    dense_rules = ("values",)
    statistics = NOT_NORMALISED

    @classmethod
    def find_towers(cls, ref: BackboneRef, source: str) -> HfTowers:
        """Chooses the classes; the authors' own configuration files are read too."""
        raw = read_config(ref, source, ("tipsv2",))
        config = Tipsv2Config.from_dict(_translated(raw) if "vision_fn" in raw else raw)
        return HfTowers(config, Tipsv2VisionModel, Tipsv2TextModel)

    @classmethod
    def tokenised(cls, network: PreTrainedModel, source: str) -> HfText:
        """Adds the tokenizer."""
        try:
            tokenizer = Tipsv2Tokenizer.from_pretrained(source)
        except (ImportError, *READ_ERRORS) as error:
            if importlib.util.find_spec("sentencepiece") is not None:
                raise
            msg = f"its tokenizer needs a package: pip install sentencepiece ({error})"
            raise OSError(msg) from error
        return HfText(network, tokenizer, is_masked=True)

    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the image tower; its last block run on values is in the space of the texts."""
        embeddings, dtype = cast("nn.Module", network.embeddings), network.dtype
        vit = hf_vit(network, lambda images: embeddings(images.to(dtype)))

        def dense(_: str, tokens: Tensor, __: tuple[int, int]) -> Tensor:
            return vit.norm(vit.blocks[-1].run_alone(tokens)[:, vit.prefix_tokens :])

        return replace(
            vit, dense=dense, head=lambda tokens: vit.norm(tokens[:, 0]), head_channels=vit.width
        )


def _translated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a configuration file of the authors' own layout."""
    return {
        "vision_config": {
            "hidden_size": raw["embed_dim"],
            "patch_size": raw["patch_size"],
            "image_size": raw["img_size"],
            "num_register_tokens": raw["num_register_tokens"],
            **_SIZES[raw["vision_fn"]],
        },
        "text_config": {
            "hidden_size": raw["text_hidden_size"],
            "intermediate_size": raw["text_mlp_dim"],
            "num_attention_heads": raw["text_num_heads"],
            "num_hidden_layers": raw["text_num_layers"],
            "vocab_size": raw["vocab_size"],
            "max_position_embeddings": raw["max_len"],
        },
    }
