"""Which weights a machine has already: built in, at a local path, or in the hub's cache."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

from f3rm.backbones.hub import cached_file
from f3rm.backbones.llava_names import INDEX_NAMES, is_vision
from f3rm.backbones.weights import hub_name, joined_parts, local_weights
from f3rm.errors import BackboneRef

_CLIP_SOURCE = "f3rm.backbones.clip.source"
_TRANSFORMERS_NAMES = ("model.safetensors", "pytorch_model.bin")


def weights_at_hand(ref: BackboneRef) -> Path | None:
    """Finds a model's weights without a network and without loading them.

    Args:
        ref: The model; of several that are joined, all must be there.

    Returns:
        The file or folder; None if they would have to be downloaded, or if the adapter belongs to
        another package.

    Raises:
        BackboneUnavailableError: If the weights are a path that does not exist.
        ImportError: If open_clip, which knows where CLIP's tags are published, cannot be imported.
    """
    parts = joined_parts(ref.weights)
    if len(parts) > 1:
        models = ref.model.split(",")
        adapters = ("clip", *("dino" for _ in parts[1:]))
        found = [
            weights_at_hand(replace(ref, adapter=adapter, model=model, weights=weights))
            for adapter, model, weights in zip(adapters, models, parts, strict=True)
        ]
        return found[0] if all(found) else None
    path = local_weights(ref)
    if path is not None:
        return path
    if ref.adapter == "clip":
        repository, names = importlib.import_module(_CLIP_SOURCE).hub_files(ref)
        return cached_file(repository, names) if repository else None
    if ref.adapter == "llava":
        return _sharded(hub_name(ref))
    if ref.adapter in ("dino", "dinov2"):
        return cached_file(hub_name(ref), _TRANSFORMERS_NAMES)
    return None


def _sharded(repository: str) -> Path | None:
    """Finds a checkpoint of several files, of which those with the image tower are needed."""
    index = cached_file(repository, INDEX_NAMES)
    if index is None:
        return cached_file(repository, _TRANSFORMERS_NAMES)
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {file for tensor, file in places.items() if is_vision(tensor)}
    return index if all(cached_file(repository, [shard]) for shard in shards) else None
