"""Languages: maps from a head's features to the space of a text tower, applied at query time.

A feature that its own model has no words for, as RADIO's, is asked through such a map. Hidden
vectors are composited first and projected to one feature per pixel; the map is applied once to it.
A linear map without bias stays in the hidden channels altogether.

A language is a ``.safetensors`` file: in ``languages`` beside a run's ``config.yml``, or beside
local weights of the backbone. Its tensors are ``linear.weight`` with or without ``linear.bias``, or
a small network in the layout of RADIO's adaptors: ``fc1``, residual ``blocks`` and ``final``, where
norm and GELU come before each linear layer but ``fc1``, and before that one if there is a
``pre_norm``. Its metadata name the text tower.

*Source:* the layout is that of github.com/NVlabs/RADIO, radio/adaptor_mlp.py, version 2. The map
for text is the one of the summary, as RayFronts (Alama et al. 2025) applies it to patches.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.weights import near_matches
from f3rm.errors import BackboneRef, F3rmError, HeadSpec, StrPath, as_path
from f3rm.store.spec import parse_backbone

FOLDER = "languages"
"""Folder of language files, beside ``config.yml`` or beside a backbone's local weights."""

SUFFIX = ".safetensors"

_METADATA = "f3rm.text"
_LAYERS = re.compile(r"linear|fc1|pre_norm\.0|blocks\.\d+\.[02]|final\.[02]")
_OF_RADIO = ("_heads.{}.", "radio_model.adaptors.{}.head_mlp.")


class TextMapError(F3rmError):
    """A language is not available, damaged, or does not fit any head."""


@dataclass(frozen=True)
class TextMap:
    """A linear map or a small network from features to the space of a text tower.

    Attributes:
        tensors: Its parameters in fp32, in the layout that the module describes.
        text: The text tower.
        name: The language's name.
    """

    tensors: Mapping[str, Tensor]
    text: BackboneRef
    name: str = ""

    def __post_init__(self) -> None:
        weights = {name.rpartition(".")[0] for name in self.tensors}
        linear = weights == {"linear"}
        if not (linear or ({"fc1", "final.0", "final.2"} <= weights and "linear" not in weights)):
            raise self._broken(f"it has the layers {', '.join(sorted(weights)) or 'none'}")
        strange = sorted(name for name in weights if not _LAYERS.fullmatch(name))
        if strange:
            raise self._broken(f"there is no layer {strange[0]!r} in such a map")
        try:  # all shapes at once
            reached = self(torch.zeros(1, self.channels))
        except (RuntimeError, KeyError) as error:
            raise self._broken(f"its layers do not fit each other ({error})") from error
        if not bool(torch.isfinite(reached).all()):
            raise self._broken("it gives NaN or infinity")

    def _broken(self, reason: str) -> TextMapError:
        return TextMapError(
            f"The language {self.name!r} is no map from features to texts: {reason}. "
            "docs/encoders.md describes the file."
        )

    @property
    def channels(self) -> int:
        """Channels of the features that it takes."""
        first = self.tensors.get("linear.weight", self.tensors.get("fc1.weight"))
        if first is None or first.ndim != 2:
            raise self._broken("its first layer has no weight of two axes")
        return first.shape[1]

    @property
    def matrix(self) -> Float[Tensor, "texts channels"] | None:
        """The whole map, if it is linear without bias."""
        return self.tensors["linear.weight"] if len(self.tensors) == 1 else None

    def __call__(
        self, features: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch text_channels"]:
        """Maps features of any length; the result is not normalised."""
        if "linear.weight" in self.tensors:
            return self._linear("linear", features)
        values = self._activated("pre_norm.0", features) if self._has("pre_norm.0") else features
        values = self._linear("fc1", values)
        block = 0
        while self._has(f"blocks.{block}.2"):
            change = self._activated(f"blocks.{block}.0", values)
            values = values + self._linear(f"blocks.{block}.2", change)
            block += 1
        return self._linear("final.2", self._activated("final.0", values))

    def _has(self, layer: str) -> bool:
        return f"{layer}.weight" in self.tensors

    def _linear(self, layer: str, values: Tensor) -> Tensor:
        bias = self.tensors.get(f"{layer}.bias")
        weight = self.tensors[f"{layer}.weight"].to(values)
        return functional.linear(values, weight, None if bias is None else bias.to(values))

    def _activated(self, layer: str, values: Tensor) -> Tensor:
        weight, bias = (self.tensors[f"{layer}.{kind}"].to(values) for kind in ("weight", "bias"))
        return functional.gelu(functional.layer_norm(values, weight.shape, weight, bias))

    @classmethod
    def load(cls, path: StrPath) -> "TextMap":
        """Reads a language file; nothing in it is executed.

        Raises:
            TextMapError: If it names no text tower, or is no such map.
            BackboneUnavailableError: If it is not readable.
        """
        path = as_path(path)
        tensors = read_state_dict(path)
        with safe_open(path, framework="pt") as file:
            plain = (file.metadata() or {}).get(_METADATA, "")
        try:
            text = BackboneRef(**json.loads(plain))
        except (ValueError, TypeError) as error:
            msg = (
                f"{str(path)!r} names no text tower. Write it with TextMap.save, or read RADIO's "
                "checkpoint with TextMap.of_radio."
            )
            raise TextMapError(msg) from error
        return cls({name: tensor.float() for name, tensor in tensors.items()}, text, path.stem)

    @classmethod
    def of_radio(cls, checkpoint: StrPath, adaptor: str, *, text: str) -> "TextMap":
        """Reads an adaptor out of a checkpoint of RADIO in its authors' layout.

        Args:
            checkpoint: A ``.safetensors`` file, or one that holds nothing but tensors.
            adaptor: Its name, e.g. ``siglip2-g``, or its number.
            text: The text tower, e.g. ``siglip2:google/siglip2-giant-opt-patch16-384``.

        Raises:
            TextMapError: If the checkpoint has no such adaptor.
            BackboneUnavailableError: If it is not readable.
        """
        prefixes = tuple(prefix.format(adaptor) for prefix in _OF_RADIO)
        state = read_state_dict(as_path(checkpoint), keep=lambda name: name.startswith(prefixes))
        if not state:
            msg = (
                f"{str(checkpoint)!r} has no adaptor {adaptor!r}: no tensor's name begins with "
                f"{' or '.join(prefixes)}."
            )
            raise TextMapError(msg)
        (prefix,) = {prefix for prefix in prefixes for name in state if name.startswith(prefix)}
        tensors = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items()}
        ref = parse_backbone(text)
        return cls(tensors, replace(ref, weights=ref.weights or ref.model), adaptor)

    def save(self, path: StrPath) -> None:
        """Writes a file that :meth:`load` reads; its stem is the language's name."""
        path = as_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata={_METADATA: json.dumps(asdict(self.text))})


