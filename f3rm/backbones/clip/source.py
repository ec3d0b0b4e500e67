"""Finds a CLIP reference's architecture, input statistics and weight file.

A reference's weights are an open_clip tag, ``hf-hub:org/name``, a local weight file, or a local
folder in the layout that open_clip publishes on the hub (``open_clip_config.json`` beside the
weights). Hub repositories and folders carry their own architecture and statistics, and the
reference's model name is ignored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from f3rm.backbones.base import Rgb, rgb
from f3rm.backbones.hub import fetch_file, reason_of
from f3rm.backbones.weights import HUB_PREFIX, local_weights, near_matches, unavailable
from f3rm.errors import BackboneRef

CONFIG_NAME = "open_clip_config.json"
WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_REQUIRED_SETTINGS = ("embed_dim", "vision_cfg", "text_cfg")


@dataclass(frozen=True)
class ClipSource:
    """The files and numbers that a CLIP model is built from.

    Attributes:
        config: open_clip's ``model_cfg``: ``embed_dim``, ``vision_cfg``, ``text_cfg``,
            ``quick_gelu``, ...
        checkpoint: The weight file.
        mean: RGB mean of the network's input, for values in [0, 1].
        std: RGB standard deviation, likewise.
    """

    config: Mapping[str, Any]
    checkpoint: Path
    mean: Rgb
    std: Rgb


def find_source(ref: BackboneRef) -> ClipSource:
    """Resolves a reference to files on this machine, downloading a tag or hub name.

    Raises:
        BackboneUnavailableError: If the model, tag, path or hub files are not available.
    """
    path = local_weights(ref)
    if path is not None and path.is_dir():
        return _from_folder(ref, path)
    if path is not None:
        return _with_statistics(_named_config(ref), path, {})
    if ref.weights.startswith(HUB_PREFIX):
        return _from_hub(ref, ref.weights.removeprefix(HUB_PREFIX))
    return _from_tag(ref)


def _from_folder(ref: BackboneRef, folder: Path) -> ClipSource:
    config_file = folder / CONFIG_NAME
    checkpoints = [folder / name for name in WEIGHT_NAMES if (folder / name).is_file()]
    if not config_file.is_file() or not checkpoints:
        needed = f"{CONFIG_NAME} and {' or '.join(WEIGHT_NAMES)}"
        raise unavailable(ref, f"a CLIP folder must hold {needed}, and {str(folder)!r} does not")
    return _from_published(ref, config_file, checkpoints[0])


def _from_hub(ref: BackboneRef, repository: str) -> ClipSource:
    try:
        config_file = fetch_file(repository, [CONFIG_NAME])
        checkpoint = fetch_file(repository, WEIGHT_NAMES)
    except (OSError, ValueError) as error:
        raise unavailable(ref, reason_of(error)) from error
    return _from_published(ref, config_file, checkpoint)


def _from_published(ref: BackboneRef, config_file: Path, checkpoint: Path) -> ClipSource:
    try:
        published = json.loads(config_file.read_text(encoding="utf-8"))
        config, preprocessing = dict(published["model_cfg"]), published.get("preprocess_cfg", {})
    except (ValueError, KeyError, TypeError) as error:
        raise unavailable(ref, f"{str(config_file)!r} holds no model_cfg ({error!r})") from error
    lacking = [name for name in _REQUIRED_SETTINGS if name not in config]
    if lacking:
        raise unavailable(ref, f"the model_cfg of {str(config_file)!r} lacks {', '.join(lacking)}")
    return _with_statistics(config, checkpoint, preprocessing)


def _from_tag(ref: BackboneRef) -> ClipSource:
    """Resolves an open_clip tag.

    The activation follows the tag, not the model's name: OpenAI's weights under the plain
    ``ViT-L-14`` would run with GELU, although they were trained with QuickGELU, and open_clip only
    warns of it.
    """
    config = _named_config(ref)
    model = _config_name(ref)
    pretrained = open_clip.get_pretrained_cfg(model, ref.weights)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise unavailable(ref, f"open_clip knows no such tag; {near_matches(ref.weights, tags)}")
    repository, names = hub_files(ref)
    try:
        if repository:
            checkpoint = fetch_file(repository, names)
        else:
            checkpoint = Path(open_clip.download_pretrained(pretrained))
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(ref, reason_of(error)) from error
    # Also False where the tag does not say: a config of the name "...-quickgelu" must not win.
    config["quick_gelu"] = bool(pretrained.get("quick_gelu", False))
    return _with_statistics(config, checkpoint, pretrained)


def hub_files(ref: BackboneRef) -> tuple[str, Sequence[str]]:
    """Returns the hub repository of a tag or hub name, and the possible names of its weight file.

    The repository is empty if open_clip knows none.
    """
    if ref.weights.startswith(HUB_PREFIX):
        return ref.weights.removeprefix(HUB_PREFIX), WEIGHT_NAMES
    pretrained = open_clip.get_pretrained_cfg(_config_name(ref), ref.weights)
    repository, _, file_name = pretrained.get("hf_hub", "").rpartition("/")
    return repository, [file_name] if file_name else WEIGHT_NAMES


def _named_config(ref: BackboneRef) -> dict[str, Any]:
    config = open_clip.get_model_config(_config_name(ref))
    if config is None:
        known = near_matches(ref.model, open_clip.list_models())
        raise unavailable(ref, f"open_clip knows no such model; {known}")
    return config


def _config_name(ref: BackboneRef) -> str:
    return ref.model.replace("/", "-")


def _with_statistics(
    config: Mapping[str, Any], checkpoint: Path, preprocessing: Mapping[str, Any]
) -> ClipSource:
    mean = rgb(preprocessing.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = rgb(preprocessing.get("std") or open_clip.OPENAI_DATASET_STD)
    return ClipSource(config, checkpoint, mean, std)
