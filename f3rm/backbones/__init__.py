"""Frozen 2D foundation models: image batch to dense features, text to embedding.

An adapter file per model family implements the contract in :mod:`f3rm.backbones.base`; adapters are
chosen by name and imported only when asked for, so that this package loads without any model
library.
"""

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.registry import adapter_names, load_backbone
from f3rm.backbones.taps import Op, Tap, parse_taps
from f3rm.backbones.weights import weights_identity

__all__ = [
    "Backbone",
    "LayerInfo",
    "Op",
    "Tap",
    "Tower",
    "adapter_names",
    "load_backbone",
    "parse_taps",
    "weights_identity",
]
