"""What to extract: a backbone, taps, and how images become its input; YAML or JSON in and out."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import yaml

from f3rm.backbones.taps import Tap, parse_taps
from f3rm.errors import BackboneRef, F3rmError, StrPath, as_path
from f3rm.extract.taps.choices import check_settings
from f3rm.extract.taps.prep import Prep
from f3rm.extract.taps.video import FramePolicy
from f3rm.extract.taps.yaml_files import read_yaml
from f3rm.store.spec import PRESETS, FeatureSpec, Precision, StoredDtype

FORMAT_VERSION = 1
"""Raised when the same settings would give other values, so that no older result is mistaken."""

_UNNAMED = re.compile(r"^[^a-z0-9]+|[^a-z0-9._-]")

_CHOICES = {"precision": Precision, "dtype": StoredDtype}


class SpecError(F3rmError):
    """A specification is incomplete or contradicts itself."""


@dataclass(frozen=True)
class ExtractionSpec:
    """Everything that decides the values of an extraction, apart from images and weights.

    Attributes:
        backbone: The model.
        taps: What is read out of it, in the words of :mod:`f3rm.backbones.taps`; also the names of
            the results.
        prep: How images become network inputs.
        frames: Which frames of videos count.
        precision: What the network computes in; ``auto`` takes what is extracted already, else
            what suits the device.
        dtype: Type on disk; a chunk that float16 cannot hold is stored as float32 nevertheless.
        background: RGB colour in [0, 1] behind images with an alpha channel.
    """

    backbone: BackboneRef
    taps: tuple[str, ...]
    prep: Prep = field(default_factory=Prep)
    frames: FramePolicy = field(default_factory=FramePolicy)
    precision: Precision = "auto"
    dtype: StoredDtype = "float32"
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        names = tuple(str(tap) for tap in parse_taps(self.taps))
        repeated = sorted({name for name in names if names.count(name) > 1})
        if not names or repeated:
            found = f"{repeated[0]!r} twice" if repeated else "none"
            msg = f"ExtractionSpec: taps must be some, each once, got {found}. Correct the list."
            raise SpecError(msg)
        check_settings(ExtractionSpec, vars(self), _CHOICES, SpecError)
        object.__setattr__(self, "taps", names)

    @classmethod
    def of(
        cls, backbone: str | BackboneRef, taps: str | Sequence[str], **settings: Any
    ) -> "ExtractionSpec":
        """Makes a specification from short forms.

        Args:
            backbone: ``adapter:model`` or ``adapter:model@weights``, or a reference.
            taps: One or several.
            settings: Further fields; ``prep`` and ``frames`` may be mappings.

        Raises:
            SpecError: If something makes no sense.
            TapError: If a tap is malformed.
        """
        chosen = (taps,) if isinstance(taps, str) else tuple(taps)
        return cls.from_dict({"backbone": backbone, "taps": list(chosen), **settings})

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for YAML and JSON."""
        return {
            "backbone": asdict(self.backbone),
            "taps": list(self.taps),
            "prep": self.prep.to_dict(),
            "frames": self.frames.to_dict(),
            "precision": self.precision,
            "dtype": self.dtype,
            "background": list(self.background),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ExtractionSpec":
        """Rebuilds the value written by :meth:`to_dict`; what is left out has its default.

        Raises:
            SpecError: If a field is unknown, missing or of the wrong kind.
            TapError: If a tap is malformed.
        """
        check_settings(cls, plain, _CHOICES, SpecError)
        missing = [name for name in ("backbone", "taps") if name not in plain]
        if missing:
            msg = f"ExtractionSpec: backbone and taps must be given, got no {missing[0]!r}. Add it."
            raise SpecError(msg)
        values = dict(plain)
        values["backbone"] = _backbone(values["backbone"])
        values["taps"] = _tap_texts(values["taps"])
        for name, kind in (("prep", Prep), ("frames", FramePolicy)):
            if isinstance(values.get(name), Mapping):
                values[name] = kind.from_dict(values[name])
            elif name in values and not isinstance(values[name], kind):
                raise _wrong(name, "a mapping of settings", values[name])
        if "background" in values:
            values["background"] = _colour(values["background"])
        return cls(**values)

    @classmethod
    def load(cls, path: StrPath) -> "ExtractionSpec":
        """Reads a YAML or JSON file.

        Raises:
            SpecError: If it cannot be read, or holds no specification.
        """
        path = as_path(path)
        try:
            plain = read_yaml(path)
        except (OSError, ValueError) as error:
            msg = f"ExtractionSpec.load: {str(path)!r} must be readable YAML, got: {error}"
            raise SpecError(msg) from error
        if not isinstance(plain, Mapping):
            msg = (
                f"ExtractionSpec.load: {str(path)!r} must hold backbone and taps, got "
                f"{type(plain).__name__}. See docs/extraction.md for an example."
            )
            raise SpecError(msg)
        return cls.from_dict(plain)

    def save(self, path: StrPath) -> None:
        """Writes a YAML file that :meth:`load` reads."""
        path = as_path(path)
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")

    def with_weights(self, weights: str) -> "ExtractionSpec":
        """Returns the same specification with other weights."""
        return replace(self, backbone=replace(self.backbone, weights=weights))

    def recorded(self) -> FeatureSpec:
        """Returns what the engine of :mod:`f3rm.extract` keeps: all of it is in the tap's text."""
        settings = {"format": FORMAT_VERSION, **self.to_dict()}
        for name in ("backbone", "precision", "dtype", "background"):
            del settings[name]  # these have fields of their own
        return FeatureSpec(
            name=_UNNAMED.sub("-", self.backbone.adapter.lower()) or "taps",
            backbone=self.backbone,
            tap=json.dumps(settings, sort_keys=True, separators=(",", ":")),
            short_side=1,
            interpolation=self.prep.interpolation,
            background=self.background,
            dtype=self.dtype,
            precision=self.precision,
        )

    @classmethod
    def of_recorded(cls, spec: FeatureSpec) -> "ExtractionSpec":
        """Rebuilds the value from what :meth:`recorded` gave.

        Raises:
            SpecError: If it was made by something else.
        """
        try:
            settings = json.loads(spec.tap)
            if settings.pop("format") != FORMAT_VERSION:
                raise ValueError("it is of another version")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = (
                "ExtractionSpec: the folder must hold an extraction of this toolkit, got features "
                f"of the type {spec.name!r} ({error}). Open it with f3rm.store.reader."
            )
            raise SpecError(msg) from error
        plain = {"backbone": asdict(spec.backbone), "background": list(spec.background)}
        chosen = {"precision": spec.precision, "dtype": spec.dtype}
        return cls.from_dict({**settings, **plain, **chosen})


def parse_backbone(text: str) -> BackboneRef:
    """Reads ``adapter:model``, or the name of a feature type for its model; either ``@weights``.

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
        msg = (
            "parse_backbone: backbone must look like adapter:model@weights or be a feature type, "
            f"got {text!r}. Write e.g. dinov2:facebook/dinov2-base; f3rm models lists some."
        )
        raise SpecError(msg)
    return BackboneRef(adapter, model, weights)


def _tap_texts(value: object) -> tuple[str | Tap, ...]:
    taps = [value] if isinstance(value, str | Tap) else value
    if not isinstance(taps, list | tuple) or not all(isinstance(tap, str | Tap) for tap in taps):
        raise _wrong("taps", "one text or several", value)
    return tuple(taps)


def _colour(value: object) -> tuple[float, float, float]:
    if isinstance(value, list | tuple) and len(value) == 3:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            red, green, blue = (float(channel) for channel in value)
            if all(0 <= channel <= 1 for channel in (red, green, blue)):
                return red, green, blue
    raise _wrong("background", "three numbers in [0, 1]", value)


def _wrong(name: str, wanted: str, value: object) -> SpecError:
    msg = f"ExtractionSpec: {name} must be {wanted}, got {value!r}. Correct it."
    return SpecError(msg)


def _backbone(value: object) -> BackboneRef:
    if isinstance(value, BackboneRef):
        return value
    if isinstance(value, str):
        return parse_backbone(value)
    if isinstance(value, Mapping) and {"adapter", "model"} <= set(value):
        known = {"adapter", "model", "weights"}
        if set(value) <= known and all(isinstance(word, str) for word in value.values()):
            return BackboneRef(**{"weights": "", **value})
    msg = (
        "ExtractionSpec: backbone must be adapter:model@weights, or have adapter, model and "
        f"weights, got {value!r}. Correct it."
    )
    raise SpecError(msg)
