"""Frozen 2D foundation models: image batch to dense features, text to embedding."""

import importlib
from typing import TYPE_CHECKING

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import adapter_names, load_backbone
from f3rm.backbones.tap_values import apply_ops
from f3rm.backbones.taps import Op, Tap, parse_taps
from f3rm.backbones.weights import weights_identity

if TYPE_CHECKING:
    from f3rm.backbones.module.backbone import ModuleBackbone
    from f3rm.backbones.video.backbone import VideoBackbone

__all__ = [
    "Backbone",
    "LayerInfo",
    "ModuleBackbone",
    "Op",
    "Tap",
    "Tower",
    "VideoBackbone",
    "adapter_names",
    "apply_ops",
    "load_backbone",
    "parse_taps",
    "weights_identity",
]

_FAMILIES = {
    "ModuleBackbone": "f3rm.backbones.module.backbone",
    "VideoBackbone": "f3rm.backbones.video.backbone",
}


def __getattr__(name: str) -> object:
    """Imports a family's class on first use, so that this package stays light.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FAMILIES[name]), name)
