"""Reads state dicts from local weight files, without running code from them.

Nothing is unpickled beyond tensors and plain containers. A TorchScript archive (the form in which
OpenAI published CLIP) is opened by TorchScript's own reader, and only its tensors are taken.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from f3rm.errors import BackboneUnavailableError

_NESTING_KEYS = ("state_dict", "model_state_dict", "model")
_CLASSY_KEY = "classy_state_dict"
"""Key of the trained parameters in ClassyVision's checkpoints, hence in VISSL's."""
_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""Errors of the readers on damaged files; torch's unpickler indexes into empty lists on some."""
_PARALLEL_PREFIX = "module."

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that list the shard of each tensor."""


def read_index(index: Path) -> dict[str, str]:
    """Reads the index of a sharded checkpoint: tensor names to file names.

    Raises:
        ValueError: If the file is no index.
    """
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(index)!r} is no index ({error!r})") from error


def read_state_dict(path: Path, *, keep: Callable[[str], bool] = bool) -> dict[str, Tensor]:
    """Reads the tensors of a weight file onto the CPU.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` or ``torch.jit.save`` wrote. A
            state dict nested in a training checkpoint is found, and the ``module.`` of a parallel
            wrapper dropped.
        keep: Chooses tensors by name. Only these are read from disk, except from files in torch's
            oldest formats.

    Raises:
        BackboneUnavailableError: If the file is damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, keep)
        state = _read_torchscript(path) if _is_torchscript(path) else _read_pickle(path)
    except _READ_ERRORS as error:
        msg = (
            f"{str(path)!r} is not a readable weight file ({_first_line(error)}). Copy or download "
            "it again, or convert it to .safetensors."
        )
        raise BackboneUnavailableError(msg) from error
    names = {name: name.removeprefix(_PARALLEL_PREFIX) for name in state}
    return {names[name]: tensor for name, tensor in state.items() if keep(names[name])}


def _read_safetensors(path: Path, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for stored_name in file.keys():  # noqa: SIM118 (the file object is no mapping)
            name = stored_name.removeprefix(_PARALLEL_PREFIX)
            if keep(name):
                state[name] = file.get_tensor(stored_name)
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(path)  # then only the tensors that are used are read from disk
    content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(content, dict) and _CLASSY_KEY in content:
        return _of_classy(content[_CLASSY_KEY])
    for key in _NESTING_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        msg = f"it holds a {type(content).__name__}, not a state dict"
        raise pickle.UnpicklingError(msg)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _of_classy(content: Any) -> dict[str, Tensor]:
    """Returns the trunk's tensors by their names, and those of the heads as ``heads.<name>``."""
    model = content["base_model"]["model"]
    heads = {f"heads.{name}": value for name, value in model.get("heads", {}).items()}
    state = {**model["trunk"], **heads}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        # torch.save writes zip archives too, but only TorchScript's have this entry.
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return dict(torch.jit.load(path, map_location="cpu").state_dict())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
