"""Locates and identifies a backbone's weights, without loading a model.

A ``weights`` string is read by one rule:

1. ``builtin:NAME`` is the model of that name that ships with f3rm (``builtin:tinyclip``).
2. A file or folder that exists is local, whatever its name.
3. Otherwise it is a *missing path*, hence an error, if it is absolute, starts with ``.`` or ``~``,
   holds a backslash or more than one slash, ends in the suffix of a weight file or an archive, or
   its folder has other weights or a similar name (``checkpoints/dnio``), unless the model has that
   very name.
4. Anything else is a tag or a hub name (``openai``, ``org/name``, ``hf-hub:org/name``), which has
   at most one slash. ``hf-hub:`` before a name means the hub whatever folders there are.

Backbones that combine several models take several such strings, joined by commas; a file or folder
whose name has a comma is one string nevertheless.
"""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
import xxhash

from f3rm.backbones.checkpoint import INDEX_NAMES, read_index
from f3rm.errors import BackboneRef, BackboneUnavailableError

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
HUB_PREFIX = "hf-hub:"
_OTHER_SUFFIXES = (".tar", ".zip", ".npz", ".npy", ".pkl", ".h5", ".msgpack", ".onnx")
_CHUNK_BYTES = 1 << 22
_BUILTIN_PREFIX = "builtin:"
_BUILTIN_FOLDERS = {"tinyclip": Path(__file__).parent / "tinyclip"}
_SELECTIVE = {"llava": "f3rm.backbones.llava.names"}
"""Adapters that read a part of a checkpoint: the module whose ``is_vision`` chooses its tensors.
Shards without any are not hashed. Named by string, because a family's package imports this one."""


def local_weights(ref: BackboneRef) -> Path | None:
    """Finds the local file or folder that a reference names.

    Args:
        ref: The backbone; empty weights mean the model's own name.

    Returns:
        The existing path, or None for a tag or hub name.

    Raises:
        BackboneUnavailableError: If the weights read like a path that does not exist.
    """
    weights = ref.weights or ref.model
    if weights.startswith(_BUILTIN_PREFIX):
        return _builtin_folder(ref, weights.removeprefix(_BUILTIN_PREFIX))
    path = Path(weights).expanduser()
    if path.exists():
        return path
    if _reads_like_path(ref, weights):
        raise unavailable(ref, _missing(path))
    return None


def weights_identity(ref: BackboneRef) -> str:
    """Identifies weights by content where they are local, by name otherwise; loads no model.

    Copying or moving a file or folder keeps the identity; changing a byte of its weights or
    configuration, or the name of a file in a folder, changes it. Other files of a folder (a README)
    do not count.

    Returns:
        ``"xxh3:<hex>"`` for a local file or folder, ``"hub:<model>@<weights>"`` for a tag or hub
        name.

    Raises:
        BackboneUnavailableError: If the path does not exist or the folder holds no weights.
    """
    parts = joined_refs(ref)
    if len(parts) > 1:
        return ",".join(map(weights_identity, parts))
    path = local_weights(ref)
    if path is None:
        return f"hub:{ref.model}@{ref.weights or ref.model}"
    digest = xxhash.xxh3_128()
    if path.is_file():
        _add_content(digest, path)
    else:
        for file in _identifying_files(ref, path):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            _add_content(digest, file)
    return f"xxh3:{digest.hexdigest()}"


def joined_parts(weights: str) -> list[str]:
    """Splits the weights of several backbones; the name of one file or folder stays whole."""
    return [weights] if Path(weights).expanduser().exists() else weights.split(",")


def joined_refs(ref: BackboneRef) -> list[BackboneRef]:
    """Splits a reference to joined models into one per weights; a single model name is for all."""
    models, weights = ref.model.split(","), joined_parts(ref.weights)
    if len(weights) == 1:
        return [ref]
    models += models[-1:] * (len(weights) - len(models))
    return [replace(ref, model=m, weights=w) for m, w in zip(models, weights, strict=False)]


def unavailable(ref: BackboneRef, reason: str) -> BackboneUnavailableError:
    """Builds the error for weights that cannot be used; it says how to pass a local copy.

    Args:
        ref: The backbone asked for.
        reason: The problem, as a clause without a final stop.

    Returns:
        The error, to be raised by the caller with its cause.
    """
    feature_type = ref.adapter.upper()
    return BackboneUnavailableError(
        f"Cannot load the weights {ref.weights!r} of the model {ref.model!r} "
        f"(adapter {ref.adapter!r}): {reason}. To use a local copy, pass "
        f"--weights {feature_type}=/path/to/folder-or-file "
        f"(training: --pipeline.datamanager.weights {feature_type}=/path)."
    )


