"""``f3rm image2rep``: vectors of images and videos by a video autoencoder, for classifiers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from f3rm.errors import F3rmError
from f3rm.extract.tables.bench import as_table, benchmark
from f3rm.extract.tables.probe import Probe
from f3rm.recipes.image2rep import Image2RepresentationExtractor, PoolMethod, save_features
from f3rm.scripts.command import Command, say
from f3rm.store.geometry import Size
from f3rm.store.images import read_image
from f3rm.store.video import FramePolicy

_BATCHES = (1, 2, 4, 8)
_COPIES = 8
"""Noisy copies of the image per class of the demonstration; half of them are held out."""
_NOISE = 10
_BLACK = (0.0, 0.0, 0.0)


@dataclass
class Image2Rep(Command):
    """Write pooled latents of a folder's images and videos, or try the encoder on one image."""

    experiment: str = ""
    """Accepted and ignored: it configures the diffusion model, of which nothing is read."""
    ckpt_path: str = ""
    """The autoencoder: a folder in diffusers' layout, s3://..., or a hub name; else Cosmos's."""
    input_dir: Path | None = None
    """Folder of images and videos; subfolders are searched."""
    output_file: Path | None = None
    """File of the features, for torch.load."""
    batch_size: int = 4
    """Files per network call."""
    resolution: str = "360,640"
    """Height and width in pixels: images are scaled to cover it, then cut."""
    pool_method: PoolMethod = "mean"
    """mean, max, or flatten: no pooling."""
    num_frames: int = 93
    """Frames of a video: its last ones; a shorter video repeats its last frame."""
    device: str = "cuda"
    """cuda (the CPU where there is no GPU), cpu, cuda:0, ..."""
    s3_credential_path: str = ""
    """JSON with the keys for s3:// addresses."""
    image: Path | None = None
    """An image to try: prints the shapes of its latents and vectors."""
    benchmark: bool = False
    """With an image: time the encoder."""
    num_iterations: int = 20
    """Timed calls of the benchmark."""
    batch_test: bool = False
    """With an image: encode batches of 1, 2, 4 and 8."""
    demo_classifier: bool = False
    """With an image: fit a classifier that tells its noisy copies from those of its negative."""

    def run(self) -> None:
        """Writes the features, or prints what the tests find.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        if self.image is None and (self.input_dir is None or self.output_file is None):
            raise F3rmError("--input_dir and --output_file must be given, or --image with a file.")
        size = _size(self.resolution)
        encoder = Image2RepresentationExtractor(
            self.experiment,
            self.ckpt_path,
            self.s3_credential_path,
            device=self.device,
            resolution=size,
            frames=FramePolicy(self.num_frames, "last"),
        )
        if self.image is not None:
            self._try(encoder, self.image, size)
        if self.input_dir is not None and self.output_file is not None:
            options = {"batch_size": self.batch_size, "resolution": size}
            options["pool_method"] = self.pool_method
            failed = save_features(encoder, self.input_dir, self.output_file, **options)
            for name, reason in failed.items():
                say(f"{name} is left out: {reason}")
            say(f"Saved features to {self.output_file}")

    def _try(self, encoder: Image2RepresentationExtractor, image: Path, size: Size) -> None:
        say(f"latents {tuple(encoder.extract_from_image(image).shape)}")
        say(f"of a video {encoder.get_latent_shape()}")
        for method in ("mean", "max", "flatten"):
            vector = encoder.extract_pooled(image, pool_method=method)
            say(f"{method} {tuple(vector.shape)}")
        if self.benchmark:
            rows = benchmark(
                encoder.extractor(), [size], batches=(1,), iterations=self.num_iterations
            )
            for line in as_table(rows).splitlines():
                say(line)
        for batch in _BATCHES if self.batch_test else ():
            latents = encoder.extract_batch([image] * batch, batch_size=batch)
            say(f"batch of {batch}: {tuple(latents.shape)}")
        if self.demo_classifier:
            say(f"classifier: {_demonstrate(encoder, image):.0%} of the held-out copies are right")


def _demonstrate(encoder: Image2RepresentationExtractor, image: Path) -> float:
    """Returns the accuracy of a classifier of noisy copies: of the image, or of its negative."""
    pixels = read_image(image, _BLACK).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, _NOISE, (2 * _COPIES, *pixels.shape))
    labels = np.arange(2 * _COPIES) % 2
    copies = [
        np.clip((255 - pixels if label else pixels) + part, 0, 255).astype(np.uint8)
        for label, part in zip(labels, noise, strict=True)
    ]
    (vectors,) = encoder.extractor(pool="mean")(copies).values()
    features = vectors.numpy()
    probe = Probe("logistic").fit(features[:_COPIES], labels[:_COPIES])
    return probe.score(features[_COPIES:], labels[_COPIES:]).top1


def _size(text: str) -> Size:
    height, _, width = text.partition(",")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise F3rmError(f"--resolution must look like 360,640, height first, got {text!r}.")
    return int(height), int(width)
