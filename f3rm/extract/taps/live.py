"""Features of images and videos at hand, computed when asked for; nothing goes to disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import load_backbone
from f3rm.extract.encoder import autocast, default_batch_size
from f3rm.extract.job import LoadBackbone
from f3rm.extract.taps.layout import Shape
from f3rm.extract.taps.lists import ItemList
from f3rm.extract.taps.runner import InputKind, TapRunner
from f3rm.extract.taps.spec import ExtractionSpec, SpecError
from f3rm.extract.taps.store import Table
from f3rm.extract.taps.video import inspect_video, is_video, read_frames
from f3rm.store.device import resolve_device
from f3rm.store.images import read_image

Pixels = UInt8[np.ndarray, "..."]
"""8-bit RGB: an image (height, width, 3) or a video (frames, height, width, 3)."""

Source = Path | str | Pixels


class FeatureExtractor:
    """A loaded model that computes the taps of a specification.

    Attributes:
        spec: What is computed.
        backbone: The model.
        runner: Prepares inputs and runs the model.
    """

    def __init__(
        self,
        spec: ExtractionSpec,
        *,
        device: str = "auto",
        load: LoadBackbone = load_backbone,
        backbone: Backbone | None = None,
    ) -> None:
        """Loads the model, unless it is at hand.

        Args:
            spec: What to compute.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            load: Loads the model.
            backbone: A loaded model; then ``device`` does not matter.

        Raises:
            F3rmError: If the model or a tap cannot be had.
        """
        self.spec = spec
        if backbone is None:
            backbone = load(spec.backbone, device=resolve_device(device), towers=("image",))
        self.backbone: Backbone = backbone
        self.runner = TapRunner(self.backbone, spec)

    def __call__(
        self, items: Source | Sequence[Source], *, batch_size: int | None = None
    ) -> dict[str, Shaped[Tensor, "items ..."]]:
        """Computes every tap of some images or videos.

        Args:
            items: Files, or decoded pixels; one or several.
            batch_size: How many go through the network at once; None chooses by size.

        Returns:
            Per tap one row per item, channels last, on the CPU.

        Raises:
            SpecError: If values of items differ in shape, so that they cannot be stacked.
            ImageError: If a file cannot be read.
        """
        several = [items] if isinstance(items, str | Path | np.ndarray) else list(items)
        found: list[dict[str, Tensor]] = []
        waiting: list[tuple[InputKind, Tensor]] = []
        for item in several:
            kind, ready = self._read(item)
            limit = batch_size or max(1, default_batch_size(kind.canvas) // kind.frames)
            if waiting and (waiting[0][0] != kind or len(waiting) >= limit):
                found.append(self._run(waiting))
                waiting = []
            waiting.append((kind, ready))
        if waiting:
            found.append(self._run(waiting))
        return {tap: _stacked(tap, [part[tap] for part in found]) for tap in self.spec.taps}

    def shape(self, height: int, width: int, frames: int = 0) -> dict[str, Shape]:
        """Returns the shapes for one item, without computing and without an image.

        Args:
            height: Of the image or video in pixels.
            width: Likewise.
            frames: Of the video; 0 for an image.

        Raises:
            TapError: If a tap does not fit the model.
        """
        kind = self.runner.kind((height, width), max(1, frames), is_image=frames == 0)
        return dict(self.runner.shapes(kind.canvas, kind.frames, is_clip=kind.is_clip))

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name."""
        return self.backbone.layers()

    def _read(self, item: Source) -> tuple[InputKind, Tensor]:
        """Returns what an item is, and its network input."""
        frames, available, is_image = self._decode(item)
        kind = self.runner.kind((frames.shape[1], frames.shape[2]), available, is_image=is_image)
        return kind, self.runner.prepare(frames, kind)

    def _decode(self, item: Source) -> tuple[Tensor, int, bool]:
        """Returns chosen frames, how many there were, and whether the item is an image."""
        policy = self.spec.frames
        if isinstance(item, np.ndarray):
            if item.ndim not in (3, 4) or item.shape[-1] != 3:
                msg = (
                    "FeatureExtractor: pixels must be (height, width, 3) or (frames, height, "
                    f"width, 3), got {item.shape}. Convert them to 8-bit RGB."
                )
                raise SpecError(msg)
            clip = torch.from_numpy(np.ascontiguousarray(item))
            if item.ndim == 3:
                return clip[None], 1, True
            return clip[policy.choose(len(clip))], len(clip), False
        path = Path(item).expanduser()
        if is_video(path):
            available = inspect_video(path).num_frames
            return read_frames(path, policy, num_frames=available), available, False
        return torch.from_numpy(read_image(path, self.spec.background))[None], 1, True

    def _run(self, batch: Sequence[tuple[InputKind, Tensor]]) -> dict[str, Tensor]:
        inputs = torch.stack([ready for _, ready in batch])
        with autocast(self.backbone.device, self.spec.precision):
            values = self.runner.run(inputs, batch[0][0])
        return {tap: value.float().cpu() for tap, value in values.items()}


class LiveSource:
    """Features of a list of items, computed when they are taken; reads like a store.

    Attributes:
        extractor: Computes them.
        items: The items.
        indices: All positions.
    """

    def __init__(self, extractor: FeatureExtractor, items: ItemList) -> None:
        """Keeps what is needed; computes nothing."""
        self.extractor = extractor
        self.items = items
        self.indices = np.arange(len(items))

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.items)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return self.extractor.spec.taps

    def take(
        self, indices: Sequence[int] | Int[np.ndarray, " wanted"], tap: str | None = None
    ) -> Table:
        """Computes some items; see :meth:`f3rm.extract.taps.store.TapStore.take`.

        Raises:
            SpecError: If there is no such tap, or items differ in shape.
            ImageError: If a file cannot be read.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        chosen = [self.items.items[index] for index in wanted.tolist()]
        found: Mapping[str, Tensor] = self.extractor([item.path for item in chosen])
        name = tap or self.taps[0]
        if name not in found or (tap is None and len(found) > 1):
            known = ", ".join(found)
            msg = f"LiveSource.take: tap must be one of {known}, got {tap!r}. Name one of them."
            raise SpecError(msg)
        targets = self.items.targets
        return Table(
            found[name].numpy(),
            None if targets is None else np.array(targets, dtype=np.int64)[wanted],
            wanted,
            tuple(item.name for item in chosen),
        )


def _stacked(tap: str, parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        msg = (
            f"FeatureExtractor: values must have one shape to be stacked, got {sorted(shapes)} for "
            f"{tap!r}. Pass one item at a time, or choose resize='exact' or a pooling operation."
        )
        raise SpecError(msg)
    return torch.cat(parts)
