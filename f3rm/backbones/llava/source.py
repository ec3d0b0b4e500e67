"""Reads the vision half out of a LLaVA-style checkpoint without touching the language model.

The index of a sharded checkpoint lists the file of each tensor. Only files that hold the image
tower or the projector are opened, and only these tensors are read. A checkpoint without a tower of
its own names one (``mm_vision_tower``), which is read instead.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from f3rm.backbones.checkpoint import INDEX_NAMES, read_index, read_state_dict
from f3rm.backbones.hub import fetch_file, reason_of
from f3rm.backbones.llava.names import PROJECTOR, TOWER, is_vision
from f3rm.backbones.weights import HUB_PREFIX, local_weights, unavailable
from f3rm.errors import BackboneRef

SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")

_OPENAI_TOWER = re.compile(r"(?:^|[/\\])clip-vit-(?:base|large)-patch\d+(?:-336)?/?$")
_HEAD_CHANNELS = 64
"""Channels per attention head in every CLIP that OpenAI published."""
_POSITION_IDS = "position_ids"


@dataclass(frozen=True)
class LlavaParts:
    """The vision half of the model.

    Attributes:
        tower: The image tower.
        projector: Linear layers with GELU between them.
        channels: Channels after the projector: the language model's width.
    """

    tower: CLIPVisionModel
    projector: nn.Sequential
    channels: int


class _Files:
    """A checkpoint's files, in a local folder or on the hub."""

    def __init__(self, ref: BackboneRef, folder: Path | None, repository: str) -> None:
        self._ref = ref
        self._folder = folder
        self._repository = repository

    def fetch(self, names: Iterable[str]) -> Path | None:
        """Returns the first of several files, None if there is none of them."""
        if self._folder is not None:
            return next((self._folder / n for n in names if (self._folder / n).is_file()), None)
        try:
            return fetch_file(self._repository, list(names))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise unavailable(self._ref, reason_of(error)) from error

    def config(self) -> dict[str, Any]:
        """Returns ``config.json``, empty if there is none."""
        file = self.fetch(["config.json"])
        if file is None:
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise unavailable(self._ref, f"{str(file)!r} is no JSON object ({error})") from error

    def tensors(self) -> dict[str, Tensor]:
        """Reads the tensors of tower and projector, whatever the layout."""
        index = self.fetch(INDEX_NAMES)
        shards = [self.fetch(SINGLE_NAMES)] if index is None else self._shards(index)
        state: dict[str, Tensor] = {}
        for shard in shards:
            if shard is None:
                reason = f"it lacks {' or '.join(SINGLE_NAMES)}, or a shard that its index names"
                raise unavailable(self._ref, reason)
            state |= read_state_dict(shard, keep=is_vision)
        return state

    def _shards(self, index: Path) -> list[Path | None]:
        try:
            shards = read_index(index)
        except ValueError as error:
            raise unavailable(self._ref, str(error)) from error
        names = {file for tensor, file in shards.items() if is_vision(tensor)}
        return [self.fetch([name]) for name in sorted(names)]


def read_llava(ref: BackboneRef) -> LlavaParts:
    """Reads the image tower and the projector in fp32, frozen and in evaluation mode.

    Args:
        ref: See :meth:`f3rm.backbones.llava.backbone.LlavaBackbone.load`.

    Raises:
        BackboneUnavailableError: If the files are not available, or lack a CLIP tower or projector.
    """
    files = _open(ref, ref.weights or ref.model)
    config = files.config()
    state = files.tensors()
    projector = _build_projector(ref, state)
    tower_state = _tower_state(state)
    if not tower_state:
        named = str(config.get("mm_vision_tower") or "")
        if not named:
            raise unavailable(ref, "it holds no image tower and names none (mm_vision_tower)")
        files = _open(ref, named)
        config = {"mm_vision_tower": named, **files.config()}
        tower_state = _tower_state(files.tensors())
    tower = _build_tower(ref, _description(ref, config), tower_state)
    linears = [module for module in projector if isinstance(module, nn.Linear)]
    inputs, channels = linears[0].in_features, linears[-1].out_features
    if inputs != tower.config.hidden_size:
        width = tower.config.hidden_size
        raise unavailable(ref, f"its projector takes {inputs} channels, its tower has {width}")
    return LlavaParts(tower, projector, channels)


