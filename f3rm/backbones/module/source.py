"""Builds a reference's module and fills it with weights."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.hub import cache_first
from f3rm.backbones.weights import local_weights, near_matches, unavailable
from f3rm.errors import BackboneRef

RANDOM = "random"
"""Weights drawn with a fixed seed, for tests and for shapes."""

_LIBRARIES = {"torchvision": ("torchvision.models", "get_model"), "timm": ("timm", "create_model")}
"""Module and builder; both modules also have ``list_models``."""
_WRAPPERS = ("_feature_blocks.", "module.", "trunk.", "backbone.")
"""Prefixes of a trunk's names in training codes' checkpoints; VISSL's first."""
_CLASSIFIERS = ("fc.", "classifier.", "head.")


def load_module(ref: BackboneRef) -> nn.Module:
    """Builds a model by name in fp32.

    Args:
        ref: See :meth:`f3rm.backbones.module.backbone.ModuleBackbone.load`.

    Raises:
        BackboneUnavailableError: If the package, the model or its weights are not available.
    """
    library, _, name = ref.model.partition(":")
    if not name:
        raise unavailable(
            ref, "a model must look like torchvision:resnet50, timm:resnet18 or package:function"
        )
    is_random = ref.weights in ("", RANDOM)
    path = None if is_random else local_weights(ref)
    published = {} if is_random or path is not None else _published(ref, library)
    # The initial values are the same each time, and the caller's random state does not move.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = _build(ref, library, name, published)
    if path is not None:
        _fill(ref, module, read_state_dict(path))
    return module.float()


def without_classifier(ref: BackboneRef, module: nn.Module) -> None:
    """Replaces a residual network's classifier by the identity, so that it ends with its pooling.

    Raises:
        BackboneUnavailableError: If it has none of the name ``fc``.
    """
    if not isinstance(getattr(module, "fc", None), nn.Module):
        raise unavailable(ref, "VISSL's heads are built on residual networks; this model has no fc")
    module.add_module("fc", nn.Identity())


def _published(ref: BackboneRef, library: str) -> Mapping[str, object]:
    """Returns the argument with which a library fetches its own weights."""
    if library == "torchvision":
        return {"weights": ref.weights}
    if library == "timm" and ref.weights == "pretrained":
        return {"pretrained": True}
    raise unavailable(ref, f"weights of {library} models are a file or {RANDOM!r}")


def _build(ref: BackboneRef, library: str, name: str, arguments: Mapping[str, object]) -> nn.Module:
    is_library = library in _LIBRARIES
    where, attribute = _LIBRARIES[library] if is_library else (library, name)
    try:
        package = importlib.import_module(where)
        function: Callable[..., object] = getattr(package, attribute)
    except (ImportError, AttributeError) as error:
        raise unavailable(ref, f"{where}:{attribute} cannot be imported ({error})") from error
    build: Callable[[], object] = function
    if is_library:
        known: Sequence[str] = package.list_models()
        if name not in known:
            raise unavailable(ref, f"{library} has no such model; {near_matches(name, known)}")
        build = partial(function, name, **arguments)
    try:
        module = cache_first(build) if "pretrained" in arguments else build()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise unavailable(ref, f"{where}:{attribute} cannot build it ({error})") from error
    if not isinstance(module, nn.Module):
        raise unavailable(ref, f"{where}:{attribute} gave {type(module).__name__}, no nn.Module")
    return module


def _fill(ref: BackboneRef, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies weights; a classifier may be absent or of another size, since trunks have none."""
    own = module.state_dict()
    for prefix in _WRAPPERS:
        if any(name.startswith(prefix) for name in state) and not set(own) & set(state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in own and own[name].shape == tensor.shape
    }
    lacking = [name for name in own if name not in fitting and not name.startswith(_CLASSIFIERS)]
    lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if lacking:
        raise unavailable(ref, f"the weight file does not fit the model (lacks {lacking[:3]})")
    module.load_state_dict(fitting, strict=False)
