"""CLIP through open_clip: dense features in the space of its texts."""

from collections.abc import Collection, Sequence

import open_clip
import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.calibration import read_calibration
from f3rm.backbones.clip.resnet import resnet_features
from f3rm.backbones.clip.source import ClipSource, find_source
from f3rm.backbones.clip.towers import (
    ImageTower,
    TextTower,
    has_supported_text,
    load_image_tower,
    load_text_tower,
    patch_size,
    require_supported_image,
)
from f3rm.backbones.clip.vit import AVERAGED_RULES, clip_vit, rules_of
from f3rm.backbones.known_words import read_known_words
from f3rm.backbones.layers import LayerInfo, dense_layer
from f3rm.backbones.taps import Tap
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import (
    local_weights,
    not_loaded,
    provenance_of,
    require_several,
    unavailable,
)
from f3rm.errors import BackboneRef


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
        """Combines loaded towers; :meth:`load` makes them.

        Args:
            ref: The model and weights.
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
        folder = local_weights(ref)
        self.known_words, self.calibration = read_known_words(folder), read_calibration(folder)
        self.visual = visual
        self.text = text
        self._vit: Vit | None = None
        if isinstance(visual, ModifiedResNet):
            self.dense_rules = AVERAGED_RULES
        elif visual is not None:
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
        """Loads one tower or both; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``model`` is open_clip's name of the architecture, ``weights`` a tag,
                ``hf-hub:org/name``, a weight file, or a folder with ``open_clip_config.json``,
                which then decides the architecture.
            device: Where the parameters go.
            towers: The halves to load; the other is neither read nor kept.

        Returns:
            The frozen model in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available, or the model is of an
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
            raise not_loaded(self.ref, "image")
        if isinstance(self.visual, ModifiedResNet):
            grid = self.feature_grid(images)
            return resnet_features(self.visual, images).unflatten(1, grid)
        return self.run(images, [self.default_tap])[Tap.parse(self.default_tap)]

    def layers(self) -> list[LayerInfo]:
        """Describes the layers of the image tower; of a ResNet the last one, read densely.

        Raises:
            BackboneUnavailableError: If the image tower was not loaded.
        """
        if self.visual is None:
            raise not_loaded(self.ref, "image")
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
            texts: Any number of strings; each is cut off at the context length (77 tokens).

        Returns:
            Unit vectors, fp32.

        Raises:
            TypeError: If ``texts`` is one string, whose letters would be embedded one by one.
            BackboneUnavailableError: If the text tower was not loaded.
        """
        require_several(texts)
        if self.text is None:
            raise not_loaded(self.ref, "text")
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
        loaded = self.text.network if self.text is not None else self.visual
        if loaded is None:
            raise not_loaded(self.ref, "image")
        return next(loaded.parameters()).device
