"""Image2Representation: one vector, or one block of latents, per image or video.

Encoders are causal video autoencoders of the Wan and Cosmos kind (the extra ``vae``), or any
image backbone applied frame by frame. Latents have the axes (items, channels, steps, rows, cols).
Differences from the original: an image is one frame, not one frame and 92 black ones, so that a
pooled image vector describes the image; only in one batch with videos it is a clip, of repeated
frames. As there, a video that is too long gives its last frames, and one that is too short repeats
its last frame.

*Source:* https://github.com/timsinashok/cosmos-predict2.5, ``image2representation.py``
(Apache-2.0; no code of it is used).
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone
from f3rm.errors import BackboneRef, ImageError, StrPath, as_path
from f3rm.extract.job import LoadBackbone
from f3rm.extract.tables.items import list_items
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.recipes.elsewhere import fetch, is_address, present_device
from f3rm.store.chunks import write_atomically
from f3rm.store.device import resolve_device
from f3rm.store.geometry import Prep, Size
from f3rm.store.spec import FeatureSpec, SpecError, parse_backbone
from f3rm.store.video import FramePolicy, Pool, is_video

log = logging.getLogger(__name__)

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
        credentials: JSON of the keys for files at ``s3://`` addresses; empty for the environment's.
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
            resolution: Height and width of the network's input in pixels; of an incomplete last
                cell nothing is read, as the autoencoder itself does.
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
        self.credentials: StrPath = ""
        self._warned: set[Size] = set()

    def extract_from_image(
        self,
        image_path: StrPath,
        resolution: Size | None = None,
        return_cpu: bool = True,  # noqa: FBT001, FBT002 - the original's position
    ) -> Float[Tensor, "1 channels steps rows cols"]:
        """Computes the latents of an image.

        Args:
            image_path: The file, or its address.
            resolution: Replaces :attr:`resolution`.
            return_cpu: Whether the result is on the CPU instead of the model's device.

        Raises:
            ImageError: If it cannot be read.
        """
        return self.extract_batch([image_path], resolution, return_cpu=return_cpu)

    def extract_from_video(
        self,
        video_path: StrPath,
        resolution: Size | None = None,
        num_frames: int | None = None,
        return_cpu: bool = True,  # noqa: FBT001, FBT002 - the original's position
    ) -> Float[Tensor, "1 channels steps rows cols"]:
        """Computes the latents of a video.

        Args:
            video_path: The file, or its address.
            resolution: Replaces :attr:`resolution`.
            num_frames: Replaces the number in :attr:`frames`.
            return_cpu: Whether the result is on the CPU instead of the model's device.

        Raises:
            ImageError: If it cannot be read.
        """
        frames = self.frames.with_num(num_frames)
        return self._placed(self._latents([video_path], resolution, frames, 1), return_cpu)

    def extract_batch(
        self,
        input_paths: Sequence[StrPath],
        resolution: Size | None = None,
        batch_size: int = 4,
        return_cpu: bool = True,  # noqa: FBT001, FBT002 - the original's position
    ) -> Float[Tensor, "items channels steps rows cols"]:
        """Computes the latents of several files.

        Args:
            input_paths: Images, videos, or both: then an image is a clip as long as a video.
            resolution: Replaces :attr:`resolution`.
            batch_size: Files per network call.
            return_cpu: Whether the result is on the CPU instead of the model's device.

        Raises:
            SpecError: If files give latents of different shapes.
            ImageError: If one cannot be read; the message names it.
        """
        frames = self.frames
        if len({is_video(as_path(path)) for path in input_paths}) > 1:
            frames = replace(frames, image="clip")
        return self._placed(self._latents(input_paths, resolution, frames, batch_size), return_cpu)

    def extract_pooled(
        self,
        input_path: StrPath | Sequence[StrPath],
        resolution: Size | None = None,
        pool_method: PoolMethod = "mean",
        return_cpu: bool = True,  # noqa: FBT001, FBT002 - the original's position
        *,
        batch_size: int = 4,
    ) -> Float[Tensor, "items values"]:
        """Computes one vector per file; latents are pooled on the device.

        Args:
            input_path: An image or a video, or several; images and videos may be mixed.
            resolution: Replaces :attr:`resolution`.
            pool_method: ``mean`` or ``max`` over steps, rows and columns; or ``flatten``, without
                pooling.
            return_cpu: Whether the result is on the CPU instead of the model's device.
            batch_size: Files per network call.

        Raises:
            SpecError: If the method is unknown, or flattened latents differ in length.
            ImageError: If a file cannot be read; the message names it.
        """
        if pool_method not in get_args(PoolMethod):
            known = ", ".join(get_args(PoolMethod))
            raise SpecError(f"pool_method must be one of {known}, got {pool_method!r}.")
        paths = [input_path] if isinstance(input_path, str | PathLike) else list(input_path)
        if pool_method == "flatten":
            return self.extract_batch(paths, resolution, batch_size, return_cpu).flatten(1)
        # An image backbone gives a vector per frame; the same pooling over time then joins them.
        extractor = self.extractor(resolution, self.frames, pool=pool_method)
        return self._placed(self._computed(extractor, paths, batch_size), return_cpu)

    def get_latent_shape(
        self, resolution: Size | None = None, num_frames: int | None = None
    ) -> tuple[int, int, int, int]:
        """Returns channels, steps, rows and columns of a video's latents; computes nothing.

        Args:
            resolution: Replaces :attr:`resolution`.
            num_frames: Frames of the video; None for the number in :attr:`frames`, 0 for an image.
        """
        num_frames = self.frames.num or 1 if num_frames is None else num_frames
        extractor = self.extractor(resolution, self.frames.with_num(num_frames or None))
        (shape,) = extractor.shape(*(resolution or self.resolution), frames=num_frames).values()
        steps, rows, cols, channels = shape if len(shape) == 4 else (1, *shape)
        return channels, steps, rows, cols

    def extractor(
        self,
        resolution: Size | None = None,
        frames: FramePolicy | None = None,
        *,
        pool: Pool = "none",
    ) -> FeatureExtractor:
        """Returns the extractor behind the methods; the model is not loaded again.

        Args:
            resolution: Replaces :attr:`resolution`.
            frames: Replaces :attr:`frames`.
            pool: Pooling of the latents over steps, rows and columns.
        """
        height, width = resolution or self.resolution
        cell = self.backbone.patch_size
        if (height % cell or width % cell) and (height, width) not in self._warned:
            self._warned.add((height, width))
            log.warning(
                "resolution %s x %s: the model's cells are %s pixels, so the last %s rows and %s "
                "columns are not read.", height, width, cell, height % cell, width % cell,
            )  # fmt: skip
        # Convolutions drop an incomplete last cell, which crop does as well.
        prep = Prep("cover", (height, width), fit="crop", interpolation="bilinear")
        frames = replace(frames or self.frames, pool=pool)
        tap = self.tap + _OPERATIONS[pool]
        spec = FeatureSpec(self.backbone.ref, (tap,), prep, frames, precision="float32")
        return FeatureExtractor(spec, backbone=self.backbone)

    def _latents(
        self,
        paths: Sequence[StrPath],
        resolution: Size | None,
        frames: FramePolicy,
        batch_size: int,
    ) -> Float[Tensor, "items channels steps rows cols"]:
        latents = self._computed(self.extractor(resolution, frames), paths, batch_size)
        if latents.ndim == 4:
            latents = latents[:, None]  # an image of an image backbone: one step
        return latents.permute(0, 4, 1, 2, 3)

    def _computed(
        self, extractor: FeatureExtractor, paths: Sequence[StrPath], batch_size: int
    ) -> Float[Tensor, "items ..."]:
        """Computes the extractor's tap of files, copying those that are elsewhere first."""
        with ExitStack() as copies:
            folder: Path | None = None
            files: list[Path] = []
            for number, path in enumerate(paths):
                if not is_address(path):
                    files.append(as_path(path))
                    continue
                folder = folder or Path(copies.enter_context(TemporaryDirectory()))
                files.append(fetch(str(path), folder / str(number), self.credentials))
            (values,) = extractor(files, batch_size=batch_size).values()
        return values.float()

    def _placed(self, values: Tensor, return_cpu: bool) -> Tensor:  # noqa: FBT001
        return values if return_cpu else values.to(self.backbone.device)


