"""VISSL's YAML configuration of a feature extraction, as taps, file sizes and layer names.

It reads ``MODEL.FEATURE_EVAL_SETTINGS``, ``EXTRACT_FEATURES``, ``MODEL.HEAD`` (the heads to build)
and ``MODEL.TRUNK`` (the model that the weights must be of). Datasets, distributed settings and
optimisers are ignored: the command line says these.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f3rm.backbones.module.vissl_heads import HeadError, with_heads
from f3rm.backbones.taps import Op, Tap
from f3rm.backbones.weights import near_matches
from f3rm.errors import BackboneRef
from f3rm.extract.tables.run import Shard
from f3rm.store.geometry import Prep
from f3rm.store.settings import read_settings
from f3rm.store.spec import FeatureSpec, SpecError

_OPS: Mapping[str, str | None] = {
    "AvgPool2d": "avg",
    "MaxPool2d": "max",
    "AdaptiveAvgPool2d": "adaptive_avg",
    "AdaptiveMaxPool2d": "adaptive_max",
    "Identity": None,
}
_RESNET = re.compile(r"resnet(?P<depth>\d+)")
_SIZE = 224
_LAST = "res5avg"
"""The layer of a residual trunk that its head reads."""


@dataclass(frozen=True)
class VisslSettings:
    """The settings of a VISSL configuration that concern extraction.

    Attributes:
        taps: The taps.
        layers: Tap -> layer in VISSL's file names.
        shard: Items per file.
        prep: Preparation of the images, by the transforms of ``DATA.TRAIN``.
        output_dir: Folder of the results; None if the configuration names none.
        heads: ``HEAD.PARAMS`` if the heads are read; None if the trunk is.
        batchnorm_eps: Epsilon of the heads' batch norms.
        depth: Number of layers of the residual trunk; None if the configuration does not say.
    """

    taps: tuple[str, ...]
    layers: Mapping[str, str]
    shard: Shard
    prep: Prep
    output_dir: Path | None
    heads: tuple[object, ...] | None = None
    batchnorm_eps: float = 1e-5
    depth: int | None = None

    def spec(self, backbone: BackboneRef, prep: Prep, **settings: Any) -> FeatureSpec:
        """Returns the specification for a model and a preparation; by default in float32.

        Raises:
            SpecError: If the model is not the configuration's, or a head cannot be built.
        """
        found = _RESNET.search(backbone.model)
        if self.depth is not None and found and int(found["depth"]) != self.depth:
            msg = (
                f"The configuration's model has depth {self.depth} (MODEL.TRUNK.RESNETS.DEPTH), "
                f"got {backbone.model!r}. Give the model that the checkpoint was trained as."
            )
            raise SpecError(msg)
        if self.heads is not None:
            try:
                backbone = with_heads(backbone, self.heads, eps=self.batchnorm_eps)
            except HeadError as error:
                msg = f"{error}. Read the trunk (EXTRACT_TRUNK_FEATURES_ONLY)."
                raise SpecError(msg) from error
        return FeatureSpec(backbone, self.taps, prep, **{"precision": "float32", **settings})


def read_vissl_config(source: Path | str | Mapping[str, Any]) -> VisslSettings:
    """Reads a configuration.

    Args:
        source: The file, or its content.

    Raises:
        SpecError: If it cannot be read, or names an unknown operation.
        TapError: If an operation has impossible arguments.
    """
    plain = source if isinstance(source, Mapping) else read_settings(source, SpecError)
    config = plain.get("config", plain)
    model, extraction = _section(config, "MODEL"), _section(config, "EXTRACT_FEATURES")
    settings = _section(model, "FEATURE_EVAL_SETTINGS")
    try:
        layers = _layers(settings)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        msg = (
            "LINEAR_EVAL_FEAT_POOL_OPS_MAP must be pairs of a layer and an operation with its "
            f"arguments, got: {error}."
        )
        raise SpecError(msg) from error
    head = _section(model, "HEAD")
    depth = _section(_section(model, "TRUNK"), "RESNETS").get("DEPTH")
    folder = extraction.get("OUTPUT_DIR")
    return VisslSettings(
        taps=tuple(layers),
        layers=layers,
        shard=_shard(extraction.get("CHUNK_THRESHOLD", -1)),
        prep=prep_of(_section(_section(config, "DATA"), "TRAIN").get("TRANSFORMS") or []),
        output_dir=Path(str(folder)) if folder else None,
        heads=tuple(head.get("PARAMS") or ()) if "head" in layers else None,
        batchnorm_eps=float(head.get("BATCHNORM_EPS", 1e-5)),
        depth=None if depth is None else int(depth),
    )


def prep_of(transforms: Sequence[Mapping[str, Any]]) -> Prep:
    """Returns the preparation of VISSL's ``TRANSFORMS``: ``Resize`` and ``CenterCrop``.

    Raises:
        SpecError: If the crop is no square.
    """
    sizes = {step["name"]: step["size"] for step in transforms if "size" in step}
    crop = sizes.get("CenterCrop", sizes.get("Resize", _SIZE))
    if not isinstance(crop, int):
        raise SpecError(f"TRANSFORMS: CenterCrop must cut a square, size: 224, got {crop!r}.")
    short = sizes.get("Resize", crop)
    if not isinstance(short, int):  # torchvision stretches to (height, width)
        return Prep(resize="exact", size=tuple(short), fit="crop", interpolation="bilinear")
    return Prep("short", short, fit="crop", interpolation="bilinear", crop=crop)


def tap_of(layer: str, operation: Sequence[Any], *, flatten: bool) -> str:
    """Returns an entry ``[layer, [operation, arguments]]`` of the layer-pool map as a tap.

    Args:
        layer: Such as ``res4``.
        operation: Such as ``["AvgPool2d", [[8, 8], 3, 0]]``.
        flatten: Whether the values of an item become one axis.

    Raises:
        SpecError: If the operation is unknown.
        TapError: If its arguments are impossible.
    """
    name = str(operation[0])
    if name not in _OPS:
        raise SpecError(f"There is no operation {name!r}; {near_matches(name, _OPS)}")
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
    """Returns tap -> layer in VISSL's file names, in the configuration's order."""
    flatten = bool(settings.get("SHOULD_FLATTEN_FEATS", True))
    if settings.get("FREEZE_TRUNK_AND_HEAD"):
        return {"head": "heads"}
    wanted = settings.get("LINEAR_EVAL_FEAT_POOL_OPS_MAP") or []
    if not wanted:
        return {tap_of(_LAST, ["Identity", []], flatten=flatten): "heads"}
    taps = [tap_of(str(layer), operation, flatten=flatten) for layer, operation in wanted]
    layers = [str(layer) for layer, _ in wanted]
    numbered = [  # res4, res4_1, res4_2: a layer may be pooled in several ways
        f"{layer}_{before}" if (before := layers[:index].count(layer)) else layer
        for index, layer in enumerate(layers)
    ]
    return dict(zip(taps, numbered, strict=True))


def _shard(threshold: object) -> Shard:
    """Returns the items per file that ``CHUNK_THRESHOLD`` means: 0 a batch, negative all."""
    if threshold == 0:
        return "batch"
    if isinstance(threshold, int) and threshold > 0:
        return threshold
    return "all"


def _number(value: object) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    height, width = _pair(value)
    return height if height == width else (height, width)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return value[0], value[1]
    raise SpecError(f"Arguments of a pooling must be numbers or (height, width), got {value!r}.")


def _section(config: object, name: str) -> Mapping[str, Any]:
    section = config.get(name, {}) if isinstance(config, Mapping) else {}
    return section if isinstance(section, Mapping) else {}
