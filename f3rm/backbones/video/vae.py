"""Causal video autoencoders of the Wan and Cosmos kind through diffusers: clips to latents.

The latents are the posterior's mean, normalised per channel with the statistics that come with the
weights, so that the same clip always gives the same numbers.

*Source:* ``AutoencoderKLWan`` of https://github.com/huggingface/diffusers (Apache-2.0).
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Tower
from f3rm.backbones.hub import cache_only, reason_of, require_hub
from f3rm.backbones.optional import require
from f3rm.backbones.video.backbone import VideoBackbone
from f3rm.backbones.weights import hub_name, local_weights, provenance_of, unavailable
from f3rm.errors import BackboneRef

_READ_ERRORS = (OSError, ValueError, RuntimeError, TypeError)


class VideoVae(VideoBackbone):
    """The encoder of a causal video autoencoder; its decoder is dropped."""

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self, ref: BackboneRef, network: Any) -> None:
        """Wraps a frozen autoencoder; :meth:`load` makes it.

        Args:
            ref: What was loaded.
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
            BackboneUnavailableError: If the weights cannot be had, or a text tower is asked for.
            MissingExtraError: If diffusers is missing.
        """
        if "text" in towers:
            raise unavailable(ref, "video models have no text tower; ask a CLIP model instead")
        diffusers = require("diffusers", extra="vae", purpose=f"load_backbone: {ref.adapter!r}")
        path = local_weights(ref)
        read = diffusers.AutoencoderKLWan.from_pretrained
        network = _read_local(ref, path, read) if path is not None else _read_hub(ref, read)
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
        diffusers = require("diffusers", extra="vae", purpose="provenance: a video autoencoder")
        return provenance_of(self.ref, diffusers)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.network.device


def _read_local(ref: BackboneRef, path: Path, read: Callable[..., Any]) -> Any:
    try:
        return read(str(path), torch_dtype=torch.float32, local_files_only=True)
    except _READ_ERRORS as error:
        raise unavailable(ref, f"it is no readable Wan autoencoder ({error})") from error


def _read_hub(ref: BackboneRef, read: Callable[..., Any]) -> Any:
    """Reads cached weights without the network, and others after asking whether there is one."""
    options = {"subfolder": ref.model, "torch_dtype": torch.float32}
    try:
        with cache_only():
            return read(hub_name(ref), **options)
    except _READ_ERRORS:
        pass  # Not cached, or not usable: the attempt below says why.
    try:
        require_hub()
        return read(hub_name(ref), **options)
    except _READ_ERRORS as error:
        raise unavailable(ref, reason_of(error)) from error


def write_random_autoencoder(folder: Path, *, channels: int = 4, seed: int = 0) -> Path:
    """Writes a small Wan autoencoder with random weights, for smoke tests and offline demos.

    Args:
        folder: Where to write; made if need be.
        channels: Latent channels.
        seed: The same seed gives the same weights. The global random state is left alone.

    Returns:
        The folder, in the layout that :meth:`VideoVae.load` reads.

    Raises:
        MissingExtraError: If diffusers is missing.
    """
    diffusers = require("diffusers", extra="vae", purpose="write_random_autoencoder: it")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=channels,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.1 * index for index in range(channels)],
            latents_std=[1.0 + 0.5 * index for index in range(channels)],
        )
    network.save_pretrained(folder)
    return folder