class Image2RepresentationExtractor(Image2Representation):
    """The original's name and arguments: Cosmos's encoder, or a checkpoint of the same kind."""

    def __init__(  # noqa: PLR0913 - the original's arguments
        self,
        experiment_name: str | None = None,
        ckpt_path: StrPath | None = None,
        s3_credential_path: StrPath = "",
        config_file: StrPath = "",
        device: str = "cuda",
        *,
        experiment_opts: Sequence[str] | None = None,
        model_size: str = "2B",
        resolution: Size = COSMOS_RESOLUTION,
        frames: FramePolicy = COSMOS_FRAMES,
    ) -> None:
        """Loads the autoencoder, and nothing else of the video model.

        Args:
            experiment_name: Ignored: it configures the diffusion model, of which nothing is read.
            ckpt_path: An autoencoder in diffusers' layout, or a folder with one in ``vae``, here or
                at an address such as ``s3://...``; or a hub name. None for Cosmos's own.
            s3_credential_path: JSON with ``aws_access_key_id``, ``aws_secret_access_key``,
                ``endpoint_url`` and ``region_name``; empty for the environment's.
            config_file: Ignored, as ``experiment_name``.
            device: ``cuda``, which becomes ``cpu`` where there is no GPU, or as elsewhere.
            experiment_opts: Ignored, as ``experiment_name``.
            model_size: Ignored: all sizes of the diffusion model have one autoencoder.
            resolution: Height and width of network inputs in pixels.
            frames: Selection of a video's frames.

        Raises:
            BackboneUnavailableError: If the model cannot be loaded.
            RemoteError: If an address cannot be copied.
        """
        del experiment_name, config_file, experiment_opts, model_size
        with TemporaryDirectory() as folder:
            weights = str(ckpt_path or "")
            if is_address(weights):
                weights = str(fetch(weights, Path(folder), s3_credential_path))
            if (Path(weights) / COSMOS.model).is_dir():
                weights = str(Path(weights) / COSMOS.model)
            super().__init__(
                replace(COSMOS, weights=weights or COSMOS.weights),
                resolution=resolution,
                frames=frames,
                device=present_device(device),
            )
        self.credentials = s3_credential_path


