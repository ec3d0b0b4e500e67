"""Any ``nn.Module`` as a backbone: models of torchvision and timm, or a trunk and head of your own.

Hooks read the layers. One forward pass over a black square finds them and their shapes. Residual
networks also have VISSL's names: ``conv1`` (the stem with its norm and activation), ``res1`` (its
pooling), ``res2`` ... ``res5`` and ``res5avg``.

Source: Goyal et al., VISSL, https://github.com/facebookresearch/vissl, model_zoo and
``LINEAR_EVAL_FEAT_POOL_OPS_MAP``. Different here: results are named by their taps, so that one
layer can be read with several poolings, and a request's order does not matter.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, Rgb, Tower
from f3rm.backbones.layers import LayerInfo, find_layer
from f3rm.backbones.module.hooks import observe, read_modules
from f3rm.backbones.module.source import load_module, without_classifier
from f3rm.backbones.module.vissl_heads import load_heads, split_heads
from f3rm.backbones.tap_values import apply_ops, select_tokens
from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import unavailable, weights_identity
from f3rm.errors import BackboneRef, TapError

_MAP_AXES = 4
_TOKEN_AXES = 3
_VECTOR_AXES = 2
_KINDS = (_MAP_AXES, _TOKEN_AXES, _VECTOR_AXES)
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_VISSL_NAMES: Mapping[str, Sequence[str]] = {
    "conv1": ("relu", "act1"),
    "res1": ("maxpool",),
    **{f"res{number}": (stage,) for number, stage in enumerate(_STAGES, start=2)},
    "res5avg": ("avgpool", "global_pool"),
}
"""VISSL's names of a residual network's layers: the names in torchvision and timm."""
_CLASSIFIERS: Mapping[str, Sequence[str]] = {"head": ("fc", "classifier", "head")}


class ModuleBackbone(Backbone):
    """A frozen module whose layers are read by hooks, without a text tower."""

    def __init__(
        self,
        ref: BackboneRef,
        trunk: nn.Module,
        *,
        head: nn.Module | None = None,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
        probe_size: int = 224,
    ) -> None:
        """Wraps a module, puts it into evaluation mode and freezes it.

        Args:
            ref: Its name in caches.
            trunk: Maps (batch, 3, height, width) to anything.
            head: Takes the trunk's output, if there is one; its layers are ``head`` and
                ``head.<name>``.
            mean: RGB mean of the network's input, for values in [0, 1].
            std: RGB standard deviation, likewise.
            probe_size: Side in pixels of the black square of the first forward pass.
        """
        self.ref = ref
        self.mean = mean
        self.std = std
        self.has_text = False
        self._trunk = trunk
        self._network = trunk if head is None else nn.Sequential(trunk, head)
        self._network.eval().requires_grad_(requires_grad=False)
        self._modules = _named_modules(trunk, head)
        self._probe_size = probe_size
        dtype = next(self._network.parameters()).dtype
        self._calls = observe(
            self._network,
            torch.zeros(1, 3, probe_size, probe_size, device=self.device, dtype=dtype),
        )
        self._layers = self._describe_all()
        self._deepest = _deepest_spatial(self._layers)
        if self._deepest is not None:
            self._layers.append(replace(self._deepest, name="final"))
        self.channels = self._layers[-1].channels
        self.patch_size = max(1, self._layers[-1].stride)

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "ModuleBackbone":
        """Builds a model by name; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``model`` is ``torchvision:resnet50``, ``timm:resnet18`` or
                ``package.module:function``, where the function takes nothing and returns the
                module. ``weights`` is a weight file, ``random`` (always the same), or a name that
                torchvision has (``IMAGENET1K_V2``); with timm ``pretrained``. Heads of VISSL
                follow the model's name; see :mod:`f3rm.backbones.module.vissl_heads`.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Returns:
            The frozen module in fp32.

        Raises:
            BackboneUnavailableError: If the model or its weights are not available, or a text tower
                is asked for.
        """
        if "text" in towers:
            raise unavailable(ref, "plain modules have no text tower; ask a CLIP model instead")
        plain, described = split_heads(ref)
        trunk = load_module(plain)
        if not described:
            return cls(ref, trunk.to(device))
        without_classifier(plain, trunk)
        return cls(ref, trunk.to(device), head=load_heads(plain, described).to(device))

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes ``final``; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a size is no multiple of the stride.
            TapError: If the module gives no map.
        """
        self.feature_grid(images)
        return self.run(images, ["final"])[Tap("final")]

    def layers(self) -> list[LayerInfo]:
        """Describes the layers; ``final`` is the deepest map, or the deepest patches."""
        return self._layers

    def read_taps(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps; see :meth:`f3rm.backbones.base.Backbone.run`."""
        wanted: dict[nn.Module, list[Tap]] = {}
        for tap in taps:
            wanted.setdefault(self._module_of(tap), []).append(tap)
        found: dict[Tap, Tensor] = {}

        def keep(module: nn.Module, output: Tensor) -> None:
            for tap in wanted[module]:
                found[tap] = self._value(tap, output, (images.shape[-2], images.shape[-1]))

        images = images.to(next(self._network.parameters()).dtype)
        times = {module: self._calls[module].times for module in wanted}
        read_modules(self._network, images, times, keep)
        return found

    def layer_shape(self, tap: Tap, height: int, width: int) -> tuple[int, ...]:
        """Returns a shape by a forward pass over a black image; see the base class."""
        black = torch.zeros(1, 3, height, width, device=self.device)
        plain = Tap(tap.layer, tap.facet, tap.select)
        return tuple(self.read_taps(black, [plain])[plain].shape[1:])

    def provenance(self) -> dict[str, str]:
        """Returns torch's version and the weights' identity."""
        return {
            "library": "torch",
            "version": torch.__version__,
            "weights": weights_identity(self.ref),
        }

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self._network.parameters()).device

    def _describe_all(self) -> list[LayerInfo]:
        described = [
            (self._calls[module].order, self._describe(name, self._calls[module].shape))
            for name, module in self._modules.items()
            if module in self._calls and len(self._calls[module].shape) in _KINDS
        ]
        return [layer for _, layer in sorted(described, key=lambda entry: entry[0])]

    def _describe(self, name: str, shape: tuple[int, ...]) -> LayerInfo:
        size = self._probe_size
        if len(shape) == _MAP_AXES:
            stride = round(size / shape[3]) if shape[3] > 1 else 0
            return LayerInfo(name, "map", shape[1], stride)
        if len(shape) == _TOKEN_AXES:
            side = math.isqrt(shape[1])
            prefix = shape[1] - side**2  # the probe is square, so the rest are class and registers
            return LayerInfo(name, "tokens", shape[2], round(size / side), prefix_tokens=prefix)
        return LayerInfo(name, "vector", shape[1], 0)

    def _module_of(self, tap: Tap) -> nn.Module:
        if tap.layer == "final" and self._deepest is not None:
            return self._modules[self._deepest.name]
        return self._modules[tap.layer]

    def _value(self, tap: Tap, output: Tensor, size: tuple[int, int]) -> Tensor:
        layer = find_layer(self._layers, tap)
        values = output
        if layer.kind == "map":
            values = output.permute(0, 2, 3, 1)  # (batch, rows, cols, channels)
        elif layer.kind == "tokens":
            grid = (round(size[0] / layer.stride), round(size[1] / layer.stride))
            values = self._tokens(tap, layer, output, grid)
        values = apply_ops(values, tap.ops, tap.read_form(layer.kind))
        shared = values.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        # A later layer may work in place, on the memory that a hook's output still shares.
        return values.clone() if shared else values

    def _tokens(self, tap: Tap, layer: LayerInfo, output: Tensor, grid: tuple[int, int]) -> Tensor:
        if tap.select == "patch" and output.shape[1] != layer.prefix_tokens + grid[0] * grid[1]:
            msg = (
                f"The {output.shape[1]} tokens of {layer.name} are no {grid[0]} x {grid[1]} "
                f"patches, got the tap {str(tap)!r}. Read them with @all."
            )
            raise TapError(msg)
        return select_tokens(output, tap, prefix_tokens=layer.prefix_tokens, grid=grid)


def _named_modules(trunk: nn.Module, head: nn.Module | None) -> dict[str, nn.Module]:
    """Names modules; one whose name VISSL uses for another layer becomes ``trunk.<name>``."""
    named = {name: module for name, module in trunk.named_modules() if name}
    is_residual = all(stage in named for stage in _STAGES)
    aliases = _first_children(trunk, _VISSL_NAMES) if is_residual else {}
    if head is None:
        aliases |= _first_children(trunk, _CLASSIFIERS)
    else:
        aliases["head"] = head
        aliases |= {f"head.{name}": part for name, part in head.named_modules() if name}
    shadowed = {
        f"trunk.{name}": module
        for name, module in named.items()
        if aliases.get(name, module) is not module
    }
    return {**named, **shadowed, "trunk": trunk, **aliases}


def _first_children(trunk: nn.Module, names: Mapping[str, Sequence[str]]) -> dict[str, nn.Module]:
    """Returns by alias the first of several children, where the trunk has one."""
    children = dict(trunk.named_children())
    found = {
        alias: [children[name] for name in candidates if name in children]
        for alias, candidates in names.items()
    }
    return {alias: modules[0] for alias, modules in found.items() if modules}


def _deepest_spatial(layers: Sequence[LayerInfo]) -> LayerInfo | None:
    """Returns the last layer that has cells, a map or patches."""
    spatial = [layer for layer in layers if layer.stride > 1]
    return spatial[-1] if spatial else None