def language_files(run: Path, specs: Mapping[str, HeadSpec]) -> dict[str, Path]:
    """Returns the languages of a run by name: its own, and those beside its backbones' weights.

    Args:
        run: The folder of its ``config.yml``.
        specs: Its heads.
    """
    backbones = (Path(spec.backbone.weights).expanduser() for spec in specs.values())
    places = [place if place.is_dir() else place.parent for place in backbones if place.exists()]
    files = [file for place in (*places, run) for file in (place / FOLDER).glob(f"*{SUFFIX}")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.is_relative_to(run))}


def load_language(wanted: StrPath, files: Mapping[str, Path]) -> TextMap:
    """Loads a language by its name, or by the path of its file.

    Args:
        wanted: Name or path.
        files: The languages by name.

    Raises:
        TextMapError: If there is none of that name, or the file is no language.
        BackboneUnavailableError: If the file is not readable.
    """
    path = files.get(str(wanted), as_path(wanted).expanduser())
    if path.suffix != SUFFIX or not path.is_file():
        msg = (
            f"There is no language {str(wanted)!r}; {near_matches(str(wanted), files)} "
            f"Put its {SUFFIX} file into the folder {FOLDER} beside config.yml, or give its path."
        )
        raise TextMapError(msg)
    return TextMap.load(path)


def head_of_language(language: TextMap, specs: Mapping[str, HeadSpec]) -> str:
    """Returns the head that a language translates: of its channels, first one without texts.

    Raises:
        TextMapError: If no head has its channels.
    """
    fitting = [spec for spec in specs.values() if spec.channels == language.channels]
    if not fitting:
        heads = ", ".join(str(spec) for spec in specs.values()) or "none"
        msg = (
            f"The language {language.name!r} takes features of {language.channels} channels; the "
            f"heads here are {heads}."
        )
        raise TextMapError(msg)
    return min(fitting, key=lambda spec: spec.has_text).name
