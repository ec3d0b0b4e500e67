"""Frozen 2D foundation models: image batch to dense features, text to embedding."""

from typing import TYPE_CHECKING

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.calibration import Calibration
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import adapter_names, load_backbone
from f3rm.backbones.tap_values import apply_ops
from f3rm.backbones.taps import Op, Tap, parse_taps
from f3rm.backbones.weights import weights_identity
from f3rm.lazy import getter

if TYPE_CHECKING:
    from f3rm.backbones.module.backbone import ModuleBackbone
    from f3rm.backbones.video.backbone import VideoBackbone

__all__ = [
    "Backbone",
    "Calibration",
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

__getattr__ = getter(
    __name__,
    {
        "ModuleBackbone": "f3rm.backbones.module.backbone",
        "VideoBackbone": "f3rm.backbones.video.backbone",
    },
)
