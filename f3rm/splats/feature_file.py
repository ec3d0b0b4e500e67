"""The features of a splat, in files beside its ``.ply``: ``scene.clip.safetensors``, one per head.

A file holds, per Gaussian, ``coefficients`` (65 in fp16), ``reliability`` and ``weights`` (how much
it is seen); the head's ``weight`` (channels x 65) and the range of its PCA colours (``pca_*``). The
metadata says what was lifted from where, and the hash of the ``.ply`` that the file belongs to. A
file is complete or not there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from f3rm.colours.pca import PcaBasis
from f3rm.errors import HeadSpec
from f3rm.splats.lifting import HIDDEN
from f3rm.splats.ply import SplatFileError
from f3rm.store.chunks import write_atomically
from f3rm.store.names import safe_part

SUFFIX = ".safetensors"
NOTE = "f3rm"
_VERSION = 1
_PCA = ("mean", "components", "low", "high")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class HeadFeatures:
    """One head's features on a splat.

    Attributes:
        spec: The head.
        coefficients: Hidden vectors of the Gaussians.
        weight: From hidden vectors to features.
        reliability: Whether the photographs agree about a Gaussian, in [0, 1].
        weights: Sum of its compositing weights over the photographs' pixels.
        pca: Basis and range of the PCA colours.
        provenance: What it was made from, as plain values: ``dataset_from_source`` is the map from
            the file's frame to that of transforms.json, 4 x 4.
    """

    spec: HeadSpec
    coefficients: Float[Tensor, "gaussians hidden"]
    weight: Float[Tensor, "channels hidden"]
    reliability: Float[Tensor, " gaussians"]
    weights: Float[Tensor, " gaussians"]
    pca: PcaBasis
    provenance: Mapping[str, Any]


def feature_file(ply: Path, head: str) -> Path:
    """Returns the file of a head's features."""
    return ply.with_name(f"{ply.stem}.{safe_part(head)}{SUFFIX}")


def content_key(ply: Path) -> str:
    """Returns the hash of a file's content.

    Raises:
        SplatFileError: If it cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        with ply.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise SplatFileError(f"Cannot read {str(ply)!r}: {error}.") from error
    return f"xxh3_128:{digest.hexdigest()}"


def write_head(ply: Path, head: HeadFeatures) -> Path:
    """Writes a head's features beside a ``.ply``, atomically; returns their file.

    Raises:
        CacheError: If the file system refuses.
    """
    arrays = {
        "coefficients": head.coefficients.half(),
        "weight": head.weight.float(),
        "reliability": head.reliability.half(),
        "weights": head.weights.float(),
        **{f"pca_{name}": getattr(head.pca, name).float() for name in _PCA},
    }
    note = {
        "version": _VERSION,
        "ply": content_key(ply),
        "head": head.spec.to_dict(),
        "provenance": dict(head.provenance),
    }
    arrays = {name: array.contiguous().cpu() for name, array in arrays.items()}
    content = save(arrays, metadata={NOTE: json.dumps(note)})
    path = feature_file(ply, head.spec.name)
    write_atomically(path, lambda stream: stream.write(content))
    return path


def read_heads(ply: Path, num_gaussians: int) -> dict[str, HeadFeatures]:
    """Reads the features beside a ``.ply``, by the name of their head.

    Args:
        ply: The ``.ply``.
        num_gaussians: How many Gaussians it has.

    Raises:
        SplatFileError: If a file is damaged, or belongs to another ``.ply``.
    """
    found = sorted(ply.parent.glob(f"{_escaped(ply.stem)}.*{SUFFIX}"))
    key = content_key(ply) if found else ""
    heads = (_read_head(path, ply, key, num_gaussians) for path in found)
    return {head.spec.name: head for head in heads}


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def _read_head(path: Path, ply: Path, key: str, num_gaussians: int) -> HeadFeatures:
    try:
        with safe_open(path, "pt") as stored:
            note = json.loads((stored.metadata() or {})[NOTE])
            arrays: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if note["version"] != _VERSION:
            raise _damaged(path, f"its version is {note['version']}, not {_VERSION}")
        spec = msgspec.convert(note["head"], HeadSpec)
        provenance = dict(note["provenance"])
        _check_shapes(arrays, num_gaussians, spec.channels)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if note["ply"] != key:
        raise SplatFileError(
            f"{str(path)!r} has features of another {ply.name!r}: that file has changed since. "
            "Remove the features and run f3rm attach again."
        )
    return HeadFeatures(
        spec,
        arrays["coefficients"],
        arrays["weight"],
        arrays["reliability"],
        arrays["weights"],
        PcaBasis(*(arrays[f"pca_{name}"] for name in _PCA)),
        provenance,
    )


def _check_shapes(arrays: Mapping[str, Tensor], num_gaussians: int, channels: int) -> None:
    expected = {
        "coefficients": (num_gaussians, HIDDEN),
        "weight": (channels, HIDDEN),
        "reliability": (num_gaussians,),
        "weights": (num_gaussians,),
        "pca_mean": (channels,),
        "pca_components": (channels, 3),
        "pca_low": (3,),
        "pca_high": (3,),
    }
    for name, shape in expected.items():
        array = arrays[name]
        if tuple(array.shape) != shape or not array.is_floating_point():
            raise ValueError(f"{name} must be of shape {shape}, got {tuple(array.shape)}")
        if not bool(torch.isfinite(array).all()):
            raise ValueError(f"{name} has values that are not finite")


def _damaged(path: Path, reason: str) -> SplatFileError:
    return SplatFileError(
        f"{str(path)!r} holds no features of a splat: {reason}. Remove it and run f3rm attach "
        "again."
    )
