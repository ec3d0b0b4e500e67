"""The specification of an extraction: backbone, taps and preparation, as YAML or JSON."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import yaml

from f3rm.backbones.taps import Tap, parse_taps
from f3rm.errors import BackboneRef, F3rmError, StrPath, as_path
from f3rm.extract.taps.prep import Prep
from f3rm.extract.taps.settings import check_settings, read_yaml
from f3rm.extract.taps.video import FramePolicy
from f3rm.store.spec import PRESETS, FeatureSpec, Precision, StoredDtype

FORMAT_VERSION = 1
"""Increased when the same settings would give other values, so that older results are refused."""

_UNNAMED = re.compile(r"^[^a-z0-9]+|[^a-z0-9._-]")
"""Letters of an adapter's name that the name of a feature type cannot have."""


class SpecError(F3rmError):
    """A specification is incomplete, or one of its settings is impossible."""


@dataclass(frozen=True)
class ExtractionSpec:
    """Everything that decides the values of an extraction, apart from images and weights.

    Attributes:
        backbone: The model.
        taps: Where the model is read, as :mod:`f3rm.backbones.taps` writes it; the texts are also
            the names of the results.
        prep: Preparation of the network inputs.
        frames: Selection of the frames of videos.
        precision: Number format of the network; ``auto`` accepts any that is extracted already,
            else takes the best one for the device.
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
            raise SpecError(f"taps must be one or more, each once, got {found}.")
        check_settings(ExtractionSpec, vars(self), SpecError)
        object.__setattr__(self, "taps", names)

    @classmethod
    def of(
        cls, backbone: str | BackboneRef, taps: str | Sequence[str], **settings: Any
    ) -> "ExtractionSpec":
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
        chosen = (taps,) if isinstance(taps, str) else tuple(taps)
        return cls.from_dict({"backbone": backbone, "taps": list(chosen), **settings})

    def to_dict(self) -> dict[str, Any]:
        """Returns lists, dicts, texts and numbers, for YAML and JSON."""
        return json.loads(json.dumps(asdict(self)))  # makes lists of tuples

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ExtractionSpec":
        """Rebuilds the value written by :meth:`to_dict`; missing settings have their defaults.

        Raises:
            SpecError: If a field is unknown, missing or of the wrong kind.
            TapError: If a tap is malformed.
        """
        check_settings(cls, plain, SpecError)
        missing = [name for name in ("backbone", "taps") if name not in plain]
        if missing:
            raise SpecError(f"A specification needs backbone and taps, but has no {missing[0]!r}.")
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
            SpecError: If it cannot be read, or is not a specification.
            TapError: If a tap is malformed.
        """
        return cls.from_dict(read_settings(path))

    def save(self, path: StrPath) -> None:
        """Writes a YAML file that :meth:`load` reads."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        as_path(path).write_text(text, encoding="utf-8")

    def recorded(self) -> FeatureSpec:
        """Returns the specification as caches record it; the field ``tap`` holds the settings.

        The text is part of the cache's key, so its keys are sorted and it has no spaces.
        """
        settings = {"format": FORMAT_VERSION, **self.to_dict()}
        for name in ("backbone", "precision", "dtype", "background"):
            del settings[name]  # these have fields of their own
        return FeatureSpec(
            name=_UNNAMED.sub("-", self.backbone.adapter.lower()) or "taps",
            backbone=self.backbone,
            tap=json.dumps(settings, sort_keys=True, separators=(",", ":")),
            short_side=1,  # ignored: sizes are those of the preparation
            interpolation=self.prep.interpolation,
            background=self.background,
            dtype=self.dtype,
            precision=self.precision,
        )

    @classmethod
    def of_recorded(cls, spec: FeatureSpec) -> "ExtractionSpec":
        """Rebuilds the value that :meth:`recorded` wrote.

        Raises:
            SpecError: If the cache was extracted without taps, or by another version.
        """
        try:
            settings = json.loads(spec.tap)
            if settings.pop("format") != FORMAT_VERSION:
                raise ValueError("another version wrote it")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = (
                f"The features {spec.name!r} were not extracted with --tap or --spec ({error}). "
                "Open them with f3rm.store.reader, or extract again."
            )
            raise SpecError(msg) from error
        plain = {"backbone": asdict(spec.backbone), "background": list(spec.background)}
        chosen = {"precision": spec.precision, "dtype": spec.dtype}
        return cls.from_dict({**settings, **plain, **chosen})


def read_settings(path: StrPath) -> Mapping[str, Any]:
    """Reads a YAML or JSON file whose content is a mapping.

    Raises:
        SpecError: If it cannot be read, or holds something else.
    """
    path = as_path(path)
    try:
        plain = read_yaml(path)
    except FileNotFoundError as error:
        raise SpecError(f"No such file: {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{str(path)!r} is not readable YAML: {error}") from error
    if not isinstance(plain, Mapping):
        msg = f"{str(path)!r} must hold settings by name, got a {type(plain).__name__}. "
        raise SpecError(f"{msg}See docs/toolkit.md for an example.")
    return plain


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
        msg = (
            f"A backbone is adapter:model@weights or a feature type, got {text!r}. Write e.g. "
            "dinov2:facebook/dinov2-base; f3rm models lists adapters and types."
        )
        raise SpecError(msg)
    return BackboneRef(adapter, model, weights)


def _backbone(value: object) -> BackboneRef:
    if isinstance(value, BackboneRef):
        return value
    if isinstance(value, str):
        return parse_backbone(value)
    if isinstance(value, Mapping) and all(isinstance(word, str) for word in value.values()):
        with contextlib.suppress(TypeError):  # missing or unknown fields
            return BackboneRef(**{"weights": "", **value})
    raise _wrong("backbone", "adapter:model@weights, or adapter, model and weights", value)


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
    return SpecError(f"{name} must be {wanted}, got {value!r}.")
