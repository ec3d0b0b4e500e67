"""Specifications of features: one :class:`FeatureSpec` per feature type, and the presets.

A feature type is a preset's name, an alias, the name of a third-party adapter (entry-point group
``f3rm.backbones``), or several of these joined by ``+``. No other code depends on a type's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

import xxhash

from f3rm.errors import BackboneRef, FeatureTypeError
from f3rm.store.codecs import parse_codec
from f3rm.store.feature_types import (
    absolute_if_local,
    by_type,
    parse_weights,
    split_type,
    suggestion,
)
from f3rm.store.geometry import Fit

ALGORITHM_VERSION = 1
"""Increased when decoding, resizing or normalising changes: caches of an older one do not match."""

ENTRY_POINT_GROUP = "f3rm.backbones"

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")

Interpolation = Literal["bicubic", "bilinear"]
Background = Literal["black", "white"]
StoredDtype = Literal["float16", "float32"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""A network's precision; ``auto`` becomes that of an existing cache, else the device's best."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
"""The precisions a cache can have, which ``auto`` becomes."""


@dataclass(frozen=True)
class FeatureSpec:
    """Everything besides the images that determines the features of a cache.

    Attributes:
        name: Short lower-case name; also the name of the cache folder.
        backbone: The model.
        tap: Where in the model the features are read, in the adapter's words.
        short_side: Length in pixels that the shorter image side is resized to.
        interpolation: How images are resized, always with antialiasing.
        background: RGB colour in [0, 1] behind images with an alpha channel.
        dtype: Type on disk; a chunk that float16 cannot hold is stored as float32 nevertheless.
        precision: float32, or mixed with one of the half types; or ``auto``, which is satisfied by
            a cache of any precision.
        codec: ``int8`` or ``pca<d>``, which :mod:`~f3rm.store.codecs` explains; ``none`` stores
            the channels themselves.
        fit: Whether images are stretched to whole patches, or put into the middle of a square of
            ``short_side``, whose border does not count as image.
        window: Side and step in pixels of windows that are read one by one and blended; None reads
            the image as a whole.
        scales: Factors of the network input whose features are averaged.
    """

    name: str
    backbone: BackboneRef
    tap: str
    short_side: int
    interpolation: Interpolation = "bicubic"
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dtype: StoredDtype = "float16"
    precision: Precision = "float32"
    codec: str = "none"
    fit: Fit = "stretch"
    window: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.name):
            raise FeatureTypeError(
                "A feature type's name must be lower-case letters, digits, '.', '_' or '-', got "
                f"{self.name!r}."
            )
        if self.short_side < 1:
            raise FeatureTypeError(
                f"{self.name}: short_side must be at least 1 pixel, got {self.short_side}."
            )
        if self.window is not None and not 1 <= self.window[1] <= self.window[0]:
            raise FeatureTypeError(
                f"{self.name}: window must be a side and a step from 1 to the side, "
                f"got {self.window}. Take e.g. (336, 224)."
            )
        if not self.scales or min(self.scales) <= 0:
            raise FeatureTypeError(
                f"{self.name}: scales must be one or more positive factors, got {self.scales}. "
                "Take e.g. (0.75, 1, 1.25)."
            )

    def settings(
        self, weights_identity: str, algorithm: int = ALGORITHM_VERSION
    ) -> dict[str, object]:
        """Returns all that the features depend on, for hashing.

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
        # Later settings enter only where they differ from their default, so that adding one changes
        # no key of an existing cache.
        settings: dict[str, object] = {
            "algorithm": algorithm,
            "adapter": self.backbone.adapter,
            "model": self.backbone.model,
            "weights": weights_identity,
            "tap": self.tap,
            "short_side": self.short_side,
            "interpolation": self.interpolation,
            "background": [float(value) for value in self.background],
            "dtype": self.dtype,
        }
        if self.precision != "float32":
            settings["precision"] = self.precision
        if self.codec != "none":
            settings["codec"] = self.codec
        if self.fit != "stretch":
            settings["fit"] = self.fit
        if self.window is not None:
            settings["window"] = list(self.window)
        if self.scales != (1.0,):
            settings["scales"] = list(self.scales)
        return settings

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

    def to_dict(self) -> dict[str, object]:
        """Returns plain strings, numbers, tuples and dicts for JSON."""
        return asdict(self)


