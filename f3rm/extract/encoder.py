"""Decoded items -> network inputs -> taps -> rows of a chunk, batch by batch.

The inputs of a batch are of one kind and belong to one chunk, so that a chunk's content depends on
its items alone.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.errors import CacheError, DeviceError
from f3rm.extract.plan import ChunkPlan, InputKind
from f3rm.extract.runner import TapRunner
from f3rm.store.codecs import Codec, CodedDtype
from f3rm.store.device import best_precision, is_full_memory, release_memory
from f3rm.store.geometry import Size
from f3rm.store.images import LEAVE_OUT, ImageFailedError, ImageInfo, read_inspected
from f3rm.store.layout import Layout, common_channels
from f3rm.store.spec import FeatureSpec, Precision
from f3rm.store.video import ClipInfo, read_frames

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


class Encoder:
    """Computes the rows of chunks, which hold every tap of an item, with one backbone.

    Attributes:
        runner: Prepares inputs and computes the taps.
        channels: Channels C of a cell.
        codec: The codec; None until :func:`~f3rm.extract.codec_fit.load_or_fit_codec` sets it.
        device: The backbone's.
        spec: The specification; a worker sets the one of the run that it joins.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec,
        images: Sequence[ImageInfo],
        batch_size: int | None = None,
    ) -> None:
        """Looks at all inputs first, since every chunk must have the same channels per cell.

        Args:
            backbone: The loaded model.
            spec: The specification.
            images: The images and videos to be encoded.
            batch_size: Images per network call; None chooses by the network size.

        Raises:
            F3rmError: As :class:`~f3rm.extract.runner.TapRunner` raises it.
        """
        self.runner = TapRunner(backbone, spec)
        self.device = backbone.device
        self.spec = spec
        kinds = {self.kind(info) for info in images}
        self._shapes = {kind: self.runner.shapes(kind) for kind in kinds}
        self.channels = common_channels(list(self._shapes.values()))
        self.codec = Codec(spec.stored, self.channels) if spec.stored.name == "none" else None
        self._batch_size = batch_size
        self._limit: int | None = None  # images per network call that fit into memory, once known

    @property
    def stored_channels(self) -> int:
        """Channels on disk."""
        return self.spec.stored.components or self.channels

    @property
    def stored_dtype(self) -> CodedDtype:
        """Type on disk, unless it cannot hold the features."""
        return self.spec.stored.dtype

    def kind(self, info: ImageInfo) -> InputKind:
        """Returns the kind of an image's or a video's network input."""
        if isinstance(info, ClipInfo):
            return self.runner.kind(info.size, info.num_frames, is_image=False)
        return self.runner.kind(info.size)

    def layout(self, kind: InputKind) -> Layout:
        """Returns the layout of the rows of inputs of a kind."""
        return Layout(self._shapes[kind], self.channels)

    def batch_size(self, kind: InputKind) -> int:
        """Returns how many inputs go through the network at once; a clip counts by its frames."""
        usual = default_batch_size(kind.canvas, self.device) // kind.frames
        size = self._batch_size or max(1, usual)
        return min(size, self._limit or size)

    def input_bytes(self, info: ImageInfo) -> int:
        """Returns the memory that an item takes while it waits for the network."""
        kind = self.kind(info)
        # Prepared on the CPU: 3 channels of 4 bytes. On a GPU decoded frames wait, of 8 bits.
        return max(12 * kind.num_pixels, 3 * kind.frames * math.prod(info.size))

    def read(self, plan: ChunkPlan, info: ImageInfo) -> Tensor:
        """Decodes an item, ready for :meth:`features`; called in threads, ahead of the network.

        For the CPU it is prepared here; for a GPU it stays 8 bit, in pinned memory.

        Raises:
            ImageError: If the file has changed since the start.
        """
        frames = _decode(info, self.spec)
        if self.device.type == "cuda":
            return frames.pin_memory()
        return self.runner.prepare(frames, plan.kind)

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
                result = finish(self._run(part, plan))
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
        ready = [
            self.runner.prepare(item.to(self.device, non_blocking=True), plan.kind)
            if item.dtype == torch.uint8
            else item
            for item in inputs
        ]
        with autocast(self.device, self.spec.precision):
            values = self.runner.run(torch.stack(ready), plan.kind)
        layout = self.layout(plan.kind)
        for tap, value in values.items():
            expected = (len(inputs), *layout.shapes[tap])
            if tuple(value.shape) != expected:
                raise CacheError(
                    f"The backbone {self.runner.backbone.ref.adapter!r} must return features of "
                    f"shape {expected}, got {tuple(value.shape)}. Its adapter has a bug: report it "
                    "there."
                )
        return layout.pack(values).float()

    def _halve(self, tried: int, plan: ChunkPlan, error: Exception) -> None:
        if tried == 1:
            msg = (
                f"One image of {plan.kind.canvas} pixels does not fit into the memory of "
                f"{self.device}: {error}. Close other programs that use it, or pass --device cpu."
            )
            raise DeviceError(msg) from error
        self._limit = tried // 2
        log.warning(
            "%d images of %d x %d pixels do not fit into the memory of %s; "
            "going on with %d at a time.",
            tried,
            *plan.kind.canvas,
            self.device,
            self._limit,
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Makes a network compute in a precision; ``auto`` is the best one of the device."""
    chosen = best_precision(device) if precision == "auto" else precision
    if chosen == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, chosen))


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


def _decode(info: ImageInfo, spec: FeatureSpec) -> UInt8[Tensor, "frames height width 3"]:
    """Returns the frames of an item as RGB."""
    if not isinstance(info, ClipInfo):
        return torch.from_numpy(read_inspected(info, spec.background))[None]
    return read_frames(info.item.path, spec.frames, num_frames=info.num_frames, name=info.item.name)


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
