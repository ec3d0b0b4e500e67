"""Decoded images -> network inputs -> features -> rows of a chunk, checked on the way.

Resizing is :func:`torch.nn.functional.interpolate` with antialiasing on the backbone's device
(bicubic by default), clamped to [0, 1] and then normalised with the backbone's mean and standard
deviation.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm._types import CacheError, DeviceError, ImageError
from f3rm.backbones.base import Backbone
from f3rm.features.chunks import Rows
from f3rm.features.geometry import Size
from f3rm.features.images import ImageInfo, prefetched, read_image
from f3rm.features.plan import ChunkPlan
from f3rm.features.spec import FeatureSpec, Interpolation, StoredDtype

_BATCH_PIXELS = 16 * 336 * 336
_LARGEST_BATCH = 32


class HalfOverflowError(Exception):
    """Features exceed what float16 can hold; the chunk is encoded again as float32."""


def default_batch_size(network_size: Size) -> int:
    """Returns how many images go through the network at once: 16 at 336 x 336 pixels."""
    height, width = network_size
    return max(1, min(_LARGEST_BATCH, _BATCH_PIXELS // (height * width)))


def prepare(
    pixels: UInt8[np.ndarray, "height width 3"],
    size: Size,
    *,
    interpolation: Interpolation = "bicubic",
    device: torch.device,
) -> Float[Tensor, "3 net_height net_width"]:
    """Resizes an image for the network.

    Args:
        pixels: Decoded RGB.
        size: Height and width of the network input in pixels.
        interpolation: How to resize; always with antialiasing.
        device: Where the work is done.

    Returns:
        Colours in [0, 1], not yet normalised.
    """
    image = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    resized = interpolate(image, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


class ChunkEncoder:
    """Computes the rows of chunks with one backbone.

    Attributes:
        channels: Feature channels C.
        codec_error: Largest relative error that rounding to the stored type made in any cell of the
            last chunk.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec, batch_size: int | None) -> None:
        """Keeps the loaded ``backbone``; a ``batch_size`` of None depends on the network size."""
        self.codec_error = 0.0
        self.channels = backbone.channels
        self._backbone = backbone
        self._spec = spec
        self._batch_size = batch_size
        self._mean = torch.tensor(backbone.mean, device=backbone.device)[:, None, None]
        self._std = torch.tensor(backbone.std, device=backbone.device)[:, None, None]

    def encode(
        self, plan: ChunkPlan, dtype: StoredDtype, report: Callable[[int], object]
    ) -> Iterator[Rows]:
        """Yields the chunk's rows batch by batch, in order.

        Args:
            plan: The chunk.
            dtype: Type on disk.
            report: Called with the number of images of every finished batch.

        Raises:
            ImageError: If an image cannot be read any more, or the backbone gives NaN or infinity
                for it.
            DeviceError: If the batch does not fit into the GPU's memory.
            HalfOverflowError: If ``dtype`` is float16 and cannot hold the features.
        """
        self.codec_error = 0.0
        size = self._batch_size or default_batch_size(plan.network_size)
        inputs = prefetched(self._decode, plan.images, ahead=max(8, size))
        for start in range(0, len(plan.images), size):
            batch = plan.images[start : start + size]
            features = self._features([next(inputs) for _ in batch], batch, plan)
            yield self._stored(features, dtype)
            report(len(batch))

    def _decode(self, info: ImageInfo) -> UInt8[np.ndarray, "height width 3"]:
        pixels = read_image(info.item.path, self._spec.background)
        if pixels.shape[:2] != info.size:
            msg = (
                f"extract_features: {info.item.name!r} must not change during extraction, got size "
                f"{pixels.shape[:2]} instead of {info.size}. Run again."
            )
            raise ImageError(msg)
        return pixels

    @torch.inference_mode()
    def _features(
        self,
        pixels: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        batch: Sequence[ImageInfo],
        plan: ChunkPlan,
    ) -> Float[Tensor, "batch rows cols channels"]:
        device = self._backbone.device
        try:
            prepared = [
                prepare(
                    image, plan.network_size, interpolation=self._spec.interpolation, device=device
                )
                for image in pixels
            ]
            features = self._backbone.encode_image((torch.stack(prepared) - self._mean) / self._std)
        except torch.OutOfMemoryError as error:
            msg = (
                f"extract_features: {len(batch)} images of {plan.network_size} pixels must fit "
                f"into {device}, but its memory is full. Pass a smaller --batch-size, or --device "
                "cpu."
            )
            raise DeviceError(msg) from error
        self._check(features, batch, plan)
        return features.float()

    def _check(self, features: Tensor, batch: Sequence[ImageInfo], plan: ChunkPlan) -> None:
        expected = (len(batch), *plan.grid, self._backbone.channels)
        if tuple(features.shape) != expected:
            msg = (
                f"extract_features: the backbone {self._backbone.ref.adapter!r} must return "
                f"features of shape {expected}, got {tuple(features.shape)}. Its adapter has a "
                "bug: report it there."
            )
            raise CacheError(msg)
        finite = torch.isfinite(features).flatten(1).all(dim=1).tolist()
        for info, good in zip(batch, finite, strict=True):
            if not good:
                msg = (
                    "extract_features: features must be finite, but the backbone "
                    f"{self._backbone.ref.adapter!r} gave NaN or infinity for {info.item.name!r}. "
                    "Check the weights, or take its frame out of transforms.json."
                )
                raise ImageError(msg)

    def _stored(
        self, features: Float[Tensor, "batch rows cols channels"], dtype: StoredDtype
    ) -> Rows:
        if dtype == "float32":
            return features.cpu().numpy()
        rounded = features.half()
        if not torch.isfinite(rounded).all():
            raise HalfOverflowError
        lost = (rounded.float() - features).norm(dim=-1)
        relative = lost / features.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        self.codec_error = max(self.codec_error, float(relative.max()))
        return rounded.cpu().numpy()
