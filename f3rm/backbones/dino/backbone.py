"""DINO and DINOv2 through transformers: patch tokens after the final norm, at any resolution.

transformers resizes the positional embeddings to the exact grid, where the original DINO and DINOv2
code scaled by (n + 0.1) / n (at most 0.07 source cells apart).
"""

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTModel,
)

from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, Rgb, Tower, rgb
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.hub import READ_ERRORS, cache_first, cache_only, reason_of
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.taps import Tap
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import hub_name, local_weights, provenance_of, unavailable
from f3rm.errors import BackboneRef

_MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}
_UNUSED_PARAMETERS = ("pooler.", "mask_token")


class DinoBackbone(Backbone):
    """A DINO or DINOv2 vision transformer, with or without registers, without a text tower."""

    def __init__(
        self,
        ref: BackboneRef,
        network: PreTrainedModel,
        *,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        """Wraps a frozen network; :meth:`load` makes it.

        Args:
            ref: The model and weights.
            network: A ``ViTModel``, ``Dinov2Model`` or ``Dinov2WithRegistersModel`` in evaluation
                mode.
            mean: RGB mean of the network's input, for values in [0, 1].
            std: RGB standard deviation, likewise.
        """
        self.ref = ref
        self.network = network
        self.channels = network.config.hidden_size
        self.patch_size = network.config.patch_size
        self.mean = mean
        self.std = std
        self.has_text = False
        self.num_heads = network.config.num_attention_heads
        self._num_prefix_tokens = 1 + getattr(network.config, "num_register_tokens", 0)
        # DINOv2's classes always resize their positional embeddings and refuse the option.
        resizes_on_request = isinstance(network, ViTModel)
        self._options = {"interpolate_pos_encoding": True} if resizes_on_request else {}

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "DinoBackbone":
        """Loads the network; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder in the
                hub's layout, whose ``preprocessor_config.json``, if there is one, gives the input
                statistics.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Returns:
            The frozen network in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available or do not fit, or a text
                tower is asked for.
        """
        if "text" in towers:
            raise unavailable(ref, "DINO models have no text tower; ask a CLIP-like model instead")
        path = local_weights(ref)
        if path is not None and not path.is_dir():
            raise unavailable(
                ref, f"{str(path)!r} is a file; DINO weights are a folder with config.json"
            )
        network = _read_network(ref, path).eval().requires_grad_(requires_grad=False)
        mean, std = _read_statistics(ref, path)
        cast("nn.Module", network).to(device)
        return cls(ref, network, mean=mean, std=std)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes patch tokens after the final norm, without class token and registers.

        See :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """
        grid = self.feature_grid(images)
        tokens = self.network(images.to(self.network.dtype), **self._options).last_hidden_state
        return tokens[:, self._num_prefix_tokens :].unflatten(1, grid)

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name: ``embed``, the blocks, ``final``."""
        return self._vit.layers()

    def read_taps(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps; see :meth:`f3rm.backbones.base.Backbone.run`.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """
        self.feature_grid(images)
        return self._vit.read(images, taps)

    @cached_property
    def _vit(self) -> Vit:
        embeddings = cast("nn.Module", self.network.embeddings)
        dtype, options = self.network.dtype, self._options
        return hf_vit(self.network, lambda images: embeddings(images.to(dtype), **options))

    def provenance(self) -> dict[str, str]:
        """Returns transformers' and torch's versions and the weights' identity."""
        return provenance_of(self.ref, transformers)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.network.device


def _read_network(ref: BackboneRef, path: Path | None) -> PreTrainedModel:
    """Reads from a folder or the hub; cached weights need no network."""
    try:
        if path is None:
            return cache_first(lambda: _read_from(ref, hub_name(ref)))
        with cache_only():
            return _read_from(ref, str(path))
    except READ_ERRORS as error:
        reason = f"{str(path)!r} is no readable transformers model folder ({error})"
        raise unavailable(ref, reason_of(error) if path is None else reason) from error


def _read_from(ref: BackboneRef, source: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source)
    model_class = _MODEL_CLASSES.get(config.model_type)
    if model_class is None:
        known = ", ".join(_MODEL_CLASSES)
        raise unavailable(ref, f"its model type is {config.model_type!r}; supported are {known}")
    options: dict[str, Any] = {"add_pooling_layer": False} if model_class is ViTModel else {}
    # Missing parameters are drawn at random, which must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        loaded: Any = model_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    network, info = loaded
    missing = [key for key in info["missing_keys"] if not any(u in key for u in _UNUSED_PARAMETERS)]
    if missing:
        raise unavailable(
            ref, f"the weight file lacks parameters, among them {sorted(missing)[:3]}"
        )
    return network


def _read_statistics(ref: BackboneRef, path: Path | None) -> tuple[Rgb, Rgb]:
    file = path / "preprocessor_config.json" if path is not None else None
    if file is None or not file.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        mean = rgb(settings.get("image_mean") or IMAGENET_MEAN)
        return mean, rgb(settings.get("image_std") or IMAGENET_STD)
    except (ValueError, TypeError, AttributeError) as error:
        raise unavailable(ref, f"{str(file)!r} holds no RGB statistics ({error})") from error
