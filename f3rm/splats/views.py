"""Photographs of a splat: their cameras, their pixels, and whether the splat agrees with them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from f3rm.errors import F3rmError
from f3rm.splats.gaussians import Gaussians
from f3rm.splats.projection import PinholeCamera
from f3rm.splats.rasterizer import ImplementationChoice, Rasterizer
from f3rm.store.images import read_image

LEAST_GAIN = 3.0
"""A splat agrees with photographs from which it differs so many decibels less than their mean
colour does. In a wrong frame it differs more than that colour, in the right one 8 dB less or so."""
_LEAST_AREA, _LEAST_ERROR = 1e-3, 1e-9
LEAST_COVER = 0.02
"""Least share of the photographs that a splat in the right frame covers."""


class PhotographsDisagreeError(F3rmError):
    """A splat does not show what the dataset's photographs show."""


@dataclass(frozen=True)
class View:
    """A photograph, and a camera without distortion that sees what it sees.

    Attributes:
        name: Its ``file_path`` as in transforms.json.
        path: Its file.
        camera: The camera.
        pixels: Makes the map that has, for each pixel of the camera, the pixel (x, y) of the file
            that sees the same; (0, 0) is the centre of the file's first. A lens's distortion is in
            this map alone.
    """

    name: str
    path: Path
    camera: PinholeCamera
    pixels: Callable[[], Float[Tensor, "height width 2"]]

    def photograph(self) -> Float[Tensor, "height width 3"]:
        """Reads the photograph as the camera sees it: RGB in [0, 1], alpha over black.

        Raises:
            ImageError: If the file cannot be read.
        """
        image = read_image(self.path, (0.0, 0.0, 0.0))
        size = torch.tensor(image.shape[1::-1])
        shrunk = tuple(min(pair) for pair in zip(self.camera.size, image.shape[:2], strict=True))
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
        at = (self.pixels() + 0.5) * (torch.tensor(shrunk[::-1]) / size) - 0.5
        return sample_map(torch.from_numpy(image).float() / 255, at)


def sample_map(
    values: Float[Tensor, "rows cols channels"], at: Float[Tensor, "height width 2"]
) -> Float[Tensor, "height width channels"]:
    """Interpolates a map bilinearly between the centres of its cells; beyond them it is constant.

    Args:
        values: The map.
        at: Positions (column, row) in it; (0, 0) is the centre of the first cell.
    """
    ends = torch.tensor(values.shape[1::-1]) - 1
    grid = 2 * at / ends.clamp_min(1) - 1  # the first and the last centre at -1 and 1
    channels_first = values.permute(2, 0, 1)[None]
    sampled = functional.grid_sample(
        channels_first, grid[None].to(values), padding_mode="border", align_corners=True
    )
    return sampled[0].permute(1, 2, 0)


@dataclass(frozen=True)
class Agreement:
    """How well a splat shows what photographs show.

    Attributes:
        psnr: PSNR of its pictures in dB where it covers them, the mean over photographs.
        gain: How far that is above the PSNR of a photograph's mean colour there.
        cover: Mean accumulation of its pictures, in [0, 1].
    """

    psnr: float
    gain: float
    cover: float

    @property
    def is_good(self) -> bool:
        """Whether both show the same scene."""
        return self.gain >= LEAST_GAIN and self.cover >= LEAST_COVER


def compare(
    gaussians: Gaussians,
    views: Sequence[View],
    *,
    implementation: ImplementationChoice = "auto",
) -> Agreement:
    """Compares pictures of a splat, drawn over the photographs, with these: where it is, that is.

    Args:
        gaussians: The Gaussians.
        views: The photographs; a few that look in different directions are enough.
        implementation: What draws the splat.

    Raises:
        ImageError: If a photograph cannot be read.
    """
    found: list[tuple[float, float, float]] = []
    for view in views:
        drawing = Rasterizer(gaussians, view.camera, implementation=implementation)
        shown = drawing.composite(gaussians.colours(view.camera.eye)).cpu()
        cover = drawing.accumulation.cpu()[..., None]
        photograph = view.photograph()
        area = cover.sum().clamp_min(_LEAST_AREA)
        mean = (cover * photograph).sum(dim=(0, 1)) / area
        errors = (shown - cover * photograph, cover * (mean - photograph))
        psnr, plain = (
            -10 * math.log10(max(float(each.square().sum() / (3 * area)), _LEAST_ERROR))
            for each in errors
        )
        found.append((psnr, psnr - plain, float(cover.mean())))
    psnr, gain, cover = np.mean(found, axis=0).tolist()
    return Agreement(psnr, gain, cover)
