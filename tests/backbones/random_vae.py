"""Writes small random video autoencoders for tests without a download."""

from pathlib import Path

import torch

from f3rm.backbones.optional import require


def write_random_autoencoder(folder: Path, *, channels: int = 4, seed: int = 0) -> Path:
    """Writes a small Wan autoencoder with random weights.

    Args:
        folder: Where to write; made if need be.
        channels: Latent channels.
        seed: The same seed gives the same weights. The global random state is left alone.

    Returns:
        The folder, in the layout that ``VideoVae.load`` reads.

    Raises:
        MissingExtraError: If diffusers is missing.
    """
    diffusers = require("diffusers", extra="vae", purpose="A random autoencoder")
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
