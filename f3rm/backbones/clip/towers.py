"""Builds one tower of a CLIP model, without keeping the other.

open_clip builds both towers at once. The other tower is therefore built one token small and
dropped, and only the wanted tower's weights are read. Supported are open_clip's own image towers
(``VisionTransformer`` pooled by class token or by averaging patches, ``ModifiedResNet``) and its
own text transformer with CLIP's byte-pair vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.clip.resnet import RESNET_STRIDE
from f3rm.backbones.clip.source import ClipSource
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef

ImageTower = VisionTransformer | ModifiedResNet
"""The image half of a CLIP."""

_SMALLEST_VISION = {"layers": 1, "width": 64, "patch_size": 1, "image_size": 1}
_SMALLEST_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
_VISUAL_PREFIX = "visual."
_TEXT_PREFIX = "text."
_SHARED_NAMES = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class TextTower:
    """A text tower and its tokenizer.

    Attributes:
        network: The CLIP model without its image tower; its ``encode_text`` maps (texts, tokens) to
            (texts, channels).
        tokenizer: Maps strings to token numbers, (texts, tokens), on the CPU.
    """

    network: open_clip.CLIP | open_clip.CustomTextCLIP
    tokenizer: Callable[[list[str]], Tensor]


def has_supported_text(config: Mapping[str, Any]) -> bool:
    """Tells whether the text tower is open_clip's own with CLIP's vocabulary."""
    text = config["text_cfg"]
    return not (text.get("hf_model_name") or text.get("hf_tokenizer_name"))


def patch_size(config: Mapping[str, Any]) -> int:
    """Returns pixels per feature cell: of a ViT its patch, of a ResNet a quarter of its stride.

    Args:
        config: open_clip's ``model_cfg``.
    """
    vision = config["vision_cfg"]
    if isinstance(vision.get("layers", 12), int):
        return vision.get("patch_size", 16)
    return RESNET_STRIDE


def is_averaged(visual: VisionTransformer) -> bool:
    """Returns whether a tower is pooled by averaging its patches, not by its class token."""
    return visual.pool_type == "avg"


def require_supported_image(ref: BackboneRef, config: Mapping[str, Any]) -> None:
    """Checks that the image tower is one of open_clip itself whose patches can be read.

    Args:
        ref: Named in the message.
        config: open_clip's ``model_cfg``.

    Raises:
        BackboneUnavailableError: For timm towers, and ViTs pooled by attention or normed after
            averaging.
    """
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        found = f"the timm model {vision['timm_model_name']!r}"
    elif vision.get("attentional_pool") or vision.get("pool_type", "tok") not in ("tok", "avg"):
        found = "a vision transformer that is pooled neither by its class token nor by averaging"
    elif vision.get("pool_type") == "avg" and vision.get("final_ln_after_pool"):
        found = "a vision transformer that is normed after averaging"
    elif not isinstance(vision.get("patch_size", 16), int):
        found = f"a vision transformer with patches of {vision['patch_size']}"
    else:
        return
    supported = "supported are open_clip's own towers such as ViT-L-14-336 and RN50"
    raise unavailable(ref, f"its image tower is {found}; {supported}")


def load_image_tower(ref: BackboneRef, source: ClipSource) -> ImageTower:
    """Builds the image tower in fp32 and fills it.

    Raises:
        BackboneUnavailableError: If the weight file does not fit the architecture.
    """
    model = _build(ref, {**source.config, "text_cfg": _SMALLEST_TEXT})
    visual = cast("ImageTower", model.visual)
    state = read_state_dict(source.checkpoint, keep=_is_visual)
    fill(ref, visual, {name.removeprefix(_VISUAL_PREFIX): state[name] for name in state})
    return visual.eval().requires_grad_(requires_grad=False)


def load_text_tower(ref: BackboneRef, source: ClipSource) -> TextTower:
    """Builds the text tower in fp32 and fills it.

    Raises:
        BackboneUnavailableError: If the weight file does not fit the architecture.
    """
    network = _build(ref, {**source.config, "vision_cfg": _SMALLEST_VISION})
    del network.visual
    prefix = _TEXT_PREFIX if isinstance(network, open_clip.CustomTextCLIP) else ""
    state = read_state_dict(source.checkpoint, keep=lambda name: not _is_visual(name))
    named = {
        name if name in _SHARED_NAMES else prefix + name.removeprefix(_TEXT_PREFIX): tensor
        for name, tensor in state.items()
        if name not in ("input_resolution", "context_length", "vocab_size")
    }
    fill(ref, network, named)
    text = source.config["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(
        context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
    )
    return TextTower(network.eval().requires_grad_(requires_grad=False), tokenizer)


def _is_visual(name: str) -> bool:
    return name.startswith(_VISUAL_PREFIX)


def _build(
    ref: BackboneRef, config: Mapping[str, Any]
) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    model_class = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    # The initial values are overwritten, but drawing them must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        try:
            return model_class(**settings)
        except TypeError as error:
            reason = f"this open_clip version cannot build its configuration ({error})"
            raise unavailable(ref, reason) from error


def fill(ref: BackboneRef, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies weights into a module in fp32; only the logit scale and bias may be absent."""
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = str(error).splitlines()[-1].strip(" .\t")
        raise unavailable(ref, f"the weight file does not fit the model ({mismatch})") from error
    missing = sorted(set(result.missing_keys) - set(_SHARED_NAMES))
    unexpected = sorted(set(result.unexpected_keys) - set(_SHARED_NAMES))
    if missing or unexpected:
        found = f"missing {missing[:3] or 'nothing'}, not expected {unexpected[:3] or 'nothing'}"
        raise unavailable(ref, f"the weight file does not fit the model ({found})")
