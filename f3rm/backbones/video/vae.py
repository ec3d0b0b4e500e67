"""Causal video autoencoders of the Wan and Cosmos kind through diffusers: clips to latents.

The latents are the posterior's mean, so that the same clip always gives the same numbers. They are
normalised per channel with the statistics that come with the weights.

*Source:* ``AutoencoderKLWan`` of https://github.com/huggingface/diffusers (Apache-2.0).
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Tower
from f3rm.backbones.hub import READ_ERRORS, cache_first, reason_of
from f3rm.backbones.optional import require
from f3rm.backbones.video.backbone import VideoBackbone
from f3rm.backbones.weights import hub_name, local_weights, provenance_of, unavailable
from f3rm.errors import BackboneRef


class VideoVae(VideoBackbone):
    """The encoder of a causal video autoencoder; its decoder is dropped."""

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self, ref: BackboneRef, network: Any) -> None:
        """Wraps a frozen autoencoder; :meth:`load` makes it.

        Args:
            ref: The model and weights.
            network: A diffusers ``AutoencoderKLWan`` in evaluation mode.
        """
        self.ref = ref
        self.network = network
        config = network.config
        self.channels = int(config.z_dim)
        self.patch_size = int(config.scale_factor_spatial)
        self.temporal_stride = int(config.scale_factor_temporal)
        column = (1, -1, 1, 1, 1)
        self._latent_mean = torch.tensor(config.latents_mean, device=self.device).view(column)
        self._latent_std = torch.tensor(config.latents_std, device=self.device).view(column)

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "VideoVae":
        """Loads the encoder; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a local folder in diffusers' layout, or a hub name; ``model`` is
                then the subfolder of the autoencoder in it, ``vae`` in the hub's repositories.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Raises:
            BackboneUnavailableError: If the weights are not available, or towers has text.
            MissingExtraError: If diffusers is missing.
        """
        if "text" in towers:
            raise unavailable(ref, "video models have no text tower; ask a CLIP model instead")
        diffusers = require("diffusers", extra="vae", purpose=f"The backbone {ref.adapter!r}")
        path = local_weights(ref)
        # low_cpu_mem_usage would need accelerate, and diffusers says so at every load without it.
        read = partial(
            diffusers.AutoencoderKLWan.from_pretrained,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
        )
        try:
            if path is not None:
                network = read(str(path), local_files_only=True)
            else:
                network = cache_first(lambda: read(hub_name(ref), subfolder=ref.model))
        except READ_ERRORS as error:
            reason = f"it is no readable Wan autoencoder ({error})"
            raise unavailable(ref, reason_of(error) if path is None else reason) from error
        del network.decoder
        return cls(ref, network.eval().requires_grad_(requires_grad=False).to(device))

    @torch.no_grad()
    def encode_video(
        self, clips: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch channels steps rows cols"]:
        """Computes latents; see :meth:`f3rm.backbones.video.backbone.VideoBackbone.encode_video`.

        Raises:
            ValueError: If a size does not fit the model.
        """
        self.steps_of(clips.shape[2])
        self.grid_of((clips.shape[3], clips.shape[4]))
        latents = self.network.encode(clips.to(self.network.dtype)).latent_dist.mode().float()
        return (latents - self._latent_mean) / self._latent_std

    def provenance(self) -> dict[str, str]:
        """Returns diffusers' and torch's versions and the weights' identity."""
        return provenance_of(self.ref, require("diffusers", extra="vae", purpose="A video model"))

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.network.device
