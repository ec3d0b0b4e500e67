"""CLIP through open_clip: dense features in the space of its texts."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.clip.dense import maskclip_features, projected_tokens, resnet_features
from f3rm.backbones.clip.source import CONFIG_NAME, WEIGHT_NAMES, ClipSource, find_source
from f3rm.backbones.clip.towers import (
    ImageTower,
    TextTower,
    has_supported_text,
    is_averaged,
    load_image_tower,
    load_text_tower,
    patch_size,
    require_supported_image,
)
from f3rm.backbones.clip.vit import AVERAGED_RULES, clip_vit, rules_of
from f3rm.backbones.layers import LayerInfo, dense_layer
from f3rm.backbones.taps import Tap
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import provenance_of, unavailable
from f3rm.errors import BackboneRef, BackboneUnavailableError


class ClipBackbone(Backbone):
    """A CLIP model of open_clip with a vision transformer or one of CLIP's ResNets."""

    default_tap = "-1|dense(maskclip)"

    def __init__(
        self,
        ref: BackboneRef,
        source: ClipSource,
        *,
        visual: ImageTower | None = None,
        text: TextTower | None = None,
    ) -> None:
        """Puts together the towers at hand; :meth:`load` makes them.

        Args:
            ref: What was loaded.
            source: Its configuration and input statistics.
            visual: The frozen image tower, or None.
            text: The frozen text tower, or None.
        """
        self.ref = ref
        self.channels = source.config["embed_dim"]
        self.patch_size = patch_size(source.config)
        self.mean = source.mean
        self.std = source.std
        self.has_text = has_supported_text(source.config)
        self.visual = visual
        self.text = text
        self._vit: Vit | None = None
        if visual is not None:
            self.dense_rules = AVERAGED_RULES
        if visual is not None and not isinstance(visual, ModifiedResNet):
            self._vit = clip_vit(visual)
            self.num_heads = self._vit.num_heads
            self.dense_rules = rules_of(visual)

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "ClipBackbone":
        """Loads the asked towers; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``model`` is open_clip's name of the architecture, ``weights`` a tag,
                ``hf-hub:org/name``, a weight file, or a folder with ``open_clip_config.json``,
                which then decides the architecture.
            device: Where the parameters go.
            towers: Which halves to load; the other is neither read nor kept.

        Returns:
            The frozen model in fp32.

        Raises:
            BackboneUnavailableError: If the weights cannot be had, or the model is of an
                unsupported kind.
        """
        source = find_source(ref)
        require_supported_image(ref, source.config)
        visual, text = None, None
        if "image" in towers:
            visual = load_image_tower(ref, source).to(device)
        if "text" in towers:
            if not has_supported_text(source.config):
                raise unavailable(ref, "its text tower is not open_clip's own and is not supported")
            text = load_text_tower(ref, source)
            text.network.to(device)
        return cls(ref, source, visual=visual, text=text)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes dense features; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        By MaskCLIP's value path where the tower is pooled by its class token or by attention, as
        projected final tokens where it is pooled by averaging.

        Raises:
            ValueError: If a size is no multiple of the patch.
            BackboneUnavailableError: If the image tower was not loaded.
        """
        if self.visual is None:
            raise self._not_loaded("image")
        grid = self.feature_grid(images)
        if isinstance(self.visual, ModifiedResNet):
            features = resnet_features(self.visual, images)
        elif is_averaged(self.visual):
            features = projected_tokens(self.visual, images)
        else:
            features = maskclip_features(self.visual, images)
        return features.unflatten(1, grid)

    def layers(self) -> list[LayerInfo]:
        """Describes the layers of the image tower; of a ResNet the last one, read densely.

        Raises:
            BackboneUnavailableError: If the image tower was not loaded.
        """
        if self.visual is None:
            raise self._not_loaded("image")
        if self._vit is None:
            return [dense_layer(self.channels, self.patch_size)]
        return self._vit.layers()

    def read_taps(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps; see :meth:`f3rm.backbones.base.Backbone.run`.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """
        self.feature_grid(images)
        if self._vit is None:
            return super().read_taps(images, taps)
        return self._vit.read(images, taps)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts with the model's own tokenizer, as they are: no prompt template is added.

        Args:
            texts: Any number of strings; what exceeds the context length (77 tokens) is cut off.

        Returns:
            Unit vectors, fp32.

        Raises:
            TypeError: If ``texts`` is one string, which would be read letter by letter.
            BackboneUnavailableError: If the text tower was not loaded.
        """
        if isinstance(texts, str):
            msg = f"encode_text: texts must be a sequence of strings, got one. Pass [{texts!r}]."
            raise TypeError(msg)
        if self.text is None:
            raise self._not_loaded("text")
        if not texts:
            return torch.empty(0, self.channels, device=self.device)
        tokens = self.text.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.text.network.encode_text(tokens).float(), dim=-1)

    def provenance(self) -> dict[str, str]:
        """Returns open_clip's and torch's versions and the weights' identity."""
        return provenance_of(self.ref, open_clip)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self._any_tower().parameters()).device

    def _any_tower(self) -> nn.Module:
        if self.visual is not None:
            return self.visual
        if self.text is not None:
            return self.text.network
        raise self._not_loaded("image")

    def _not_loaded(self, tower: Tower) -> BackboneUnavailableError:
        return BackboneUnavailableError(
            f"encode_{tower}: the {tower} tower of {self.ref.model!r} was not loaded. "
            f'Load it with load_backbone(ref, towers=("{tower}",)).'
        )


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
    """Writes a small CLIP with random weights, for smoke tests and demos without a download.

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
        The folder, in the layout that :meth:`ClipBackbone.load` reads.
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