def save_features(
    encoder: Image2Representation,
    input_dir: StrPath,
    output_file: StrPath,
    *,
    batch_size: int = 4,
    resolution: Size = COSMOS_RESOLUTION,
    pool_method: PoolMethod = "mean",
) -> dict[str, str]:
    """Writes the pooled vectors of all images and videos below a folder, for ``torch.load``.

    The file has ``features`` (items, values), ``file_paths``, ``resolution`` and ``pool_method``;
    ``torch.load(weights_only=True)`` reads it.

    Args:
        encoder: The encoder.
        input_dir: The folder; subfolders are searched.
        output_file: The file.
        batch_size: Files per network call.
        resolution: Height and width of network inputs in pixels.
        pool_method: As for :meth:`Image2Representation.extract_pooled`.

    Returns:
        Files that cannot be read, which are left out, and why.

    Raises:
        DatasetError: If there is no image or video, or none can be read.
        CacheError: If the file cannot be written.
    """
    paths = [item.path for item in list_items(as_path(input_dir)).items]
    found: dict[str, Tensor] = {}
    failed: dict[str, str] = {}
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        try:
            vectors = encoder.extract_pooled(batch, resolution, pool_method, batch_size=batch_size)
            found |= {str(path): row for path, row in zip(batch, vectors, strict=True)}
        except ImageError:  # one by one, so that only the damaged file is missing
            for path in batch:
                try:
                    found[str(path)] = encoder.extract_pooled(path, resolution, pool_method)[0]
                except ImageError as error:
                    failed[str(path)] = str(error)
    if not found:
        raise ImageError(
            f"No file in {str(input_dir)!r} can be read: {next(iter(failed.values()))}"
        )
    content = {
        "features": torch.stack(list(found.values())),
        "file_paths": list(found),
        "resolution": tuple(resolution),
        "pool_method": pool_method,
    }
    output_file = as_path(output_file)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output_file, lambda stream: torch.save(content, stream))
    return failed
