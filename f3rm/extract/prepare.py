"""Decoded pixels to network inputs: framed, resized, cut, normalised and padded.

Resizing is :func:`torch.nn.functional.interpolate` with antialiasing (bicubic by default), clamped
to [0, 1] and then normalised with the backbone's mean and standard deviation.
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad

from f3rm.store.geometry import Interpolation, Placement, Prep, Size

Rgb = tuple[float, float, float]


def prepare(
    pixels: UInt8[np.ndarray, "height width 3"] | UInt8[Tensor, "height width 3"],
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
    return _resized(_colours(pixels, device), size, interpolation)


def network_input(
    pixels: UInt8[Tensor, "height width 3"],
    placement: Placement,
    prep: Prep,
    *,
    mean: Rgb,
    std: Rgb,
    device: torch.device,
) -> Float[Tensor, "3 net_height net_width"]:
    """Frames, resizes, cuts, normalises and pads one image.

    Args:
        pixels: Decoded RGB.
        placement: The result of :meth:`~f3rm.store.geometry.Prep.place` for the image's size.
        prep: The preparation.
        mean: RGB mean of the network's input, for values in [0, 1].
        std: RGB standard deviation, likewise.
        device: Where the input is computed.
    """
    image = _colours(pixels, device)
    if placement.framed != tuple(pixels.shape[:2]):
        image = _squared(image, placement, mean)
    if placement.resized != placement.framed:
        # Resizing to the same size would not change a pixel, but take most of the time.
        image = _resized(image, placement.resized, prep.interpolation)
    (top, left), (height, width) = placement.cut, placement.kept
    image = image[:, top : top + height, left : left + width]
    borders = (0, placement.canvas[1] - width, 0, placement.canvas[0] - height)
    if prep.pad_value == "black":  # before normalisation, unlike the other two
        image = pad(image, borders)
    centre, spread = _on_device((mean, std), device)  # (3, 1, 1) each
    normal = (image - centre) / spread
    if prep.pad_value == "black" or not any(borders):
        return normal
    return pad(normal, borders, mode="replicate" if prep.pad_value == "edge" else "constant")


@cache
def _on_device(colours: tuple[Rgb, ...], device: torch.device) -> Float[Tensor, "colours 3 1 1"]:
    """Returns colours on a device; made once, as the calling thread waits for a GPU to take them.

    It would wait for the batches before too, and launch no kernels meanwhile.
    """
    return torch.tensor(colours, device=device)[..., None, None]


def _colours(
    pixels: UInt8[np.ndarray, "height width 3"] | UInt8[Tensor, "height width 3"],
    device: torch.device,
) -> Float[Tensor, "3 height width"]:
    image = torch.as_tensor(pixels).to(device, non_blocking=True)  # (H, W, 3)
    return image.permute(2, 0, 1).float() / 255


def _resized(
    image: Float[Tensor, "3 _ _"], size: Size, interpolation: Interpolation
) -> Float[Tensor, "3 height width"]:
    resized = interpolate(
        image[None], size=size, mode=interpolation, antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)


def _squared(
    image: Float[Tensor, "3 height width"], placement: Placement, mean: Rgb
) -> Float[Tensor, "3 side side"]:
    """Puts an image into its square of LLaVA's border: the mean colour, rounded down to 8 bits."""
    height, width = image.shape[-2:]
    top, left = placement.border
    red, green, blue = (int(255 * value) / 255 for value in mean)
    (colour,) = _on_device(((red, green, blue),), image.device)
    square = colour.repeat(1, *placement.framed)
    square[:, top : top + height, left : left + width] = image
    return square
