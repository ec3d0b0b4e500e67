"""Features of images and videos, computed on demand; nothing is written to disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import load_backbone
from f3rm.backbones.taps import Tap
from f3rm.errors import TapError
from f3rm.extract.encoder import autocast, default_batch_size
from f3rm.extract.job import LoadBackbone
from f3rm.extract.plan import InputKind
from f3rm.extract.runner import TapRunner
from f3rm.extract.tables.items import ItemList
from f3rm.extract.tables.tables import Table
from f3rm.store.device import resolve_device
from f3rm.store.images import read_image
from f3rm.store.layout import Shape
from f3rm.store.spec import FeatureSpec, SpecError
from f3rm.store.video import inspect_video, is_video, read_frames

Pixels = UInt8[np.ndarray, "..."]
"""8-bit RGB: an image (height, width, 3) or a video (frames, height, width, 3)."""

Source = Path | str | Pixels


class TapValues(dict[str, Tensor]):
    """Values by tap; a tap is found however it is written: ``0:token`` is ``0``."""

    def __missing__(self, key: str) -> Tensor:
        """Returns the value of the tap that a text means."""
        name = str(Tap.parse(key))
        if name == key:
            raise KeyError(key)
        return self[name]

    def __contains__(self, key: object) -> bool:
        """Returns whether the tap was computed."""
        if super().__contains__(key) or not isinstance(key, str):
            return super().__contains__(key)
        try:
            return super().__contains__(str(Tap.parse(key)))
        except TapError:
            return False


class FeatureExtractor:
    """A loaded model that computes the taps of a specification.

    Attributes:
        spec: The specification.
        backbone: The model.
        runner: Prepares inputs and runs the model.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        device: str = "auto",
        load: LoadBackbone = load_backbone,
        backbone: Backbone | None = None,
    ) -> None:
        """Loads the model, unless a loaded one is given.

        Args:
            spec: The specification.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            load: Loads the model.
            backbone: A loaded model; ``device`` and ``load`` are ignored.

        Raises:
            BackboneUnavailableError: If the model cannot be loaded.
            TapError: If the model does not have a tap.
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
            batch_size: Items per network call; None chooses by size.

        Returns:
            Per tap one row per item, channels last, on the CPU; see :class:`TapValues`.

        Raises:
            SpecError: If items differ in shape, so that their values cannot be stacked.
            ImageError: If a file cannot be read.
        """
        several = [items] if isinstance(items, str | Path | np.ndarray) else list(items)
        found: list[dict[str, Tensor]] = []
        waiting: list[tuple[InputKind, Tensor]] = []
        for item in several:
            frames, available, is_image = self._decode(item)
            size = (frames.shape[1], frames.shape[2])
            kind = self.runner.kind(size, available, is_image=is_image)
            limit = batch_size or max(1, default_batch_size(kind.canvas) // kind.frames)
            # Only inputs of one kind can be stacked, so another kind ends the batch.
            if waiting and (waiting[0][0] != kind or len(waiting) >= limit):
                found.append(self._run(waiting))
                waiting = []
            waiting.append((kind, self.runner.prepare(frames, kind)))
        if waiting:
            found.append(self._run(waiting))
        parts = {tap: [part[tap] for part in found] for tap in self.spec.taps}
        return TapValues({tap: _stacked(tap, rows) for tap, rows in parts.items()})

    def shape(self, height: int, width: int, frames: int = 0) -> dict[str, Shape]:
        """Returns the shapes of one item's values by tap; computes nothing.

        Args:
            height: Of the image or video in pixels.
            width: Likewise.
            frames: Of the video; 0 for an image.

        Raises:
            TapError: If a tap does not fit the model.
        """
        kind = self.runner.kind((height, width), max(1, frames), is_image=frames == 0)
        return dict(self.runner.shapes(kind))

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name."""
        return self.backbone.layers()

    def _decode(self, item: Source) -> tuple[Tensor, int, bool]:
        """Returns the selected frames, the number there were, and whether the item is an image."""
        policy = self.spec.frames
        if isinstance(item, np.ndarray):
            if item.ndim not in (3, 4) or item.shape[-1] != 3:
                msg = (
                    "Pixels must be 8-bit RGB of the shape (height, width, 3) or (frames, height, "
                    f"width, 3), got {item.shape}."
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
    """Features of a list of items, computed when they are taken; has the interface of a store.

    Attributes:
        extractor: Computes them.
        items: The items.
        indices: All positions.
    """

    def __init__(self, extractor: FeatureExtractor, items: ItemList) -> None:
        """Computes nothing yet."""
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
        """Computes some items; see :meth:`f3rm.extract.tables.tables.TapStore.take`.

        Raises:
            SpecError: If there is no such tap, or items differ in shape.
            ImageError: If a file cannot be read.
        """
        name = str(Tap.parse(tap or self.taps[0]))
        if name not in self.taps or (tap is None and len(self.taps) > 1):
            raise SpecError(f"tap must be one of {', '.join(self.taps)}, got {tap!r}.")
        wanted = np.asarray(indices, dtype=np.int64)
        found = self.extractor([self.items.items[index].path for index in wanted.tolist()])
        return Table.of(found[name].numpy(), self.items, wanted)


def _stacked(tap: str, parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        msg = (
            f"Items have values of different shapes for {tap!r}: {sorted(shapes)}. Pass one item "
            "at a time, or choose resize='exact' or a pooling operation."
        )
        raise SpecError(msg)
    return torch.cat(parts)
