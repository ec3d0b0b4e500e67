"""One model, one preparation, several taps: what live computing and extraction to disk share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import find_layer
from f3rm.backbones.tap_values import apply_ops
from f3rm.backbones.taps import Tap, parse_taps
from f3rm.backbones.video.backbone import VideoBackbone
from f3rm.extract.taps.layout import Shape, Shapes
from f3rm.extract.taps.prep import Placement, network_input
from f3rm.extract.taps.spec import ExtractionSpec, SpecError
from f3rm.extract.taps.video import fit_length
from f3rm.store.geometry import Size

_REDUCTIONS = ("mean", "amax")
_MIXING = ("avg", "max", "adaptive_avg", "adaptive_max", "flatten")


@dataclass(frozen=True)
class InputKind:
    """What inputs must have in common to go through a network together.

    Attributes:
        canvas: Height and width of the network input.
        kept: The part of it that shows the image.
        frames: How many frames.
        is_clip: Whether there is an axis of time, even of one frame.
    """

    canvas: Size
    kept: Size
    frames: int = 1
    is_clip: bool = False


class TapRunner:
    """Computes the taps of a specification with a loaded model.

    Attributes:
        backbone: The model.
        spec: What is computed.
        taps: The taps, parsed, by name.
    """

    def __init__(self, backbone: Backbone, spec: ExtractionSpec) -> None:
        """Checks that the model has the taps.

        Raises:
            TapError: If it has not.
        """
        self.backbone = backbone
        self.spec = spec
        self.taps: Mapping[str, Tap] = dict(zip(spec.taps, parse_taps(spec.taps), strict=True))
        backbone.check(tuple(self.taps.values()))
        self._video = backbone if isinstance(backbone, VideoBackbone) else None

    def place(self, size: Size) -> Placement:
        """Returns where an image of a (height, width) lies in the network input."""
        return self.spec.prep.place(size, self.backbone.patch_size)

    def kind(self, size: Size, available: int = 1, *, is_image: bool = True) -> InputKind:
        """Returns what a file becomes.

        Args:
            size: Its height and width in pixels.
            available: Its frames.
            is_image: Whether it is an image and no video.
        """
        place, policy = self.place(size), self.spec.frames
        stride = self._video.temporal_stride if self._video else 1
        frames = policy.length(available, is_image=is_image, stride=stride)
        is_clip = self._video is not None or not is_image or policy.image == "clip"
        return InputKind(place.canvas, place.kept, frames, is_clip)

    def prepare(
        self, frames: UInt8[Tensor, "frames height width 3"], kind: InputKind
    ) -> Float[Tensor, "length 3 net_height net_width"]:
        """Makes the network input of one item, on the device of the frames or of the model.

        Args:
            frames: Decoded RGB.
            kind: What :meth:`kind` gave for the file.
        """
        place = self.place((frames.shape[1], frames.shape[2]))
        images = [
            network_input(
                frame,
                place,
                self.spec.prep,
                mean=self.backbone.mean,
                std=self.backbone.std,
                device=self.backbone.device,
            )
            for frame in fit_length(frames, kind.frames, self.spec.frames.pad)
        ]
        return torch.stack(images)

    @torch.inference_mode()
    def run(
        self, inputs: Float[Tensor, "batch frames 3 height width"], kind: InputKind
    ) -> dict[str, Shaped[Tensor, "batch ..."]]:
        """Computes every tap, pooled on the device; padding does not count where cells are pooled.

        Args:
            inputs: Items of one kind.
            kind: What they have in common.

        Returns:
            Values by tap, channels last.
        """
        reads = {name: self._read_tap(tap, kind) for name, tap in self.taps.items()}
        if self._video is not None:
            clips = inputs.transpose(1, 2)  # (batch, 3, frames, height, width)
            found = self._video.run_video(clips, tuple(reads.values()))
        else:
            found = self.backbone.run(inputs.flatten(0, 1), tuple(reads.values()))
        values: dict[str, Tensor] = {}
        for name, tap in reads.items():
            value = self._masked(name, found[tap], kind)
            if self._video is None:
                value = value.unflatten(0, inputs.shape[:2])  # (batch, frames, ...)
            values[name] = self._over_time(name, value, kind)
        return values

    def shapes(self, canvas: Size, frames: int = 1, *, is_clip: bool = False) -> Shapes:
        """Returns what :meth:`run` gives per item, without computing.

        Args:
            canvas: Height and width of the network input.
            frames: How many frames.
            is_clip: Whether there is an axis of time.

        Raises:
            TapError: If a tap does not fit the model.
            ValueError: If a size does not.
        """
        shapes: dict[str, Shape] = {}
        for name, tap in self.taps.items():
            if self._video is not None:
                shape = self._video.video_shape(tap, frames, *canvas)
                timed = tap.form("map") == "map"
            else:
                shape = (frames, *self.backbone.shape(tap, *canvas))
                timed = is_clip
            dropped = self.spec.frames.pool != "none" if timed else self._video is None
            shapes[name] = shape[1:] if dropped else shape
        return shapes

    def _over_time(self, name: str, value: Tensor, kind: InputKind) -> Tensor:
        """Pools over time, or drops the axis of what has no time."""
        if self._video is not None and self.taps[name].form("map") != "map":
            return value
        if not kind.is_clip:
            return value[:, 0]
        pool = self.spec.frames.pool
        if pool == "none":
            return value
        return value.mean(1) if pool == "mean" else value.amax(1)

    def _read_tap(self, tap: Tap, kind: InputKind) -> Tap:
        """Returns the tap without what must know of padding."""
        cut = self._masked_from(tap, kind)
        return tap if cut is None else replace(tap, ops=tap.ops[:cut])

    def _masked_from(self, tap: Tap, kind: InputKind) -> int | None:
        """Returns which operation would average padding with the image; None if none would."""
        names = [op.name for op in tap.ops]
        cut = next((index for index, name in enumerate(names) if name in _REDUCTIONS), None)
        if cut is None or kind.kept == kind.canvas:
            return None
        if set(names[:cut]) & set(_MIXING):
            msg = (
                f"TapRunner: pooling must not mix padding with the image, but {str(tap)!r} pools "
                f"windows of an input padded from {kind.kept} to {kind.canvas}. Pool all cells at "
                "once, or choose another fit than pad."
            )
            raise SpecError(msg)
        layer = find_layer(self.backbone.layers(), tap)
        return cut if tap.read_form(layer.kind) in ("map", "tokens") else None

    def _masked(self, name: str, values: Tensor, kind: InputKind) -> Tensor:
        """Does what is left of a tap on the cells that show the image."""
        tap = self.taps[name]
        cut = self._masked_from(tap, kind)
        if cut is None:
            return values
        layer = find_layer(self.backbone.layers(), tap)
        cells = values.flatten(1, values.ndim - 2)  # (batch, cells, channels)
        if tap.read_form(layer.kind) == "tokens":
            grid = self.backbone.grid_of(kind.canvas)
            num_others = cells.shape[1] if tap.select == "reg" else layer.prefix_tokens
        else:
            grid, num_others = (values.shape[-3], values.shape[-2]), 0
        mask = torch.ones(cells.shape[1], dtype=torch.bool)
        inside = shown_cells(grid, kind)
        if num_others < len(mask):
            mask[num_others:] = inside.repeat((len(mask) - num_others) // len(inside))
        return apply_ops(cells[:, mask.to(cells.device)], tap.ops[cut:], "tokens")


def shown_cells(grid: Size, kind: InputKind) -> Bool[Tensor, " cells"]:
    """Returns which cells of a map have their centre in the part that shows the image.

    Args:
        grid: Rows and columns of the map, which covers the whole network input.
        kind: What that shows.
    """
    inside = [
        (torch.arange(cells) + 0.5) * whole < shown * cells
        for cells, whole, shown in zip(grid, kind.canvas, kind.kept, strict=True)
    ]
    return (inside[0][:, None] & inside[1]).flatten()
