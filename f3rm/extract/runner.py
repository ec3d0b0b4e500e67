"""The taps of a specification in one pass of the model, for live computing and extraction alike.

Where a tap averages cells, cells of padding must not count. The backbone then reads the tap up to
that operation, and :class:`TapRunner` does the rest on the cells that show the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import find_layer
from f3rm.backbones.tap_values import apply_ops
from f3rm.backbones.taps import Tap, parse_taps
from f3rm.backbones.video.backbone import VideoBackbone
from f3rm.errors import TapError
from f3rm.extract.plan import InputKind
from f3rm.extract.prepare import network_input
from f3rm.extract.windows import check_windows, read_parts
from f3rm.store.geometry import Placement, Size
from f3rm.store.layout import Shape, Shapes
from f3rm.store.spec import FeatureSpec, SpecError
from f3rm.store.video import fit_length

_REDUCTIONS = ("mean", "amax")
"""Operations over all cells, which can leave the padding out."""

_MIXING = ("avg", "max", "adaptive_avg", "adaptive_max", "flatten")
"""Operations after which cells of padding can no longer be distinguished."""

_RESHAPING = {"avg", "max", "adaptive_avg", "adaptive_max", "heads"}
"""Operations after which a map no longer has one vector per cell."""

_CELLS = 4
"""Cells per side of the trial input that shows in a message what a tap gives."""


class TapRunner:
    """Computes the taps of a specification with a loaded model.

    Attributes:
        backbone: The model.
        spec: The specification.
        taps: The parsed taps by name.
        cell: Pixels of the network input per cell of the maps; the input is a multiple of it.
        gives_maps: Whether every tap gives one vector per cell.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec) -> None:
        """Checks that the model has the taps and that windows fit them.

        Raises:
            TapError: If the model does not have a tap, or windows or scales are asked for and a tap
                gives no map.
            SpecError: If a tap would average the border of a square.
            PrepError: If windows are not whole cells.
        """
        self.backbone = backbone
        self.spec = spec
        self.taps: Mapping[str, Tap] = dict(zip(spec.taps, parse_taps(spec.taps), strict=True))
        self._video = backbone if isinstance(backbone, VideoBackbone) else None
        # An adapter need not describe its default tap as a layer: encode_image computes it.
        self._default = spec.taps == (str(Tap.parse(backbone.default_tap)),) and not self._video
        if not self._default:
            backbone.check(tuple(self.taps.values()))
        cells = {self._stride(tap) for tap in self.taps.values()}
        self.gives_maps = len(cells) == 1 and all(map(self._is_map, self.taps.values()))
        self.cell = cells.pop() if self.gives_maps else backbone.patch_size
        if not spec.prep.reads_whole:
            self.check_maps()
            check_windows(spec.prep, self.cell)
        names = {op.name for tap in self.taps.values() for op in tap.ops}
        if spec.prep.fit == "square" and names & {*_REDUCTIONS, *_MIXING}:
            raise SpecError(
                "fit='square' would mix the border of the square with the image where a tap pools, "
                f"got {', '.join(self.taps)}. Choose another fit."
            )

    @property
    def has_text(self) -> bool:
        """Whether text embeddings are in the same space as the features."""
        (first, *others) = self.taps.values()
        # Only rules for the last block map patches into the space of text embeddings.
        ruled = self._default or [op.name for op in first.ops[:1]] == ["dense"]
        return self.backbone.has_text and not others and ruled

    def check_maps(self) -> None:
        """Checks that every tap gives one vector per cell.

        Raises:
            TapError: If one does not.
        """
        for name, tap in self.taps.items():
            if not self._is_map(tap):
                shape = self._trial_shape(tap)
                raise TapError(
                    f"tap must give one feature per cell of the image, but {name!r} gives {shape} "
                    f"for {_CELLS} x {_CELLS} cells. Take @patch and no pooling."
                )
        if not self.gives_maps:
            raise TapError(
                f"Taps must give maps of one size, got {', '.join(self.taps)}. Read them apart."
            )

    def place(self, size: Size) -> Placement:
        """Returns the position of an image of this (height, width) in the network input."""
        return self.spec.prep.place(size, self.cell)

    def kind(self, size: Size, available: int = 1, *, is_image: bool = True) -> InputKind:
        """Returns the kind of a file's network input.

        Args:
            size: Height and width of the image or video in pixels.
            available: Number of its frames.
            is_image: Whether it is an image, not a video.
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
            kind: The result of :meth:`kind` for the file.
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
        """Computes every tap, pooled on the device and without the cells of padding.

        Args:
            inputs: Items of one kind.
            kind: Their kind.

        Returns:
            Values by tap, channels last.
        """
        cuts = {name: self._padding_cut(tap, kind) for name, tap in self.taps.items()}
        reads = {name: replace(tap, ops=tap.ops[: cuts[name]]) for name, tap in self.taps.items()}
        if self._video is not None:
            clips = inputs.transpose(1, 2)  # (batch, 3, frames, height, width)
            found = self._video.run_video(clips, tuple(reads.values()))
        else:
            found = self._read(inputs.flatten(0, 1), tuple(reads.values()))
        values: dict[str, Tensor] = {}
        for name, read in reads.items():
            value = found[read]
            if cuts[name] is not None:
                ops = self.taps[name].ops[cuts[name] :]
                value = apply_ops(self._shown(read, value, kind), ops, "tokens")
            if self._video is None:
                value = value.unflatten(0, inputs.shape[:2])  # (batch, frames, ...)
            values[name] = self._over_time(self.taps[name], value, kind)
        return values

    def shapes(self, kind: InputKind) -> Shapes:
        """Returns the shapes of one item's values by tap, as :meth:`run` gives them.

        Raises:
            TapError: If a tap does not fit the model.
            ValueError: If the canvas is not a whole number of patches.
        """
        shapes: dict[str, Shape] = {}
        for name, tap in self.taps.items():
            if self._video is not None:
                shape = self._video.video_shape(tap, kind.frames, *kind.canvas)
                timed = tap.form("map") == "map"
            else:
                shape = (kind.frames, *self._shape(tap, kind.canvas))
                timed = kind.is_clip
            dropped = self.spec.frames.pool != "none" if timed else self._video is None
            shapes[name] = shape[1:] if dropped else shape
        return shapes

    def _read(self, images: Tensor, taps: Sequence[Tap]) -> Mapping[Tap, Tensor]:
        def whole(part: Tensor) -> Mapping[Tap, Tensor]:
            if self._default and tuple(taps) == tuple(self.taps.values()):
                return {taps[0]: self.backbone.encode_image(part)}
            return self.backbone.run(part, taps)

        if self.spec.prep.reads_whole:
            return whole(images)
        return read_parts(whole, images, self.spec.prep, self.cell)

    def _shape(self, tap: Tap, canvas: Size) -> Shape:
        if self._default:
            return *self.backbone.grid_of(canvas), self.backbone.channels
        return self.backbone.shape(tap, *canvas)

    def _stride(self, tap: Tap) -> int:
        """Returns the pixels per cell of a tap's layer; 0 for a layer without cells."""
        if self._default:
            return self.backbone.patch_size
        return find_layer(self.backbone.layers(), tap).stride

    def _is_map(self, tap: Tap) -> bool:
        if self._default:
            return True
        if self._video is not None or {op.name for op in tap.ops} & _RESHAPING:
            return False
        layer = find_layer(self.backbone.layers(), tap)
        return layer.stride > 0 and tap.form(layer.kind) == "map"

    def _trial_shape(self, tap: Tap) -> Shape:
        side = _CELLS * max(1, self._stride(tap))
        if self._video is not None:
            return self._video.video_shape(tap, 1, side, side)
        return self._shape(tap, (side, side))

    def _over_time(self, tap: Tap, value: Tensor, kind: InputKind) -> Tensor:
        """Pools over time, or drops the time axis of images."""
        if self._video is not None and tap.form("map") != "map":
            return value  # the video backbone has pooled over time already
        if not kind.is_clip:
            return value[:, 0]
        pool = self.spec.frames.pool
        if pool == "none":
            return value
        return value.mean(1) if pool == "mean" else value.amax(1)

    def _padding_cut(self, tap: Tap, kind: InputKind) -> int | None:
        """Returns the index of the operation that would average padding; None if none would."""
        names = [op.name for op in tap.ops]
        cut = next((index for index, name in enumerate(names) if name in _REDUCTIONS), None)
        if cut is None or kind.kept == kind.canvas:
            return None
        if set(names[:cut]) & set(_MIXING):
            msg = (
                f"The tap {str(tap)!r} would mix padding with the image: it pools windows of an "
                f"input padded from {kind.kept} to {kind.canvas}. Pool all cells at once, or "
                "choose another fit than pad."
            )
            raise SpecError(msg)
        layer = find_layer(self.backbone.layers(), tap)
        return cut if tap.read_form(layer.kind) in ("map", "tokens") else None

    def _shown(
        self, tap: Tap, values: Shaped[Tensor, "batch ..."], kind: InputKind
    ) -> Shaped[Tensor, "batch shown channels"]:
        """Returns the tokens, or the cells of a map, that are not padding."""
        layer = find_layer(self.backbone.layers(), tap)
        cells = values.flatten(1, values.ndim - 2)  # (batch, cells, channels)
        if tap.read_form(layer.kind) == "tokens":
            grid = self.backbone.grid_of(kind.canvas)
            # Class token and registers come first and always count.
            num_others = cells.shape[1] if tap.select == "reg" else layer.prefix_tokens
        else:
            grid, num_others = (values.shape[-3], values.shape[-2]), 0
        mask = torch.ones(cells.shape[1], dtype=torch.bool)
        inside = shown_cells(grid, kind)
        if num_others < len(mask):  # once per step of a video
            mask[num_others:] = inside.repeat((len(mask) - num_others) // len(inside))
        return cells[:, mask.to(cells.device)]


def shown_cells(grid: Size, kind: InputKind) -> Bool[Tensor, " cells"]:
    """Returns which cells of a map have their centre in the part that shows the image.

    Args:
        grid: Rows and columns of the map, which covers the whole network input.
        kind: The kind of that input.
    """
    # The centre (cell + 0.5) * whole / cells is compared without the division, which may round.
    inside = [
        (torch.arange(cells) + 0.5) * whole < shown * cells
        for cells, whole, shown in zip(grid, kind.canvas, kind.kept, strict=True)
    ]
    return (inside[0][:, None] & inside[1]).flatten()
