"""Decoded images -> network inputs -> features -> rows of a chunk, batch by batch.

Resizing is :func:`torch.nn.functional.interpolate` with antialiasing (bicubic by default), clamped
to [0, 1] and then normalised with the backbone's mean and standard deviation. The images of a batch
have one size and belong to one chunk, so that a chunk's content depends on its images alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm.backbones.base import Backbone
from f3rm.errors import CacheError, DeviceError
from f3rm.extract.plan import ChunkPlan
from f3rm.store.codecs import Codec, CodecSpec, CodedDtype, parse_codec
from f3rm.store.device import best_precision, is_full_memory, release_memory
from f3rm.store.geometry import Size, border_of
from f3rm.store.images import LEAVE_OUT, ImageFailedError, ImageInfo, read_inspected
from f3rm.store.spec import FeatureSpec, Interpolation, Precision

log = logging.getLogger(__name__)

_BATCH_PIXELS = 16 * 336 * 336
_LARGEST_BATCH = 32
_SMALL_GPU_BYTES = 16 * 10**9
_LARGEST_SCALE = 4
_ERROR_CELLS = 32
"""Cells per image whose cosine error is measured."""

Result = TypeVar("Result")


@runtime_checkable
class Arrival(Protocol):
    """The end of copies, to be waited for: a CUDA event, or a simulated one."""

    def synchronize(self) -> None:
        """Returns when the copies are complete."""


@dataclass(frozen=True)
class StoredRows:
    """Encoded rows of some images, perhaps still being copied from the GPU.

    Attributes:
        rows: (images, rows, cols, channels) in host memory, in the type on disk.
        finite: (images,) whether the backbone gave neither NaN nor infinity.
        fits: () whether the type on disk could hold them.
        error: () largest relative error of a cell, from encoding.
        sample: (2, cells, channels) some features in fp32: the originals and the decoded ones.
        copied: The end of the copies; None if they are complete.
    """

    rows: Tensor
    finite: Bool[Tensor, " images"]
    fits: Bool[Tensor, ""]
    error: Float[Tensor, ""]
    sample: Float[Tensor, "2 cells channels"]
    copied: Arrival | None = None

    def wait(self) -> "StoredRows":
        """Returns itself when the copies are complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self


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
        codec: The codec; None until :func:`~f3rm.extract.codec_fit.load_or_fit_codec` sets it.
        device: The backbone's.
        spec: The specification; a worker sets the one of the run that it joins.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec,
        batch_size: int | None,
        *,
        channels: int | None = None,
    ) -> None:
        """Derives the codec and the normalisation.

        Args:
            backbone: The loaded model.
            spec: The specification.
            batch_size: Images per network call; None chooses by the network size.
            channels: Channels of a cell; None for the backbone's.
        """
        self.channels = channels or backbone.channels
        plain = spec.codec == "none"
        self.codec_spec = CodecSpec("none", spec.dtype) if plain else parse_codec(spec.codec)
        self.codec = Codec(self.codec_spec, self.channels) if plain else None
        self.device = backbone.device
        self.spec = spec
        self.backbone = backbone
        self._batch_size = batch_size
        self._limit: int | None = None  # images per network call that fit into memory, once known
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
            ImageError: If the image has changed since the start.
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
            inputs: Images that :meth:`read` returned.
            plan: Their chunk.

        Raises:
            DeviceError: If not even one image fits into memory.
            CacheError: If the backbone returns another shape than it announced.
        """
        return self._in_parts(inputs, plan, lambda features: features)

    def stored(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, dtype: CodedDtype
    ) -> Iterator[StoredRows]:
        """Yields encoded rows, on their way to the host; otherwise like :meth:`features`.

        Args:
            inputs: Images that :meth:`read` returned.
            plan: Their chunk.
            dtype: Type on disk.

        Raises:
            DeviceError: If not even one image fits into memory.
            CacheError: If the backbone returns another shape than it announced.
        """
        if self.codec is None:
            raise CacheError("The codec must be loaded or fitted before rows are stored.")
        codec = self.codec.to(self.device)
        return self._in_parts(inputs, plan, lambda features: store_rows(features, codec, dtype))

    @torch.inference_mode()
    def _in_parts(
        self, inputs: Sequence[Tensor], plan: ChunkPlan, finish: Callable[[Tensor], Result]
    ) -> Iterator[Result]:
        """Yields ``finish(features)`` for as many images at a time as memory allows."""
        start = 0
        while start < len(inputs):
            part = inputs[start : start + (self._limit or len(inputs))]
            result = None
            try:
                result = finish(self._checked_run(part, plan))
            except (RuntimeError, MemoryError) as error:
                if not is_full_memory(error):
                    raise
                self._halve(len(part), plan, error)
            if result is None:
                # Not above, where the error's traceback still holds the larger batch.
                release_memory(self.device)
                continue
            start += len(part)
            yield result

    def _run(self, inputs: Sequence[Tensor], plan: ChunkPlan) -> Tensor:
        images = torch.stack(
            [
                self._resized(image, plan) if image.dtype == torch.uint8 else image
                for image in inputs
            ]
        )
        with autocast(self.device, self.spec.precision):
            return self.backbone.encode_image((images - self._mean) / self._std)

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
                f"One image of {plan.network_size} pixels does not fit into the memory of "
                f"{self.device}: {error}. Close other programs that use it, or pass --device cpu."
            )
            raise DeviceError(msg) from error
        self._limit = tried // 2
        log.warning(
            "%d images of %d x %d pixels do not fit into the memory of %s; "
            "going on with %d at a time.",
            tried,
            *plan.network_size,
            self.device,
            self._limit,
        )

    def _checked_run(self, inputs: Sequence[Tensor], plan: ChunkPlan) -> Tensor:
        features = self._run(inputs, plan)
        expected = (len(inputs), *plan.grid, self.channels)
        if tuple(features.shape) != expected:
            msg = (
                f"The backbone {self.backbone.ref.adapter!r} must return features of shape "
                f"{expected}, got {tuple(features.shape)}. Its adapter has a bug: report it there."
            )
            raise CacheError(msg)
        return features.float()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Makes a network compute in a precision; ``auto`` is the best one of the device."""
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


