"""DINO and DINOv2 through transformers: patch tokens after the final norm, at any resolution.

Positional embeddings are resized by transformers itself. It resizes to the exact grid, where the
original DINO and DINOv2 code scaled by (n + 0.1) / n (at most 0.07 source cells apart).
"""

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, Tower
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.hub import cache_only, reason_of, require_hub
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.taps import Tap
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import hub_name, local_weights, provenance_of, unavailable
from f3rm.errors import BackboneRef

DinoFamily = Literal["dino", "dinov2", "dinov2_with_registers"]

_MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}
_READ_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
_UNUSED_PARAMETERS = ("pooler.", "mask_token")


class DinoBackbone(Backbone):
    """A DINO or DINOv2 vision transformer, with or without registers; it has no text tower."""

    def __init__(
        self,
        ref: BackboneRef,
        network: PreTrainedModel,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        """Wraps a frozen network; :meth:`load` makes it.

        Args:
            ref: What was loaded.
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
        # DINOv2's classes always resize their positional embeddings and do not know the option.
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
            BackboneUnavailableError: If the weights cannot be had or do not fit, or a text tower is
                asked for.
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
        """Computes patch tokens after the final norm.

        See :meth:`f3rm.backbones.base.Backbone.encode_image`.

        The class token and the registers are dropped.

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
    if path is not None:
        try:
            return _read_from(ref, str(path), local_only=True)
        except _READ_ERRORS as error:
            reason = f"{str(path)!r} is no readable transformers model folder ({error})"
            raise unavailable(ref, reason) from error
    name = hub_name(ref)
    try:
        with cache_only():  # transformers sends a request even for local files
            return _read_from(ref, name, local_only=True)
    except _READ_ERRORS:
        pass  # Not cached, or not usable: the attempt below says why.
    try:
        require_hub()
        return _read_from(ref, name, local_only=False)
    except _READ_ERRORS as error:
        raise unavailable(ref, reason_of(error)) from error


def _read_from(ref: BackboneRef, source: str, *, local_only: bool) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source, local_files_only=local_only)
    model_class = _MODEL_CLASSES.get(config.model_type)
    if model_class is None:
        known = ", ".join(_MODEL_CLASSES)
        raise unavailable(ref, f"its model type is {config.model_type!r}; supported are {known}")
    options: dict[str, Any] = {"add_pooling_layer": False} if model_class is ViTModel else {}
    with torch.random.fork_rng(devices=[]):
        loaded: Any = model_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=local_only,
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


def _read_statistics(
    ref: BackboneRef, path: Path | None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    file = path / "preprocessor_config.json" if path is not None else None
    if file is None or not file.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        red, green, blue = settings.get("image_mean") or IMAGENET_MEAN
        std_red, std_green, std_blue = settings.get("image_std") or IMAGENET_STD
    except (ValueError, TypeError, AttributeError) as error:
        raise unavailable(ref, f"{str(file)!r} holds no RGB statistics ({error})") from error
    return (float(red), float(green), float(blue)), (
        float(std_red),
        float(std_green),
        float(std_blue),
    )


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
    """Writes a small DINO or DINOv2 with random weights, for smoke tests and offline demos.

    Its features carry no meaning: they depend on the image, but do not tell one thing from another.

    Args:
        folder: Where to write; made if need be. Existing files of the same name are replaced.
        family: Which architecture.
        seed: The same seed gives the same weights. The global random state is left alone.
        width: Channels of the features, a multiple of 4.
        layers: Blocks.
        patch_size: Pixels per feature cell.
        image_size: Side of the square that the positional embeddings are made for.

    Returns:
        The folder, in the layout that :meth:`DinoBackbone.load` reads.
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
        else:
            network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    return folder
