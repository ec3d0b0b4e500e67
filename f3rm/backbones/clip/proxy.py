"""ProxyCLIP: CLIP values aggregated with attention from DINO patch similarity.

The features have the DINO's grid and are in the space of CLIP's texts.

Source: Lan et al., "ProxyCLIP", ECCV 2024, section 3.3. Different here: the mean similarity is an
image's own, not a batch's, and a patch always attends to itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.vit import clip_vit, rules_of
from f3rm.backbones.dino.backbone import DinoBackbone
from f3rm.backbones.layers import LayerInfo, dense_layer
from f3rm.backbones.vit import VitBlock, merged
from f3rm.backbones.weights import joined_refs, unavailable
from f3rm.errors import BackboneRef

_SHIFT = 1.2
"""Similarities below this multiple of the mean get no weight."""
_GAIN = 3.0
"""Factor of the shifted similarities before the softmax."""
_PARTS = 2


class ProxyBackbone(Backbone):
    """A CLIP whose last block attends by a DINO's patches; it has CLIP's texts."""

    default_tap = "-1|dense(proxy)"
    dense_rules = ("proxy",)

    def __init__(self, ref: BackboneRef, clip: ClipBackbone, proxy: Backbone | None) -> None:
        """Combines two loaded backbones; :meth:`load` makes them.

        Args:
            ref: The model and weights.
            clip: Gives values and texts; its image tower is a ViT pooled by its class token.
            proxy: Gives similarities; None if only texts are wanted.
        """
        self.ref = ref
        self.channels = clip.channels
        self.mean, self.std = clip.mean, clip.std
        self.has_text = clip.has_text
        self.known_words = clip.known_words
        self.patch_size = clip.patch_size if proxy is None else proxy.patch_size
        self._clip = clip
        self._proxy = proxy

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "ProxyBackbone":
        """Loads both; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``model`` and ``weights`` are CLIP's and DINO's, joined by a comma.
            device: Where the parameters go.
            towers: CLIP's halves to load; the DINO is loaded with the image tower.

        Returns:
            The frozen models in fp32.

        Raises:
            BackboneUnavailableError: If one is not available, or the CLIP has no class-token ViT.
        """
        clip_ref, proxy_ref = _refs(ref)
        clip = ClipBackbone.load(clip_ref, device=device, towers=towers)
        if "image" not in towers:
            return cls(ref, clip, None)
        if not isinstance(clip.visual, VisionTransformer) or len(rules_of(clip.visual)) == 1:
            raise unavailable(ref, "its CLIP has no vision transformer pooled by a class token")
        return cls(ref, clip, DinoBackbone.load(proxy_ref, device=device))

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes features on the DINO's grid; see the base class.

        Args:
            images: Normalised with CLIP's statistics.

        Raises:
            ValueError: If a size is no multiple of the DINO's patch.
        """
        proxy = cast("Backbone", self._proxy)
        visual = cast("VisionTransformer", self._clip.visual)
        grid = self.feature_grid(images)
        weights = proxy_attention(proxy.encode_image(self._for_proxy(images)).flatten(1, 2))
        maps, last = _value_maps(visual, images)
        resized = F.interpolate(maps, grid, mode="bilinear")  # (batch, hidden, rows, cols)
        gathered = weights @ resized.flatten(2).transpose(1, 2).to(weights)
        attended = last.scale1(last.out(gathered.to(maps.dtype)))
        return (visual.ln_post(attended) @ cast("Tensor", visual.proj)).unflatten(1, grid)

    def layers(self) -> list[LayerInfo]:
        """Describes the one layer that taps can name."""
        return [dense_layer(self.channels, self.patch_size)]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts with the CLIP; see its ``encode_text``."""
        return self._clip.encode_text(texts)

    def provenance(self) -> dict[str, str]:
        """Returns both models' provenance, the DINO's with the prefix ``proxy_``."""
        proxy = {} if self._proxy is None else self._proxy.provenance()
        named = {f"proxy_{name}": value for name, value in proxy.items()}
        return {**self._clip.provenance(), **named}

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self._clip.device

    def _for_proxy(self, images: Tensor) -> Tensor:
        """Normalises with the DINO's statistics instead of CLIP's."""
        proxy = cast("Backbone", self._proxy)
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (proxy.mean, proxy.std, self.mean, self.std)
        )
        return (images * own_std + own_mean - mean) / std


def proxy_attention(
    features: Float[Tensor, "batch patches channels"],
) -> Float[Tensor, "batch patches patches"]:
    """Returns attention weights from the similarity of patches, in fp32.

    They are the softmax of 3 (S - 1.2 mean(S)), S the cosine similarities; patches that are less
    alike than 1.2 times the mean get no weight.

    Args:
        features: The patches' features, not normalised.
    """
    directions = F.normalize(features.float(), dim=-1)
    similarities = directions @ directions.transpose(1, 2)
    logits = _GAIN * (similarities - _SHIFT * similarities.mean(dim=(1, 2), keepdim=True))
    # In a uniform image no similarity passes the mean: without itself a patch would have no weight.
    itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill((logits < 0) & ~itself, -torch.inf).softmax(dim=-1)


def _value_maps(
    visual: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, "batch hidden rows cols"], VitBlock]:
    """Returns the last block's values on CLIP's own grid, and the block."""
    vit = clip_vit(visual)
    rows, cols = (max(1, round(side / vit.patch_size)) for side in images.shape[-2:])
    size = (rows * vit.patch_size, cols * vit.patch_size)
    if tuple(images.shape[-2:]) != size:
        images = F.interpolate(images, size, mode="bicubic")
    *blocks, last = vit.blocks
    tokens = vit.embed(images)
    for block in blocks:
        tokens = block.run(tokens)["token"]
    _, _, values = last.heads(tokens)
    patches = merged(values)[:, 1:].unflatten(1, (rows, cols))
    return patches.permute(0, 3, 1, 2), last


def _refs(ref: BackboneRef) -> tuple[BackboneRef, BackboneRef]:
    parts = joined_refs(ref)
    if len(parts) != _PARTS or len(ref.model.split(",")) != _PARTS:
        raise unavailable(ref, "model and weights must be CLIP's and DINO's, joined by a comma")
    return replace(parts[0], adapter="clip"), replace(parts[1], adapter="dino")
