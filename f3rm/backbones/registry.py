"""Loads a backbone by the name of its adapter; imports no model library itself.

Adapters that ship with f3rm are listed here. Other packages add theirs through the entry-point
group ``f3rm.backbones``: the entry's name is the adapter's name, its object a
:class:`~f3rm.backbones.base.Backbone` class with a ``load`` class method. A shipped name cannot be
replaced that way.
"""

import contextlib
import sys
from collections.abc import Collection, Generator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast, get_args

import torch

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.cards import log_card
from f3rm.backbones.weights import near_matches
from f3rm.errors import BackboneRef, BackboneUnavailableError

ENTRY_POINT_GROUP = "f3rm.backbones"

_SHIPPED = {
    "clip": "f3rm.backbones.clip.backbone:ClipBackbone",
    "pe": "f3rm.backbones.clip.pe:PeBackbone",
    "dino": "f3rm.backbones.dino.backbone:DinoBackbone",
    "dinov2": "f3rm.backbones.dino.backbone:DinoBackbone",
    "dinov3": "f3rm.backbones.dino.backbone:DinoBackbone",
    "tipsv2": "f3rm.backbones.tipsv2.backbone:Tipsv2Backbone",
    "siglip2": "f3rm.backbones.siglip2.backbone:Siglip2Backbone",
    "radio": "f3rm.backbones.radio.backbone:RadioBackbone",
    "vae": "f3rm.backbones.video.vae:VideoVae",
    "llava": "f3rm.backbones.llava.backbone:LlavaBackbone",
    "module": "f3rm.backbones.module.backbone:ModuleBackbone",
    "proxyclip": "f3rm.backbones.clip.proxy:ProxyBackbone",
}
_NEWER = ("timm>=1.0.17", "open_clip_torch>=3")
_DISTRIBUTIONS = {
    "open_clip": "open_clip_torch",
    "timm": "--no-deps -U " + " ".join(f'"{package}"' for package in _NEWER),
}
"""What pip installs for a package; Nerfstudio pins an old timm, which nothing in it imports."""


def load_backbone(
    ref: BackboneRef,
    *,
    device: str | torch.device = "cpu",
    towers: Collection[Tower] = ("image",),
) -> Backbone:
    """Loads a frozen backbone.

    Args:
        ref: Adapter, model and weights.
        device: Where the parameters go.
        towers: The halves to keep in memory: ``"image"``, ``"text"`` or both.

    Returns:
        The backbone in evaluation mode, without gradients.

    Raises:
        BackboneUnavailableError: If the adapter is unknown, a package is missing, or the weights
            are not available.
        ValueError: If ``towers`` is empty or names something else.
    """
    known_towers = get_args(Tower)
    if not towers or not set(towers) <= set(known_towers):
        msg = f"towers must name some of {known_towers}, got {tuple(towers)!r}."
        raise ValueError(msg)
    backbone = _adapter_class(ref.adapter).load(ref, device=device, towers=tuple(towers))
    log_card(ref.model)
    return backbone


def adapter_names() -> tuple[str, ...]:
    """Returns the names of all adapters, shipped and installed, sorted; imports none."""
    return tuple(sorted(_adapters()))


def newer_packages() -> tuple[str, ...]:
    """Returns what PE needs and Nerfstudio's pins forbid; pip installs it with ``--no-deps``."""
    return _NEWER


def _adapters() -> dict[str, EntryPoint]:
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    shipped = {
        name: EntryPoint(name=name, value=target, group=ENTRY_POINT_GROUP)
        for name, target in _SHIPPED.items()
    }
    return installed | shipped  # in this order, so that shipped names win


def _adapter_class(name: str) -> type[Backbone]:
    adapters = _adapters()
    if name not in adapters:
        msg = (
            f"There is no backbone adapter {name!r}; {near_matches(name, adapters)} Other "
            f"packages add adapters through the entry-point group {ENTRY_POINT_GROUP!r}."
        )
        raise BackboneUnavailableError(msg)
    entry = adapters[name]
    try:
        with _unimported("wandb") if name in _SHIPPED else contextlib.nullcontext():
            adapter = entry.load()
    except (ImportError, AttributeError) as error:
        raise _import_failure(entry, error) from error
    if not (isinstance(adapter, type) and issubclass(adapter, Backbone)):
        msg = (
            f"The backbone adapter {name!r} ({entry.value}) must be a subclass of "
            f"f3rm.backbones.Backbone, got {adapter!r}. Correct the package that offers it."
        )
        raise BackboneUnavailableError(msg)
    return adapter


@contextlib.contextmanager
def _unimported(package: str) -> Generator[None]:
    """Lets imports go on as if a package were not installed, unless it has been imported.

    timm 0.6, which open_clip imports, takes 3 seconds for a logger of trainings that it can do
    without.
    """
    modules = cast("dict[str, Any]", sys.modules)
    if package in modules:
        yield
        return
    modules[package] = None
    try:
        yield
    finally:
        modules.pop(package, None)


def _import_failure(
    entry: EntryPoint, error: ImportError | AttributeError
) -> BackboneUnavailableError:
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    own_package = entry.module.partition(".")[0]
    if package in ("", own_package):
        next_step = f"Reinstall or update the package {own_package!r}"
    else:
        next_step = f"Install it: pip install {_DISTRIBUTIONS.get(package, package)}"
    return BackboneUnavailableError(
        f"The backbone adapter {entry.name!r} ({entry.value}) needs the package "
        f"{package or own_package!r}, which is missing or unusable here ({error}). {next_step}."
    )
