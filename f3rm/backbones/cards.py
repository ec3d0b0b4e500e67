"""Licences and sizes of the models of f3rm's own feature types.

Parameters are those of the towers that f3rm reads, in millions; a parameter in memory is 4 bytes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What somebody who may or may not use a model asks first.

    Attributes:
        licence: Of the weights, as their authors name it.
        parameters: In millions.
    """

    licence: str
    parameters: int

    def __str__(self) -> str:
        return f"{self.parameters} M parameters, licence of the weights: {self.licence}"


CARDS: Mapping[str, Card] = {
    "ViT-L-14-336-quickgelu": Card("MIT", 428),
    "facebook/dino-vits8": Card("Apache-2.0", 22),
    "facebook/dinov2-large": Card("Apache-2.0", 304),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": Card("DINOv3 License", 303),
    "google/tipsv2-l14": Card("CC-BY-4.0", 488),
    "google/siglip2-large-patch16-512": Card("Apache-2.0", 882),
    "PE-Core-L-14-336": Card("Apache-2.0", 671),
    "nvidia/C-RADIOv4-H": Card("NVIDIA Open Model License", 652),
    "ViT-B-16-quickgelu,facebook/dino-vitb8": Card("MIT and Apache-2.0", 235),
    "wentao-yuan/robopoint-v1-vicuna-v1.5-13b": Card("Apache-2.0", 335),
    "tinyclip": Card("MIT", 4),
}
"""By the name of the model."""


@cache
def log_card(model: str) -> None:
    """Logs a model's size and licence, the first time that a process loads it."""
    if model in CARDS:
        log.info("%s: %s", model, CARDS[model])