def _open(ref: BackboneRef, name: str) -> _Files:
    path = local_weights(BackboneRef(ref.adapter, ref.model, name))
    if path is not None and not path.is_dir():
        raise unavailable(ref, f"{str(path)!r} is a file; LLaVA's weights are a folder")
    return _Files(ref, path, name.removeprefix(HUB_PREFIX))


def _tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name: TOWER.search(name) for name in state}
    return {
        match["name"]: state[name]
        for name, match in found.items()
        if match is not None and not name.endswith(_POSITION_IDS)
    }


def _build_projector(ref: BackboneRef, state: Mapping[str, Tensor]) -> nn.Sequential:
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = PROJECTOR.search(name)
        if match is not None:
            number = int(match["number"] or match["linear"])
            layers.setdefault(number, {})[match["kind"]] = _own_copy(tensor)
    if not layers or any(set(layer) != {"weight", "bias"} for layer in layers.values()):
        raise unavailable(ref, "it holds no mm_projector made of linear layers")
    modules: list[nn.Module] = []
    for _, layer in sorted(layers.items()):
        outputs, inputs = layer["weight"].shape
        linear = nn.Linear(inputs, outputs, device="meta")
        linear.load_state_dict(layer, assign=True)
        modules += [nn.GELU(), linear] if modules else [linear]
    return nn.Sequential(*modules).eval().requires_grad_(requires_grad=False)


def _own_copy(tensor: Tensor) -> Tensor:
    """Copies to fp32, so that the file does not stay mapped."""
    return tensor.to(torch.float32, copy=True)


def _description(ref: BackboneRef, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the configuration of a checkpoint's image tower; None for one of OpenAI's CLIPs.

    The number of attention heads is in no tensor's shape, and another number gives other features.

    Raises:
        BackboneUnavailableError: If neither the checkpoint nor its tower's has a configuration.
    """
    described = _vision_config(config)
    named = str(config.get("mm_vision_tower") or "")
    if described is not None or _OPENAI_TOWER.search(named):
        return described
    missing = "its config.json lacks vision_config, so the number of attention heads is not known"
    if not named:
        raise unavailable(ref, f"{missing}; add vision_config, or mm_vision_tower with its name")
    described = _vision_config(_open(ref, named).config())
    if described is None:
        raise unavailable(ref, f"{missing}, and neither has that of its tower {named!r}")
    return described


def _vision_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    described = config.get("vision_config")
    if described is None and config.get("model_type") == "clip_vision_model":
        described = config
    return described if isinstance(described, Mapping) else None


def _build_tower(
    ref: BackboneRef, described: Mapping[str, Any] | None, state: Mapping[str, Tensor]
) -> CLIPVisionModel:
    try:
        with torch.device("meta"):
            tower = CLIPVisionModel(_tower_config(described, state))
        positions = tower.embeddings.position_ids.shape[1]
        tower.load_state_dict(
            {name: _own_copy(tensor) for name, tensor in state.items()}, assign=True
        )
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        mismatch = str(error).splitlines()[-1].strip(" .\t")
        raise unavailable(ref, f"its image tower is no CLIP's ({mismatch})") from error
    # A buffer that no checkpoint holds: on the meta device it would stay without data.
    tower.embeddings.position_ids = nn.Buffer(torch.arange(positions)[None], persistent=False)
    return tower.eval().requires_grad_(requires_grad=False)


def _tower_config(
    described: Mapping[str, Any] | None, state: Mapping[str, Tensor]
) -> CLIPVisionConfig:
    """Takes the configuration where there is one, and else the shapes of OpenAI's CLIPs.

    LLaVA's own checkpoints describe only their language model, and name the tower.
    """
    if described is not None:
        return CLIPVisionConfig(**described)
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    if width % _HEAD_CHANNELS:
        raise ValueError(f"its width {width} is no multiple of {_HEAD_CHANNELS}")
    positions = len(state["embeddings.position_embedding.weight"]) - 1
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len(blocks),
        num_attention_heads=width // _HEAD_CHANNELS,
        patch_size=patch,
        image_size=patch * round(positions**0.5),
        hidden_act="quick_gelu",
    )