def not_loaded(ref: BackboneRef, tower: str) -> BackboneUnavailableError:
    """Builds the error for a tower that was left out when its backbone was loaded."""
    return BackboneUnavailableError(
        f"The {tower} tower of {ref.model!r} was not loaded. "
        f'Load it with load_backbone(ref, towers=("{tower}",)).'
    )


def require_several(texts: Sequence[str]) -> None:
    """Refuses one string, whose letters would be taken for texts.

    Raises:
        TypeError: If ``texts`` is a string.
    """
    if isinstance(texts, str):
        msg = f"texts must be a sequence of strings, got one string. Pass [{texts!r}]."
        raise TypeError(msg)


def near_matches(name: str, known: Iterable[str]) -> str:
    """Returns a clause with the known words closest to a wrong one, or all if none is close."""
    words = sorted(set(known))
    close = difflib.get_close_matches(name, words, n=5, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known are {', '.join(words) or 'none'}"


def _builtin_folder(ref: BackboneRef, name: str) -> Path:
    if name not in _BUILTIN_FOLDERS:
        known = near_matches(name, _BUILTIN_FOLDERS)
        raise unavailable(ref, f"no model of that name ships with f3rm; {known}")
    folder = _BUILTIN_FOLDERS[name]
    if not folder.is_dir():
        raise unavailable(ref, "this installation of f3rm lacks it; install f3rm again")
    return folder


def hub_name(ref: BackboneRef) -> str:
    """Returns the hub name of a reference whose weights are not local."""
    return (ref.weights or ref.model).removeprefix(HUB_PREFIX)


def _reads_like_path(ref: BackboneRef, weights: str) -> bool:
    return (
        Path(weights).is_absolute()
        or weights.startswith((".", "~"))
        or "\\" in weights
        or weights.count("/") > 1
        or weights.endswith((*WEIGHT_SUFFIXES, *_OTHER_SUFFIXES))
        or _is_beside_weights(ref, weights)
    )


def _is_beside_weights(ref: BackboneRef, weights: str) -> bool:
    """Whether a name that is not the model's own has weights or a similar name beside it."""
    name = Path(weights)
    if "/" not in weights or weights in ref.model.split(","):
        return False
    beside = _entries(name.parent)
    return bool(difflib.get_close_matches(name.name, [entry.name for entry in beside])) or any(
        file.suffix in WEIGHT_SUFFIXES for entry in beside for file in (entry, *_entries(entry))
    )


def _entries(folder: Path) -> list[Path]:
    """Lists a folder; anything else, or an unreadable folder, is empty."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _missing(path: Path) -> str:
    """Returns which part of a path does not exist, and the similar names beside it."""
    nearest = path.absolute()
    lacking = nearest
    while not nearest.is_dir() and nearest != nearest.parent:
        lacking, nearest = nearest, nearest.parent
    reason = f"no file or folder {str(path)!r} exists; the nearest folder is {str(nearest)!r}"
    close = difflib.get_close_matches(lacking.name, [entry.name for entry in _entries(nearest)])
    if close:
        reason += f", which has {', '.join(map(repr, close))}"
    if not path.is_absolute() and len(path.parts) == len(("org", "name")):
        reason += f" (a model of the hub is {HUB_PREFIX}{path.as_posix()})"
    return reason


def _identifying_files(ref: BackboneRef, folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    unused = _unused_shards(ref, folder)
    weights = [f for f in files if f.suffix in WEIGHT_SUFFIXES and f.name not in unused]
    if not weights:
        raise unavailable(
            ref, f"the folder {str(folder)!r} holds no {'/'.join(WEIGHT_SUFFIXES)} file"
        )
    return [file for file in files if file in weights or file.suffix == ".json"]


def _unused_shards(ref: BackboneRef, folder: Path) -> set[str]:
    """Returns the shards that an adapter never opens, by the checkpoint's index."""
    index = next((folder / name for name in INDEX_NAMES if (folder / name).is_file()), None)
    if ref.adapter not in _SELECTIVE or index is None:
        return set()
    is_read = importlib.import_module(_SELECTIVE[ref.adapter]).is_vision
    try:
        shards = read_index(index)
    except ValueError as error:
        raise unavailable(ref, str(error)) from error
    return set(shards.values()) - {file for tensor, file in shards.items() if is_read(tensor)}


def _add_content(digest: xxhash.xxh3_128, file: Path) -> None:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)


def provenance_of(ref: BackboneRef, library: ModuleType) -> dict[str, str]:
    """Returns a cache's record of a model: its library, versions and weights' identity."""
    return {
        "library": library.__name__,
        "version": library.__version__,
        "torch": torch.__version__,
        "weights": weights_identity(ref),
    }
