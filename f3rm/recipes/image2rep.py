"""Image2Representation: one vector, or one block of latents, per image or video.

Encoders are causal video autoencoders of the Wan and Cosmos kind (the extra ``vae``), or any
image backbone applied frame by frame. Latents have the axes (items, channels, steps, rows, cols).
Differences from the original: an image is one frame, not one frame and 92 black ones, so that a
pooled image vector describes the image. As there, a video that is too long gives its last frames,
and one that is too short repeats its last frame.

*Source:* https://github.com/timsinashok/cosmos-predict2.5, ``image2representation.py``
(Apache-2.0; no code of it is used).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone
from f3rm.errors import BackboneRef
from f3rm.extract.job import LoadBackbone
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.store.device import resolve_device
from f3rm.store.geometry import Prep, Size
from f3rm.store.spec import FeatureSpec, SpecError, parse_backbone
from f3rm.store.video import FramePolicy, Pool

PoolMethod = Literal["mean", "max", "flatten"]

COSMOS = BackboneRef("vae", "vae", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
"""The autoencoder that Cosmos-Predict2.5 uses: 16 channels, 8 pixels per cell, 4 frames per
step."""

COSMOS_RESOLUTION = (360, 640)
COSMOS_FRAMES = FramePolicy(num=93, pick="last", pad="repeat")
"""24 steps of latents."""

_OPERATIONS = {"none": "", "mean": "|mean", "max": "|amax"}


class Image2Representation:
    """A loaded encoder that gives latents or pooled vectors.

    Attributes:
        backbone: The model.
        tap: The tap that is read.
        resolution: Height and width of network inputs in pixels: images are scaled to cover it,
            then cut to its centre.
        frames: Selection of a video's frames.
    """

    def __init__(
        self,
        backbone: str | BackboneRef = COSMOS,
        *,
        tap: str | None = None,
        resolution: Size = COSMOS_RESOLUTION,
        frames: FramePolicy = COSMOS_FRAMES,
        device: str = "auto",
        load: LoadBackbone = load_backbone,
        loaded: Backbone | None = None,
    ) -> None:
        """Loads the encoder, unless a loaded one is given.

        Args:
            backbone: ``adapter:model@weights``, a feature type, or a reference.
            tap: A tap that gives a map; None for the backbone's own, such as ``latent``.
            resolution: Height and width of the network's input in pixels; rounded to whole cells.
            frames: Selection of a video's frames.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            load: Loads the model.
            loaded: A loaded model; ``backbone``, ``device`` and ``load`` are ignored.

        Raises:
            SpecError: If ``backbone`` is malformed.
            BackboneUnavailableError: If the model cannot be loaded.
        """
        ref = parse_backbone(backbone) if isinstance(backbone, str) else backbone
        self.backbone: Backbone = loaded or load(
            ref, device=resolve_device(device), towers=("image",)
        )
        self.tap = tap or self.backbone.default_tap
        self.resolution = resolution
        self.frames = frames

    def extract_from_image(
        self, path: Path | str, resolution: Size | None = None
    ) -> Float[Tensor, "1 channels steps rows cols"]:
        """Computes the latents of an image.

        Args:
            path: The file.
            resolution: Replaces :attr:`resolution`.

        Raises:
            ImageError: If it cannot be read.
        """
        return self.extract_batch([path], resolution)

    def extract_from_video(
        self, path: Path | str, resolution: Size | None = None, num_frames: int | None = None
    ) -> Float[Tensor, "1 channels steps rows cols"]:
        """Computes the latents of a video.

        Args:
            path: The file.
            resolution: Replaces :attr:`resolution`.
            num_frames: Replaces the number in :attr:`frames`.

        Raises:
            ImageError: If it cannot be read.
        """
        frames = self.frames.with_num(num_frames)
        return self._latents([path], resolution, frames, batch_size=1)

    def extract_batch(
        self,
        paths: Sequence[Path | str],
        resolution: Size | None = None,
        batch_size: int = 4,
    ) -> Float[Tensor, "items channels steps rows cols"]:
        """Computes the latents of several files.

        Args:
            paths: Images or videos; both only with ``frames.image='clip'``, which brings them to
                one length.
            resolution: Replaces :attr:`resolution`.
            batch_size: Files per network call.

        Raises:
            SpecError: If files give latents of different shapes.
            ImageError: If one cannot be read; the message names it.
        """
        return self._latents(paths, resolution, self.frames, batch_size=batch_size)

    def extract_pooled(
        self,
        path: Path | str | Sequence[Path | str],
        resolution: Size | None = None,
        pool_method: PoolMethod = "mean",
        batch_size: int = 4,
    ) -> Float[Tensor, "items values"]:
        """Computes one vector per file; latents are pooled on the device.

        Args:
            path: An image or a video, or several; images and videos may be mixed.
            resolution: Replaces :attr:`resolution`.
            pool_method: ``mean`` or ``max`` over steps, rows and columns; or ``flatten``, without
                pooling.
            batch_size: Files per network call.

        Raises:
            SpecError: If the method is unknown, or flattened latents differ in length.
            ImageError: If a file cannot be read; the message names it.
        """
        if pool_method not in get_args(PoolMethod):
            known = ", ".join(get_args(PoolMethod))
            raise SpecError(f"pool_method must be one of {known}, got {pool_method!r}.")
        paths = [path] if isinstance(path, str | Path) else list(path)
        if pool_method == "flatten":
            return self.extract_batch(paths, resolution, batch_size).flatten(1)
        # An image backbone gives a vector per frame; the same pooling over time then joins them.
        extractor = self._extractor(resolution, self.frames, pool=pool_method)
        (vectors,) = extractor(paths, batch_size=batch_size).values()
        return vectors.float()

    def get_latent_shape(
        self, resolution: Size | None = None, num_frames: int | None = None
    ) -> tuple[int, int, int, int]:
        """Returns channels, steps, rows and columns of a video's latents; computes nothing.

        Args:
            resolution: Replaces :attr:`resolution`.
            num_frames: Frames of the video; None for the number in :attr:`frames`, 0 for an image.
        """
        num_frames = self.frames.num or 1 if num_frames is None else num_frames
        extractor = self._extractor(resolution, self.frames.with_num(num_frames or None))
        (shape,) = extractor.shape(*(resolution or self.resolution), frames=num_frames).values()
        steps, rows, cols, channels = shape if len(shape) == 4 else (1, *shape)
        return channels, steps, rows, cols

    def _latents(
        self,
        paths: Sequence[Path | str],
        resolution: Size | None,
        frames: FramePolicy,
        *,
        batch_size: int,
    ) -> Float[Tensor, "items channels steps rows cols"]:
        extractor = self._extractor(resolution, frames)
        (latents,) = extractor(list(paths), batch_size=batch_size).values()
        if latents.ndim == 4:
            latents = latents[:, None]  # an image of an image backbone: one step
        return latents.float().permute(0, 4, 1, 2, 3)

    def _extractor(
        self, resolution: Size | None, frames: FramePolicy, *, pool: Pool = "none"
    ) -> FeatureExtractor:
        height, width = resolution or self.resolution
        prep = Prep(resize="cover", size=(height, width), fit="round")
        tap = self.tap + _OPERATIONS[pool]
        frames = replace(frames, pool=pool)
        spec = FeatureSpec(self.backbone.ref, (tap,), prep, frames, precision="float32")
        return FeatureExtractor(spec, backbone=self.backbone)
