"""Networks of transformers from a local folder or the hub; code beside weights never runs.

A family reads ``config.json`` as plain JSON and chooses one of transformers' own classes by it; the
weights are read in fp32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from f3rm.backbones.base import Rgb, rgb
from f3rm.backbones.hub import READ_ERRORS, cache_first, cache_only, reason_of
from f3rm.backbones.weights import hub_name, local_weights, unavailable
from f3rm.errors import BackboneRef

Read = TypeVar("Read")

NOT_NORMALISED: tuple[Rgb, Rgb] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Mean and deviation of an input that stays in [0, 1]."""

_UNUSED_PARAMETERS = ("pooler.", "mask_token")
"""Parts of names of parameters that no feature depends on, which a file may lack."""


def read_hf(ref: BackboneRef, read: Callable[[str], Read]) -> Read:
    """Reads from the folder or hub repository that a reference names; a cached one sends nothing.

    Args:
        ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder.
        read: Takes the folder or hub name; may be called twice.

    Raises:
        BackboneUnavailableError: If the files are not available or do not fit.
    """
    path = local_weights(ref)
    if path is not None and not path.is_dir():
        kind = ref.adapter.upper()
        raise unavailable(
            ref, f"{str(path)!r} is a file; {kind} weights are a folder with config.json"
        )
    try:
        if path is None:
            return cache_first(lambda: read(hub_name(ref)))
        with cache_only():
            return read(str(path))
    except READ_ERRORS as error:
        reason = f"{str(path)!r} is no readable transformers model folder ({error})"
        raise unavailable(ref, reason_of(error) if path is None else reason) from error


def read_config(ref: BackboneRef, source: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Reads ``config.json``.

    Args:
        ref: For the message.
        source: A folder or hub name.
        known: The model types that the caller builds.

    Raises:
        BackboneUnavailableError: If the model is of another type.
        OSError: If there is no such file.
    """
    config, _ = PreTrainedConfig.get_config_dict(source)
    if not config:  # as transformers says that there is no file
        raise FileNotFoundError("it has no config.json")
    kind = config.get("model_type")
    if kind not in known:
        reason = f"its model type is {kind!r}; supported are {', '.join(known)}"
        if "auto_map" in config:
            reason += ". It is in the layout of its authors' own code, which f3rm does not run"
        raise unavailable(ref, reason)
    return config


def read_network(
    ref: BackboneRef,
    model_class: type[PreTrainedModel],
    source: str,
    config: PreTrainedConfig,
    **options: Any,
) -> PreTrainedModel:
    """Reads a frozen network in fp32 and evaluation mode; tensors of other parts are left out.

    Args:
        ref: For the message.
        model_class: Its class.
        source: A folder or hub name.
        config: Its configuration.
        **options: Further arguments of the class.

    Raises:
        BackboneUnavailableError: If a parameter is missing.
        RuntimeError: If a shape does not fit.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list every tensor of the half that is not asked for
    # Missing parameters are drawn at random, which must not move the caller's random state.
    try:
        with torch.random.fork_rng(devices=[]):
            loaded: Any = model_class.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
    finally:
        logging.set_verbosity(verbosity)
    network, info = loaded
    missing = [key for key in info["missing_keys"] if not any(u in key for u in _UNUSED_PARAMETERS)]
    if missing:
        raise unavailable(
            ref, f"the weight file lacks parameters, among them {sorted(missing)[:3]}"
        )
    return network.eval().requires_grad_(requires_grad=False)


def read_statistics(ref: BackboneRef, mean: Rgb, std: Rgb) -> tuple[Rgb, Rgb]:
    """Reads the input's mean and deviation from a local folder's ``preprocessor_config.json``.

    Args:
        ref: The model and weights.
        mean: What holds where there is no such file.
        std: Likewise.

    Returns:
        Zeros and ones where the file says that the input is not normalised.

    Raises:
        BackboneUnavailableError: If the file holds something else.
    """
    path = local_weights(ref)
    file = (path or Path()) / "preprocessor_config.json"
    if path is None or not file.is_file():
        return mean, std
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.get("do_normalize") is False:
            return NOT_NORMALISED
        return rgb(settings.get("image_mean") or mean), rgb(settings.get("image_std") or std)
    except (ValueError, TypeError, AttributeError) as error:
        raise unavailable(ref, f"{str(file)!r} holds no RGB statistics ({error})") from error
