"""VISSL's YAML of a feature extraction, read as taps, chunk policy and layer names.

Read are ``MODEL.FEATURE_EVAL_SETTINGS`` and ``EXTRACT_FEATURES``; the rest (datasets, distributed
settings, optimisers) has its place elsewhere. ``MODEL.HEAD`` says which heads are built, and
``MODEL.TRUNK`` which model the weights must be of.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f3rm.backbones.module.vissl_heads import HeadError, with_heads
from f3rm.backbones.tap_ops import Op
from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import BackboneRef
from f3rm.extract.taps.prep import Prep
from f3rm.extract.taps.run import Shard
from f3rm.extract.taps.settings import read_yaml
from f3rm.extract.taps.spec import ExtractionSpec, SpecError

_OPS: Mapping[str, str | None] = {
    "AvgPool2d": "avg",
    "MaxPool2d": "max",
    "AdaptiveAvgPool2d": "adaptive_avg",
    "AdaptiveMaxPool2d": "adaptive_max",
    "Identity": None,
}
_RESNET = re.compile(r"resnet(?P<depth>\d+)")
_LAST = "res5avg"
"""What a residual trunk gives to its head."""


@dataclass(frozen=True)
class VisslSettings:
    """What a VISSL configuration asks for.

    Attributes:
        taps: What is read.
        layers: Tap -> name in VISSL's files.
        shard: How results are cut into files.
        output_dir: Where they go; None if the configuration leaves it open.
        heads: ``HEAD.PARAMS`` where heads are read; None where the trunk is.
        batchnorm_eps: Epsilon of the heads' batch norms.
        depth: Layers of the residual trunk; None if the configuration does not say.
    """

    taps: tuple[str, ...]
    layers: Mapping[str, str]
    shard: Shard
    output_dir: Path | None
    heads: tuple[Any, ...] | None = None
    batchnorm_eps: float = 1e-5
    depth: int | None = None

    def spec(self, backbone: BackboneRef, prep: Prep, **settings: Any) -> ExtractionSpec:
        """Returns the specification for a model and a preparation; float32 unless told else.

        Raises:
            SpecError: If the model is not the configuration's, or a head cannot be built.
        """
        found = _RESNET.search(backbone.model)
        if self.depth is not None and found and int(found["depth"]) != self.depth:
            msg = (
                f"VisslSettings.spec: the model must have the configuration's depth {self.depth} "
                f"(MODEL.TRUNK.RESNETS.DEPTH), got {backbone.model!r}. Give the model that the "
                "checkpoint was trained as."
            )
            raise SpecError(msg)
        if self.heads is not None:
            try:
                backbone = with_heads(backbone, self.heads, eps=self.batchnorm_eps)
            except HeadError as error:
                msg = f"VisslSettings.spec: {error}. Read the trunk (EXTRACT_TRUNK_FEATURES_ONLY)."
                raise SpecError(msg) from error
        return ExtractionSpec(backbone, self.taps, prep, **{"precision": "float32", **settings})


def read_vissl_config(source: Path | str | Mapping[str, Any]) -> VisslSettings:
    """Reads a configuration.

    Args:
        source: The file, or its content.

    Raises:
        SpecError: If it cannot be read, or names an operation that does not exist.
    """
    plain = source if isinstance(source, Mapping) else _read(Path(source))
    config = plain.get("config", plain)
    settings = _section(_section(config, "MODEL"), "FEATURE_EVAL_SETTINGS")
    try:
        layers = _layers(settings)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        msg = (
            "read_vissl_config: LINEAR_EVAL_FEAT_POOL_OPS_MAP must be pairs of a layer and an "
            f"operation with its arguments, got: {error}. Correct the configuration."
        )
        raise SpecError(msg) from error
    extraction = _section(config, "EXTRACT_FEATURES")
    folder = extraction.get("OUTPUT_DIR") or None
    return VisslSettings(
        taps=tuple(layers),
        layers=layers,
        shard=_shard(extraction.get("CHUNK_THRESHOLD", -1)),
        output_dir=Path(str(folder)) if folder else None,
        **_model(_section(config, "MODEL"), heads="head" in layers),
    )


def tap_of(layer: str, operation: Sequence[Any], *, flatten: bool) -> str:
    """Returns an entry ``[layer, [operation, arguments]]`` of the layer-pool map as a tap.

    Args:
        layer: Such as ``res4``.
        operation: Such as ``["AvgPool2d", [[8, 8], 3, 0]]``.
        flatten: Whether the result becomes one axis.

    Raises:
        SpecError: If the operation does not exist.
        TapError: If its arguments make no sense.
    """
    name = str(operation[0])
    if name not in _OPS:
        msg = f"tap_of: the operation must be one of {', '.join(_OPS)}, got {name!r}; "
        raise SpecError(msg + near_matches(name, _OPS))
    ours = _OPS[name]
    ops: list[Op] = []
    if ours is not None:
        arguments = operation[1] if len(operation) > 1 else []
        if ours.startswith("adaptive"):
            arguments = _pair(arguments[0] if len(arguments) == 1 else arguments)
            ops.append(Op(ours, arguments))
        else:
            ops.append(Op(ours, tuple(_number(argument) for argument in arguments)))
    if flatten:
        ops.append(Op("flatten"))
    return str(Tap(layer, ops=tuple(ops)))


def _layers(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns tap -> layer name, in the order of the request."""
    flatten = bool(settings.get("SHOULD_FLATTEN_FEATS", True))
    if settings.get("FREEZE_TRUNK_AND_HEAD"):
        return {"head": "heads"}
    wanted = settings.get("LINEAR_EVAL_FEAT_POOL_OPS_MAP") or []
    if not wanted:
        return {tap_of(_LAST, ["Identity", []], flatten=flatten): "heads"}
    taps = [tap_of(str(layer), operation, flatten=flatten) for layer, operation in wanted]
    layers = [str(layer) for layer, _ in wanted]
    numbered = [
        layer if not (before := layers[:index].count(layer)) else f"{layer}_{before}"
        for index, layer in enumerate(layers)
    ]
    return dict(zip(taps, numbered, strict=True))


def _model(model: Mapping[str, Any], *, heads: bool) -> dict[str, Any]:
    """Returns which heads are read, and what the configuration says of the trunk."""
    head = _section(model, "HEAD")
    depth = _section(_section(model, "TRUNK"), "RESNETS").get("DEPTH")
    return {
        "heads": tuple(head.get("PARAMS") or ()) if heads else None,
        "batchnorm_eps": float(head.get("BATCHNORM_EPS", 1e-5)),
        "depth": int(depth) if depth is not None else None,
    }


def _shard(threshold: object) -> Shard:
    if threshold == 0:
        return "batch"
    if isinstance(threshold, int) and threshold > 0:
        return threshold
    return "all"


def _number(value: Any) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    height, width = _pair(value)
    return height if height == width else (height, width)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return value[0], value[1]
    msg = f"tap_of: arguments must be numbers or (height, width), got {value!r}. Correct them."
    raise SpecError(msg)


def _section(config: object, name: str) -> Mapping[str, Any]:
    section = config.get(name, {}) if isinstance(config, Mapping) else {}
    return section if isinstance(section, Mapping) else {}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        plain = read_yaml(path)
    except (OSError, ValueError) as error:
        msg = f"read_vissl_config: {str(path)!r} must be readable YAML, got: {error}"
        raise SpecError(msg) from error
    if not isinstance(plain, Mapping):
        msg = f"read_vissl_config: {str(path)!r} must hold a configuration, got {plain!r}."
        raise SpecError(msg)
    return plain
