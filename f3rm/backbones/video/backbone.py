"""The contract of video models: clips of several frames in, features with a time axis out.

An image is a clip of one frame.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import LayerInfo, find_layer
from f3rm.backbones.tap_values import apply_ops, result_of_ops
from f3rm.backbones.taps import Tap, parse_taps


class VideoBackbone(Backbone):
    """A frozen video model with one layer, ``latent``.

    Attributes:
        temporal_stride: Frames per time step; a clip has 1 + a multiple of them.
    """

    default_tap = "latent"
    has_text = False
    temporal_stride: int

    @abstractmethod
    def encode_video(
        self, clips: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch channels steps rows cols"]:
        """Computes latents, ``steps = 1 + (frames - 1) / temporal_stride``.

        Args:
            clips: Normalised RGB on :attr:`device`.

        Raises:
            ValueError: If a size does not fit the model.
        """

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes the latents of images, as clips of one frame."""
        return self.encode_video(images[:, :, None])[:, :, 0].permute(0, 2, 3, 1)

    def layers(self) -> list[LayerInfo]:
        """Describes the only layer."""
        return [LayerInfo("latent", "map", self.channels, self.patch_size)]

    @torch.no_grad()
    def run_video(
        self, clips: Float[Tensor, "batch 3 frames height width"], taps: Sequence[Tap | str]
    ) -> dict[Tap, Tensor]:
        """Computes taps of clips in one pass.

        Operations treat time steps as further rows: ``mean`` and ``amax`` reduce time and space,
        and ``flatten`` gives channels, then steps, rows and columns.

        Args:
            clips: As for :meth:`encode_video`.
            taps: Which taps.

        Returns:
            Per tap (batch, steps, rows, cols, channels), or (batch, channels) after an operation
            that gives vectors.

        Raises:
            TapError: If a tap does not fit the model, or pools windows, which mix steps.
            ValueError: If a size does not.
        """
        wanted = tuple(dict.fromkeys(parse_taps(taps)))
        self.check(wanted)
        latents = self.encode_video(clips).permute(0, 2, 3, 4, 1)  # (B, steps, rows, cols, C)
        steps, rows = latents.shape[1:3]
        values = {tap: apply_ops(latents.flatten(1, 2), tap.ops, "map") for tap in wanted}
        return {
            tap: value.unflatten(1, (steps, rows)) if tap.form("map") == "map" else value
            for tap, value in values.items()
        }

    def video_shape(self, tap: Tap | str, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of a tap of one clip, without computing.

        Args:
            tap: The tap.
            frames: Frames of the clip.
            height: Of the network input in pixels.
            width: Likewise.

        Raises:
            TapError: If the tap does not fit the model.
            ValueError: If a size does not.
        """
        (wanted,) = parse_taps([tap])
        self.check([wanted])
        layer = find_layer(self.layers(), wanted)
        rows, cols = self.grid_of((height, width))
        steps = self.steps_of(frames)
        folded = (1, steps * rows, cols, layer.channels)
        shape = result_of_ops(folded, wanted.ops, "map", widths={}, num_heads=1)[1:]
        return (steps, rows, *shape[1:]) if wanted.form("map") == "map" else shape

    def steps_of(self, frames: int) -> int:
        """Returns the time steps of a clip's features.

        Raises:
            ValueError: If the number of frames is not 1 + a multiple of the stride.
        """
        if frames < 1 or (frames - 1) % self.temporal_stride:
            below = 1 + max(0, frames - 1) // self.temporal_stride * self.temporal_stride
            msg = (
                f"A clip must have 1 + a multiple of {self.temporal_stride} frames, got {frames}. "
                f"Take {below} or {below + self.temporal_stride}."
            )
            raise ValueError(msg)
        return 1 + (frames - 1) // self.temporal_stride
