"""The specification of an extraction: one model, where it is read, and how images are prepared.

The cache of a feature field is the case of one dense tap, and has a name: a feature type is a
preset's name, an alias, the name of a third-party adapter (entry-point group ``f3rm.backbones``),
or several of these joined by ``+``. No other code depends on a type's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import xxhash
import yaml

from f3rm.backbones.taps import Tap, parse_taps
from f3rm.errors import BackboneRef, F3rmError, FeatureTypeError, StrPath, as_path
from f3rm.store.codecs import CodecSpec, parse_codec
from f3rm.store.geometry import Prep
from f3rm.store.settings import (
    PYRAMID,
    absolute_if_local,
    by_type,
    parse_weights,
    read_settings,
    settings_of,
    split_type,
    suggestion,
)
from f3rm.store.video import FramePolicy

ALGORITHM_VERSION = 2
"""Increased when decoding, resizing or normalising changes: caches of an older one do not match."""

ENTRY_POINT_GROUP = "f3rm.backbones"

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")

_UNNAMED = re.compile(r"^[^a-z0-9]+|[^a-z0-9._-]")
"""Letters of an adapter's name that the name of a specification cannot have."""

Background = Literal["black", "white"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""A network's precision; ``auto`` becomes that of an existing cache, else the device's best."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
"""The precisions a cache can have, which ``auto`` becomes."""


class SpecError(F3rmError):
    """A specification is incomplete, or one of its settings is impossible."""


@dataclass(frozen=True)
class FeatureSpec:
    """Everything besides the images that determines the features of a cache.

    Attributes:
        backbone: The model.
        taps: Where the model is read, as :mod:`f3rm.backbones.taps` writes it; the texts are also
            the names of the results.
        prep: Preparation of the network inputs.
        frames: Selection of the frames of videos.
        background: RGB colour in [0, 1] behind images with an alpha channel.
        precision: float32, or mixed with one of the half types; or ``auto``, which is satisfied by
            a cache of any precision, and otherwise becomes the device's best.
        codec: Numbers on disk: ``fp32``, ``fp16``, ``int8`` or ``pca<d>``, which
            :mod:`~f3rm.store.codecs` explains; a chunk that fp16 cannot hold is stored as fp32.
            ``int8`` and ``pca`` take one tap.
        name: Short lower-case name, which is also the name of a cache folder; by default that of
            the adapter.
    """

    backbone: BackboneRef
    taps: tuple[str, ...]
    prep: Prep = field(default_factory=Prep)
    frames: FramePolicy = field(default_factory=FramePolicy)
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    precision: Precision = "auto"
    codec: str = "fp32"
    name: str = ""

    def __post_init__(self) -> None:
        name = self.name or _UNNAMED.sub("-", self.backbone.adapter.lower()) or "taps"
        if not _SLUG.fullmatch(name):
            raise FeatureTypeError(
                "A feature type's name must be lower-case letters, digits, '.', '_' or '-', got "
                f"{name!r}."
            )
        taps = tuple(str(tap) for tap in parse_taps(self.taps))
        repeated = sorted({tap for tap in taps if taps.count(tap) > 1})
        if not taps or repeated:
            found = f"{repeated[0]!r} twice" if repeated else "none"
            raise SpecError(f"taps must be one or more, each once, got {found}.")
        if not all(0 <= channel <= 1 for channel in self.background):
            raise SpecError(f"background must be three numbers in [0, 1], got {self.background}.")
        codec = parse_codec(self.codec)
        if codec.name != "none" and len(taps) > 1:
            raise SpecError(
                f"--codec {codec.text} stores one tap, got {len(taps)}. Take fp16 or fp32."
            )
        for attribute, value in (("name", name), ("taps", taps), ("codec", codec.text)):
            object.__setattr__(self, attribute, value)

    @property
    def stored(self) -> CodecSpec:
        """The parsed :attr:`codec`."""
        return parse_codec(self.codec)

    @classmethod
    def of(
        cls, backbone: str | BackboneRef, taps: str | Sequence[str], **settings: Any
    ) -> "FeatureSpec":
        """Makes a specification from short forms.

        Args:
            backbone: ``adapter:model`` or ``adapter:model@weights``, a feature type, or a
                reference.
            taps: One or several.
            settings: Further fields; ``prep`` and ``frames`` may be mappings.

        Raises:
            SpecError: If a setting is unknown or has an impossible value.
            TapError: If a tap is malformed.
        """
        return cls.from_dict({"backbone": backbone, "taps": taps, **settings})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "FeatureSpec":
        """Rebuilds the value written by :meth:`to_dict`; missing settings have their defaults.

        Raises:
            SpecError: If a field is unknown, missing or of the wrong kind.
            TapError: If a tap is malformed.
        """
        missing = [name for name in ("backbone", "taps") if name not in plain]
        if missing:
            raise SpecError(f"A specification needs backbone and taps, but has no {missing[0]!r}.")
        backbone, taps = plain["backbone"], plain["taps"]
        if isinstance(backbone, str):
            backbone = parse_backbone(backbone)
        elif isinstance(backbone, Mapping):
            backbone = {"weights": "", **backbone}
        listed = [taps] if isinstance(taps, str | Tap) else taps
        if isinstance(listed, list | tuple):
            listed = [str(tap) if isinstance(tap, Tap) else tap for tap in listed]
        return settings_of(cls, {**plain, "backbone": backbone, "taps": listed}, SpecError)

    @classmethod
    def load(cls, path: StrPath) -> "FeatureSpec":
        """Reads a YAML or JSON file.

        Raises:
            SpecError: If it cannot be read, or is not a specification.
            TapError: If a tap is malformed.
        """
        return cls.from_dict(read_settings(path, SpecError))

    def to_dict(self) -> dict[str, Any]:
        """Returns lists, dicts, texts and numbers, for YAML and JSON."""
        return json.loads(json.dumps(asdict(self)))  # makes lists of tuples

    def save(self, path: StrPath) -> None:
        """Writes a YAML file that :meth:`load` reads."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        as_path(path).write_text(text, encoding="utf-8")

    def settings(
        self, weights_identity: str, algorithm: int = ALGORITHM_VERSION
    ) -> dict[str, object]:
        """Returns all that the features depend on by name, for hashing and for messages.

        Args:
            weights_identity: Identity of :attr:`backbone`'s weights, wherever they are stored, from
                :func:`f3rm.backbones.weights.weights_identity`.
            algorithm: Version of the preparation.

        Raises:
            FeatureTypeError: If the precision is still ``auto``.
        """
        if self.precision == "auto":
            raise FeatureTypeError(
                f"{self.name}: precision must be one of {', '.join(PRECISIONS)} before "
                "features are recorded, got 'auto'. Choose one with FeatureSpec.settled."
            )
        plain = self.to_dict()
        del plain["name"], plain["backbone"]
        prep, frames = plain.pop("prep"), plain.pop("frames")
        if prep["crop"] is None:  # as in caches from before there was one
            del prep["crop"]
        return {
            "algorithm": algorithm,
            "adapter": self.backbone.adapter,
            "model": self.backbone.model,
            "weights": weights_identity,
            **plain,
            **prep,
            **{f"frames.{name}": value for name, value in frames.items()},
        }

    def key(self, weights_identity: str, algorithm: int = ALGORITHM_VERSION) -> str:
        """Returns a hash of :meth:`settings`: equal keys and images make equal features."""
        canonical = json.dumps(
            self.settings(weights_identity, algorithm), sort_keys=True, separators=(",", ":")
        )
        return xxhash.xxh3_128(canonical.encode()).hexdigest()

    def settled(self, preferred: Precision) -> tuple["FeatureSpec", ...]:
        """Returns this specification with each precision that ``auto`` allows, preferred one first.

        Args:
            preferred: Precision where nothing is cached.
        """
        if self.precision != "auto":
            return (self,)
        precisions = dict.fromkeys((preferred, *PRECISIONS))
        return tuple(replace(self, precision=precision) for precision in precisions)


def parse_backbone(text: str) -> BackboneRef:
    """Reads ``adapter:model``, or a feature type for its model; both with ``@weights`` or without.

    Raises:
        SpecError: If there is no adapter or no model.
    """
    name, _, own_weights = text.partition("@")
    if name.upper() in PRESETS:
        known = PRESETS[name.upper()].backbone
        return replace(known, weights=own_weights or known.weights)
    adapter, _, rest = text.partition(":")
    model, _, weights = rest.partition("@")
    if not adapter or not model:
        raise SpecError(
            f"A backbone is adapter:model@weights or a feature type, got {text!r}. Write e.g. "
            "dinov2:facebook/dinov2-base; f3rm models lists adapters and types."
        )
    return BackboneRef(adapter, model, weights)


def _preset(name: str, backbone: BackboneRef, tap: str, side: int, **prep: Any) -> FeatureSpec:
    return FeatureSpec(backbone, (tap,), Prep(size=side, **prep), codec="fp16", name=name)


_MASKCLIP = "-1|dense(maskclip)"
_VALUES = "-1|dense(values)"


def _on_hub(adapter: str, name: str) -> BackboneRef:
    return BackboneRef(adapter, name, name)


_ROBOPOINT = _on_hub("llava", "wentao-yuan/robopoint-v1-vicuna-v1.5-13b")

PRESETS: Mapping[str, FeatureSpec] = {
    "CLIP": _preset(
        "clip", BackboneRef("clip", "ViT-L-14-336-quickgelu", "openai"), _MASKCLIP, 1024
    ),
    "DINO": _preset("dino", _on_hub("dino", "facebook/dino-vits8"), "final", 448),
    "DINOV2": _preset("dinov2", _on_hub("dinov2", "facebook/dinov2-large"), "final", 518),
    "DINOV3": _preset(
        "dinov3", _on_hub("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m"), "final", 1024
    ),
    "TIPSV2": _preset("tipsv2", _on_hub("tipsv2", "google/tipsv2-l14"), _VALUES, 896),
    "SIGLIP2": _preset(
        "siglip2", _on_hub("siglip2", "google/siglip2-large-patch16-512"), _VALUES, 1024
    ),
    "PE": _preset("pe", BackboneRef("pe", "PE-Core-L-14-336", "meta"), _VALUES, 896),
    "RADIO": _preset("radio", _on_hub("radio", "nvidia/C-RADIOv4-H"), "final", 1024),
    "PROXYCLIP": _preset(
        "proxyclip",
        BackboneRef(
            "proxyclip", "ViT-B-16-quickgelu,facebook/dino-vitb8", "openai,facebook/dino-vitb8"
        ),
        "-1|dense(proxy)",
        448,
    ),
    "ROBOPOINTPROJ": _preset("robopointproj", _ROBOPOINT, "-2|proj", 336, fit="square"),
    "ROBOPOINTNOPROJ": _preset("robopointnoproj", _ROBOPOINT, "-2", 336, fit="square"),
    "TINYCLIP": _preset(
        "tinyclip", BackboneRef("clip", "tinyclip", "builtin:tinyclip"), _MASKCLIP, 360
    ),
}
"""The built-in feature types by upper-case name."""

BACKGROUNDS: Mapping[Background, tuple[float, float, float]] = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
"""Colours behind images with an alpha channel."""

ALIASES: Mapping[str, str] = {"DINOCLIP": "DINO+CLIP"}
"""Names for combinations."""


def resolve_feature_type(
    text: str,
    *,
    weights: Mapping[str, str] | Sequence[str] = (),
    short_side: Mapping[str, int] | None = None,
    background: Background = "black",
    codec: str = "fp16",
    precision: Precision = "auto",
) -> tuple[FeatureSpec, ...]:
    """Looks up a feature type by name, in upper or lower case.

    Args:
        text: A type, an alias, or several joined by ``+``, e.g. ``"DINO+CLIP"``; with settings in
            brackets, which :mod:`~f3rm.store.settings` explains.
        weights: Weights other than the default, by type: a mapping, or entries like
            ``"CLIP=PATH"``.
        short_side: Resizing other than the default, by type, in pixels.
        background: Colour behind images with alpha; with its default background, Nerfacto trains
            such images over black.
        codec: How features are stored: ``fp16``, ``fp32``, ``int8`` or ``pca<d>``.
        precision: Of the network; ``auto`` takes that of an existing cache, else the one best for
            the device.

    Returns:
        One specification per part, or per scale of its pyramid, in the order of ``text``.

    Raises:
        FeatureTypeError: If a name is unknown or used twice, or an override names a type that is
            not used, or the codec or a setting is unknown.
        PrepError: If a size, a window or scales are impossible.
        TapError: If a tap in brackets is malformed.
    """
    named = [
        (part, changes)
        for name, changes in split_type(text)
        for part in ALIASES.get(name, name).split("+")
    ]
    parts = [part for part, _ in named]
    repeated = sorted({part for part in parts if parts.count(part) > 1})
    if repeated:
        raise FeatureTypeError(
            f"--feature-type must name each type once, got {text!r} with {repeated[0]} twice. Drop "
            "one."
        )
    common = {"background": BACKGROUNDS[background], "precision": precision, "codec": codec}
    specs = {part: _changed(_lookup(part), {**changes, **common}) for part, changes in named}
    for part, path in by_type("--weights", parse_weights(weights), parts).items():
        backbone = replace(specs[part].backbone, weights=absolute_if_local(path))
        specs[part] = replace(specs[part], backbone=backbone)
    for part, side in by_type("short_side", short_side or {}, parts).items():
        specs[part] = _changed(specs[part], {"size": side})
    scales = {part: changes.get(PYRAMID, (1.0,)) for part, changes in named}
    return tuple(each for part, spec in specs.items() for each in _by_scale(spec, scales[part]))


def _by_scale(spec: FeatureSpec, scales: Any) -> list[FeatureSpec]:
    """Returns a specification per scale; the one of scale 1 has the plain name and cache."""
    if scales == (1.0,):
        return [spec]
    names = [spec.name if scale == 1 else f"{spec.name}-{100 * scale:.0f}" for scale in scales]
    if len(set(names)) < len(names):
        raise FeatureTypeError(
            f"--feature-type: pyramid must have different factors, got {scales}."
        )
    return [
        replace(spec, name=name, prep=replace(spec.prep, scales=(scale,)))
        for name, scale in zip(names, scales, strict=True)
    ]


def _changed(spec: FeatureSpec, changes: Mapping[str, Any]) -> FeatureSpec:
    """Replaces fields of a specification, or of its preparation."""
    prep = {name: value for name, value in changes.items() if hasattr(spec.prep, name)}
    own = {name: value for name, value in changes.items() if name not in {*prep, PYRAMID}}
    return replace(spec, prep=replace(spec.prep, **prep), **own)


def _lookup(name: str) -> FeatureSpec:
    if name in PRESETS:
        return PRESETS[name]
    adapters = {point.name.upper(): point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in adapters:
        return _third_party(adapters[name])
    known = [*PRESETS, *ALIASES, *adapters]
    raise FeatureTypeError(
        f"--feature-type: there is no feature type {name!r}. {suggestion(name, known)} There are "
        f"{', '.join(known)}, also several joined by '+'."
    )


def _third_party(point: EntryPoint) -> FeatureSpec:
    try:
        adapter = point.load()
        ref = BackboneRef(point.name, adapter.default_model, adapter.default_weights)
        return _preset(point.name.lower(), ref, adapter.default_tap, adapter.default_short_side)
    except (ImportError, AttributeError) as error:
        raise FeatureTypeError(
            f"--feature-type: the adapter {point.name!r} ({point.value}) must be importable and "
            "have default_model, default_weights, default_tap and default_short_side, got: "
            f"{error}. Update the package that provides it."
        ) from error