_ROBOPOINT = BackboneRef(
    "llava", "wentao-yuan/robopoint-v1-vicuna-v1.5-13b", "wentao-yuan/robopoint-v1-vicuna-v1.5-13b"
)

PRESETS: Mapping[str, FeatureSpec] = {
    "CLIP": FeatureSpec(
        name="clip",
        backbone=BackboneRef("clip", "ViT-L-14-336-quickgelu", "openai"),
        tap="-1|dense(maskclip)",
        short_side=1024,
    ),
    "DINO": FeatureSpec(
        name="dino",
        backbone=BackboneRef("dino", "facebook/dino-vits8", "facebook/dino-vits8"),
        tap="final",
        short_side=448,
    ),
    "DINOV2": FeatureSpec(
        name="dinov2",
        backbone=BackboneRef("dinov2", "facebook/dinov2-large", "facebook/dinov2-large"),
        tap="final",
        short_side=518,
    ),
    "PROXYCLIP": FeatureSpec(
        name="proxyclip",
        backbone=BackboneRef(
            "proxyclip", "ViT-B-16-quickgelu,facebook/dino-vitb8", "openai,facebook/dino-vitb8"
        ),
        tap="-1|dense(proxy)",
        short_side=448,
    ),
    "ROBOPOINTPROJ": FeatureSpec("robopointproj", _ROBOPOINT, "-2|proj", 336, fit="square"),
    "ROBOPOINTNOPROJ": FeatureSpec("robopointnoproj", _ROBOPOINT, "-2", 336, fit="square"),
    "TINYCLIP": FeatureSpec(
        name="tinyclip",
        backbone=BackboneRef("clip", "tinyclip", "builtin:tinyclip"),
        tap="-1|dense(maskclip)",
        short_side=360,
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
            brackets, which :mod:`~f3rm.store.feature_types` explains.
        weights: Weights other than the default, by type: a mapping, or entries like
            ``"CLIP=PATH"``.
        short_side: Resizing other than the default, by type, in pixels.
        background: Colour behind images with alpha; with its default background, Nerfacto trains
            such images over black.
        codec: How features are stored: ``fp16``, ``fp32``, ``int8`` or ``pca<d>``.
        precision: Of the network; ``auto`` takes that of an existing cache, else the one best for
            the device.

    Returns:
        One specification per part, in the order of ``text``.

    Raises:
        FeatureTypeError: If a name is unknown or used twice, or an override names a type that is
            not used, or the codec or a setting is unknown.
        TapError: If a tap in brackets is malformed.
    """
    stored = parse_codec(codec)
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
    common: dict[str, object] = {"background": BACKGROUNDS[background], "precision": precision}
    common |= {"dtype": stored.dtype} if stored.name == "none" else {"codec": stored.text}
    specs = {part: replace(_lookup(part), **changes, **common) for part, changes in named}
    for part, path in by_type("--weights", parse_weights(weights), parts).items():
        backbone = replace(specs[part].backbone, weights=absolute_if_local(path))
        specs[part] = replace(specs[part], backbone=backbone)
    for part, side in by_type("short_side", short_side or {}, parts).items():
        specs[part] = replace(specs[part], short_side=side)
    return tuple(specs.values())


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
        return FeatureSpec(point.name.lower(), ref, adapter.default_tap, adapter.default_short_side)
    except (ImportError, AttributeError) as error:
        raise FeatureTypeError(
            f"--feature-type: the adapter {point.name!r} ({point.value}) must be importable and "
            "have default_model, default_weights, default_tap and default_short_side, got: "
            f"{error}. Update the package that provides it."
        ) from error