def store_rows(
    features: Float[Tensor, "batch rows cols channels"], codec: Codec, dtype: CodedDtype
) -> StoredRows:
    """Encodes features and starts copying the result to the host.

    Args:
        features: On the backbone's device.
        codec: On the same device.
        dtype: Type on disk.
    """
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    rows = codec.encode(features, dtype)
    decoded = codec.decode(rows)
    lost = (decoded - features).norm(dim=-1)
    relative = lost / features.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    fits, error = torch.isfinite(rows).all(), relative.max()
    sample = torch.stack([_some_cells(features), _some_cells(decoded)])
    stored = StoredRows(rows, finite, fits, error, sample)
    return _copied_beside(stored) if features.device.type == "cuda" else stored


def check_finite(finite: Bool[Tensor, " images"], images: Sequence[ImageInfo]) -> None:
    """Checks that the backbone gave neither NaN nor infinity.

    Raises:
        ImageFailedError: If it did; the error names the first such image.
    """
    for info, good in zip(images, finite.tolist(), strict=True):
        if not good:
            msg = (
                f"The backbone gave NaN or infinity for {info.item.name!r}. Check the weights, "
                f"take its frame out of transforms.json, or {LEAVE_OUT}"
            )
            raise ImageFailedError(msg, info.item.name, "the backbone gave NaN or infinity")


def _some_cells(
    features: Float[Tensor, "batch rows cols channels"],
) -> Float[Tensor, "cells channels"]:
    """Returns the same evenly spaced cells of every map."""
    cells = features.flatten(1, 2)  # (batch, rows * cols, channels)
    return cells[:, :: max(1, cells.shape[1] // _ERROR_CELLS)].reshape(-1, cells.shape[-1])


def _copied_beside(stored: StoredRows) -> StoredRows:
    """Starts the copies from a GPU to the host on a stream of their own.

    Only the GPU waits for what computes the tensors: its copy engine works beside the network's
    next batch, and the calling thread goes on at once.
    """
    device = stored.rows.device
    stream = _copy_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    tensors = (stored.rows, stored.finite, stored.fits, stored.error, stored.sample)
    # Inside, the tensors' device is the current one, which it need not be outside.
    with torch.cuda.stream(stream):
        rows, finite, fits, error, sample = (_to_pinned(tensor, stream) for tensor in tensors)
        copied = torch.cuda.Event(blocking=True)  # whoever waits leaves the processor to others
        copied.record(stream)
    return StoredRows(rows, finite, fits, error, sample, copied)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _to_pinned(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    # Nobody holds the tensor after this. PyTorch would give its memory to the network's next batch,
    # on the stream that made it; told of the other stream, it waits for the copy.
    tensor.record_stream(stream)
    # Only copies into pinned memory run beside the network. PyTorch gives pinned memory that is
    # freed out again, once the copies into it are over: a few buffers serve the whole extraction.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
