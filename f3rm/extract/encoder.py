"""Decoded images -> network inputs -> features -> rows of a chunk, batch by batch.

Resizing is :func:`torch.nn.functional.interpolate` with antialiasing (bicubic by default), clamped
to [0, 1] and then normalised with the backbone's mean and standard deviation. A batch is never of
two sizes and never of two chunks, so that what a chunk holds depends on its images alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm.backbones.base import Backbone
from f3rm.errors import CacheError, DeviceError
from f3rm.extract.plan import ChunkPlan
from f3rm.extract.stored_rows import StoredRows, store_rows
from f3rm.store.codecs import Codec, CodecSpec, CodedDtype, parse_codec
from f3rm.store.device import best_precision, is_full_memory, release_memory
from f3rm.store.geometry import Size, border_of
from f3rm.store.images import ImageInfo, read_inspected
from f3rm.store.spec import FeatureSpec, Interpolation, Precision

log = logging.getLogger(__name__)

_BATCH_PIXELS = 16 * 336 * 336
_LARGEST_BATCH = 32
_SMALL_GPU_BYTES = 16 * 10**9
_LARGEST_SCALE = 4

Result = TypeVar("Result")


def default_batch_size(network_size: Size, device: torch.device | None = None) -> int:
    """Returns how many images go through the network at once.

    It is 16 at 336 x 336 pixels, and more on a GPU of more than 16 GB.
    """
    height, width = network_size
    scale = 1
    if device is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        scale = max(1, min(_LARGEST_SCALE, int(total // _SMALL_GPU_BYTES)))
    return max(1, min(scale * _LARGEST_BATCH, scale * _BATCH_PIXELS // (height * width)))


def prepare(
    pixels: UInt8[np.ndarray, "height width 3"] | UInt8[Tensor, "height width 3"],
    size: Size,
    *,
    interpolation: Interpolation = "bicubic",
    device: torch.device,
    border: tuple[float, float, float] | None = None,
) -> Float[Tensor, "3 net_height net_width"]:
    """Resizes an image for the network.

    Args:
        pixels: Decoded RGB.
        size: Height and width of the network input in pixels.
        interpolation: How to resize; always with antialiasing.
        device: Where the work is done.
        border: Colour that images are made square with, the image in the middle; None leaves them.

    Returns:
        Colours in [0, 1], not yet normalised.
    """
    image = torch.as_tensor(pixels).to(device, non_blocking=True)  # (H, W, 3)
    image = image.permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    if border is not None:
        image = _squared(image, border)
    resized = interpolate(image, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


class Encoder:
    """Computes the rows of chunks with one backbone.

    Attributes:
        backbone: The model.
        channels: Feature channels C.
        codec_spec: Which codec stores the features.
        codec: The codec; None until :func:`~f3rm.extract.codec_fit.settle_codec` has fitted it.
        device: Where the backbone is.
        spec: What is extracted; a worker puts the settled one here.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec,
        batch_size: int | None,
        *,
        channels: int | None = None,
    ) -> None:
        """Keeps the loaded backbone.

        Args:
            backbone: The model.
            spec: What is extracted.
            batch_size: Images per network call; None chooses by the network size.
            channels: Channels of a cell; None for the backbone's.
        """
        self.channels = channels or backbone.channels
        self.codec_spec = codec_spec_of(spec)
        self.codec = Codec(self.codec_spec, self.channels) if spec.codec == "none" else None
        self.device = backbone.device
        self.spec = spec
        self.backbone = backbone
        self._batch_size = batch_size
        self._limit: int | None = None
        # LLaVA's border: the mean colour, rounded down to 8 bits.
        red, green, blue = (int(255 * value) / 255 for value in backbone.mean)
        self._border = (red, green, blue) if spec.fit == "square" else None
        self._mean = torch.tensor(backbone.mean, device=backbone.device)[:, None, None]
        self._std = torch.tensor(backbone.std, device=backbone.device)[:, None, None]

    @property
    def stored_channels(self) -> int:
        """Channels on disk."""
        return self.codec_spec.components or self.channels

    @property
    def stored_dtype(self) -> CodedDtype:
        """Type on disk, unless it cannot hold the features."""
        return self.codec_spec.dtype

    def batch_size(self, network_size: Size) -> int:
        """Returns how many images go through the network at once."""
        size = self._batch_size or default_batch_size(network_size, self.device)
        return min(size, self._limit or size)

    def read(self, plan: ChunkPlan, info: ImageInfo) -> Tensor:
        """Decodes an image, ready for :meth:`features`; called in threads, ahead of the network.

        For the CPU it is resized here; for a GPU it stays 8 bit, in pinned memory.

        Raises:
            ImageError: If the image is not what it was at the start any more.
        """
        pixels = torch.from_numpy(read_inspected(info, self.spec.background))  # (H, W, 3)
        if self.device.type == "cuda":
            return pixels.pin_memory()
        return self._resized(pixels, plan)

    def features(
        self, inputs: Sequence[Tensor], plan: ChunkPlan
    ) -> Iterator[Float[Tensor, "batch rows cols channels"]]:
        """Yields the features of images in fp32, in one batch or, where memory is short, in parts.

        Args:
            inputs: What :meth:`read` gave.
            plan: Their chunk.

        Raises:
            DeviceError: If not even one image fits into memory.
            CacheError: If the backbone gives another shape than it announced.
        """
        return self._in_parts(inputs, plan, lambda features: features)

    def stored(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, dtype: CodedDtype
    ) -> Iterator[StoredRows]:
        """Yields features as they are stored, on their way to the host; see :meth:`features`.

        Args:
            inputs: What :meth:`read` gave.
            plan: Their chunk.
            dtype: Type on disk.

        Raises:
            DeviceError: If not even one image fits into memory.
            CacheError: If the backbone gives another shape than it announced, or the codec has not
                been settled.
        """
        if self.codec is None:
            msg = "Encoder.stored: the codec must be settled first. Call settle_codec."
            raise CacheError(msg)
        codec = self.codec.to(self.device)
        return self._in_parts(inputs, plan, lambda features: store_rows(features, codec, dtype))

    @torch.inference_mode()
    def _in_parts(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, finish: Callable[[Tensor], Result]
    ) -> Iterator[Result]:
        """Yields what ``finish`` makes of the features, of as many images as memory allows."""
        start = 0
        while start < len(inputs):
            part = inputs[start : start + (self._limit or len(inputs))]
            found = self._if_it_fits(part, plan, finish)
            if found is None:
                release_memory(self.device)  # now that no error holds tensors of the larger batch
                continue
            start += len(part)
            yield found

    def _if_it_fits(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, finish: Callable[[Tensor], Result]
    ) -> Result | None:
        """Computes one batch; None, and a smaller limit, if memory is full anywhere on the way."""
        try:
            features = self._run(inputs, plan)
            self._check(features, len(inputs), plan)
            return finish(features.float())
        except (RuntimeError, MemoryError) as error:
            if not is_full_memory(error):
                raise
            self._halve(len(inputs), plan, error)
            return None

    def _run(self, inputs: Sequence[Tensor], plan: ChunkPlan) -> Tensor:
        images = torch.stack([self._network_input(image, plan) for image in inputs])
        with autocast(self.device, self.spec.precision):
            return self.backbone.encode_image((images - self._mean) / self._std)

    def _network_input(self, image: Tensor, plan: ChunkPlan) -> Float[Tensor, "3 height width"]:
        return self._resized(image, plan) if image.dtype == torch.uint8 else image

    def _resized(
        self, pixels: UInt8[Tensor, "_ _ 3"], plan: ChunkPlan
    ) -> Float[Tensor, "3 height width"]:
        return prepare(
            pixels,
            plan.network_size,
            interpolation=self.spec.interpolation,
            device=self.device,
            border=self._border,
        )

    def _halve(self, tried: int, plan: ChunkPlan, error: Exception) -> None:
        if tried == 1:
            msg = (
                f"extract_features: one image of {plan.network_size} pixels must fit into the "
                f"memory of {self.device}, but it is full: {error}. Close what else uses it, or "
                "pass --device cpu."
            )
            raise DeviceError(msg) from error
        self._limit = tried // 2
        log.warning(
            "%d images of %d x %d pixels do not fit into the memory of %s; going on with %d at a "
            "time.",
            tried,
            *plan.network_size,
            self.device,
            self._limit,
        )

    def _check(self, features: Tensor, count: int, plan: ChunkPlan) -> None:
        expected = (count, *plan.grid, self.channels)
        if tuple(features.shape) != expected:
            msg = (
                f"extract_features: the backbone {self.backbone.ref.adapter!r} must return "
                f"features of shape {expected}, got {tuple(features.shape)}. Its adapter has a "
                "bug: report it there."
            )
            raise CacheError(msg)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Makes a network compute in a precision; ``auto`` is what suits the device."""
    chosen = best_precision(device) if precision == "auto" else precision
    if chosen == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, chosen))


def _squared(
    image: Float[Tensor, "1 3 height width"], border: tuple[float, float, float]
) -> Float[Tensor, "1 3 side side"]:
    """Puts an image into the middle of a square of one colour."""
    height, width = image.shape[-2:]
    side = max(height, width)
    top, left = border_of((height, width))
    square = image.new_tensor(border)[None, :, None, None].repeat(1, 1, side, side)
    square[..., top : top + height, left : left + width] = image
    return square


def codec_spec_of(spec: FeatureSpec) -> CodecSpec:
    """Returns which codec a specification asks for."""
    if spec.codec == "none":
        return CodecSpec("none", spec.dtype)
    return parse_codec(spec.codec)
