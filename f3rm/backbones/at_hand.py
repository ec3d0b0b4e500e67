"""Weights that this machine already has: built in, at a local path, or in the hub's cache."""

import importlib
from dataclasses import replace
from pathlib import Path

from f3rm.backbones.checkpoint import INDEX_NAMES, read_index
from f3rm.backbones.hub import cached_file
from f3rm.backbones.llava.names import is_vision
from f3rm.backbones.weights import hub_name, joined_refs, local_weights
from f3rm.errors import BackboneRef

_CLIP_SOURCE = "f3rm.backbones.clip.source"  # imports open_clip, so only when it is needed
_OF_TRANSFORMERS = ("dino", "dinov2", "dinov3", "tipsv2", "siglip2", "radio")
_TRANSFORMERS_NAMES = ("model.safetensors", "pytorch_model.bin")


def weights_at_hand(ref: BackboneRef) -> Path | None:
    """Finds a model's weights without a network and without loading them.

    Args:
        ref: The model. All of several joined ones must be found.

    Returns:
        The file or folder; None if they would have to be downloaded, or if the adapter belongs to
        another package.

    Raises:
        BackboneUnavailableError: If the weights are a path that does not exist.
        ImportError: If open_clip, which lists where CLIP's tags are published, cannot be imported.
        ValueError: If the index of a sharded checkpoint is damaged.
    """
    clip, *dinos = joined_refs(ref)
    if dinos:
        parts = [replace(clip, adapter="clip"), *(replace(dino, adapter="dino") for dino in dinos)]
        found = [weights_at_hand(part) for part in parts]
        return found[0] if all(found) else None
    path = local_weights(ref)
    if path is not None:
        return path
    if ref.adapter in ("clip", "pe"):
        repository, names = importlib.import_module(_CLIP_SOURCE).hub_files(ref)
        return cached_file(repository, names) if repository else None
    if ref.adapter == "llava":
        return _sharded(hub_name(ref))
    if ref.adapter in _OF_TRANSFORMERS:
        return cached_file(hub_name(ref), _TRANSFORMERS_NAMES)
    return None


def _sharded(repository: str) -> Path | None:
    """Finds a LLaVA checkpoint, of whose shards only those with the vision half are needed."""
    index = cached_file(repository, INDEX_NAMES)
    if index is None:
        return cached_file(repository, _TRANSFORMERS_NAMES)
    shards = {file for tensor, file in read_index(index).items() if is_vision(tensor)}
    return index if all(cached_file(repository, [shard]) for shard in shards) else None
