"""Image files to vectors in a head's feature space: the mean of their patch features."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.registry import load_backbone
from f3rm.errors import F3rmError, HeadSpec
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.store.geometry import Prep
from f3rm.store.images import read_image
from f3rm.store.spec import FeatureSpec

_SHORT_SIDE = 336


class ImageEncoder:
    """A backbone's image tower, loaded when first needed and kept out of every checkpoint.

    Args:
        spec: The head whose backbone looks at images, at the head's tap.
    """

    def __init__(self, spec: HeadSpec) -> None:
        self._spec = spec
        self._extractor: FeatureExtractor | None = None

    @torch.no_grad()
    def encode(self, path: Path, crop: tuple[int, int, int, int] | None) -> Float[Tensor, " chan"]:
        """Averages the patch features of an image or of a part of it.

        The short side is resized to 336 pixels, so that also CLIP takes seconds on a CPU.

        Args:
            path: The image file.
            crop: Left, top, right and bottom in pixels, or None for the whole image.

        Returns:
            The mean feature, on the CPU.

        Raises:
            ImageError: If the file is missing, damaged, or in an unusual mode.
            F3rmError: If the crop is empty.
            BackboneUnavailableError: If the image tower cannot be loaded.
        """
        pixels = read_image(path, FeatureSpec.background)
        if crop is not None:
            left, top, right, bottom = crop
            height, width = pixels.shape[:2]
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                msg = (
                    f"Crop must be inside the image of {width} x {height} pixels, got "
                    f"{crop}. Give left, top, right and bottom."
                )
                raise F3rmError(msg)
            pixels = pixels[top:bottom, left:right].copy()
        if self._extractor is None:
            backbone = load_backbone(self._spec.backbone, device="cpu", towers=("image",))
            # The identity ends with the tap; runs of older versions have none.
            tap = self._spec.identity.rpartition(" ")[2] or backbone.default_tap
            spec = FeatureSpec(self._spec.backbone, (tap,), Prep(size=_SHORT_SIDE))
            self._extractor = FeatureExtractor(spec, backbone=backbone)
        (features,) = self._extractor(pixels).values()  # (1, rows, cols, channels)
        return features.float().flatten(0, -2).mean(dim=0)


def image_below(folder: Path, typed: str) -> Path:
    """Resolves an image path typed in a browser; anybody who reaches the page may type here.

    Args:
        folder: Only files below it can be read, also through symbolic links.
        typed: A path, absolute or relative to the folder.

    Raises:
        F3rmError: If the path is empty or leads out of the folder; it does not say whether there is
            a file.
    """
    try:
        root = folder.expanduser().resolve()
        path = (root / Path(typed.strip()).expanduser()).resolve()
        is_below = root in path.parents
    except (OSError, RuntimeError, ValueError):  # a loop of links, no such home, a NUL
        is_below, path = False, folder
    if not is_below:
        msg = (
            f"Image file: {typed!r} is not below {str(folder)!r}. Copy it there, "
            "or name another folder with --pipeline.model.viewer-image-folder."
        )
        raise F3rmError(msg)
    return path


def parse_crop(text: str) -> tuple[int, int, int, int] | None:
    """Reads ``left, top, right, bottom`` in pixels; None where nothing is typed.

    Raises:
        F3rmError: If it is anything else.
    """
    words = text.replace(",", " ").split()
    if not words:
        return None
    try:
        left, top, right, bottom = (int(word) for word in words)
    except ValueError as error:
        msg = (
            f"Crop must be four whole numbers, got {text!r}. Type left, top, right "
            "and bottom in pixels, or nothing for the whole image."
        )
        raise F3rmError(msg) from error
    return left, top, right, bottom
