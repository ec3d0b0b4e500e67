"""Features as they go to disk: encoded, checked, and on their way from the GPU to the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from f3rm.store.codecs import Codec, CodedDtype
from f3rm.store.images import LEAVE_OUT, ImageFailedError, ImageInfo

_ERROR_CELLS = 32
"""Cells per image whose cosine error is measured."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of some images as they go to disk, perhaps still being copied from the GPU.

    Attributes:
        rows: (images, rows, cols, channels) in host memory, of the stored type.
        finite: (images,) whether the backbone gave numbers only.
        fits: () whether the stored type could hold them.
        error: () largest relative error of a cell that storing made.
        sample: (2, cells, channels) some features in fp32, and what they come back as.
        copied: Tells when the copies have arrived; None if they have.
    """

    rows: Tensor
    finite: Bool[Tensor, " images"]
    fits: Bool[Tensor, ""]
    error: Float[Tensor, ""]
    sample: Float[Tensor, "2 cells channels"]
    copied: torch.cuda.Event | None = None

    def wait(self) -> "StoredRows":
        """Returns itself when everything has arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        return self


def store_rows(
    features: Float[Tensor, "batch rows cols channels"], codec: Codec, dtype: CodedDtype
) -> StoredRows:
    """Encodes features and begins to copy the result to the host.

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
    if features.device.type != "cuda":
        return StoredRows(rows, finite, fits, error, sample)
    host = [_to_pinned(tensor) for tensor in (rows, finite, fits, error, sample)]
    # The copies run on the features' device, which need not be the current one.
    with torch.cuda.device(features.device):
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(features.device))
    return StoredRows(host[0], host[1], host[2], host[3], host[4], copied)


def check_finite(finite: Bool[Tensor, " images"], images: Sequence[ImageInfo]) -> None:
    """Checks that the backbone gave numbers only.

    Args:
        finite: Whether it did, per image.
        images: The images, to name one.

    Raises:
        ImageFailedError: If it gave NaN or infinity for an image.
    """
    for info, good in zip(images, finite.tolist(), strict=True):
        if not good:
            msg = (
                "extract_features: features must be finite, but the backbone gave NaN or infinity "
                f"for {info.item.name!r}. Check the weights, take its frame out of "
                f"transforms.json, or {LEAVE_OUT}"
            )
            raise ImageFailedError(msg, info.item.name, "the backbone gave NaN or infinity")


def _some_cells(
    features: Float[Tensor, "batch rows cols channels"],
) -> Float[Tensor, "cells channels"]:
    """Returns the same evenly spaced cells of every map."""
    cells = features.flatten(1, 2)  # (batch, rows * cols, channels)
    return cells[:, :: max(1, cells.shape[1] // _ERROR_CELLS)].reshape(-1, cells.shape[-1])


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
