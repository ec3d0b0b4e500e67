"""The specification that --spec, --backbone and --tap of a command ask for together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from f3rm.extract.tables.run import Shard
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.store.settings import read_settings
from f3rm.store.spec import FeatureSpec, Precision, SpecError, parse_backbone


@dataclass(frozen=True)
class Chosen:
    """A specification, and the other settings of a VISSL configuration.

    Attributes:
        spec: The specification.
        layers: Tap -> layer in VISSL's file names; None for the usual ones.
        shard: Items per file; None if no configuration says it.
    """

    spec: FeatureSpec
    layers: Mapping[str, str] | None = None
    shard: Shard | None = None


def choose_spec(
    file: Path | None,
    backbone: str | None,
    taps: Sequence[str],
    precision: Precision = "auto",
    codec: str | None = None,
) -> Chosen:
    """Combines a file with the options that replace parts of it.

    Args:
        file: YAML with backbone and taps, or a configuration of VISSL.
        backbone: ``adapter:model@weights``; replaces the file's.
        taps: Replace the file's.
        precision: Replaces the file's unless it is ``auto``.
        codec: Replaces the file's.

    Raises:
        SpecError: If the backbone or the taps are missing.
        TapError: If a tap is malformed.
    """
    if file is None:
        if backbone is None or not taps:
            found = "--tap" if taps else "--backbone" if backbone else "neither"
            msg = (
                "--backbone and --tap must be given, or --spec with a YAML file, got only "
                f"{found}. Write e.g. --backbone dinov2:facebook/dinov2-base --tap final@cls"
            )
            raise SpecError(msg)
        return _with_numbers(Chosen(FeatureSpec.of(backbone, list(taps))), precision, codec)
    plain = read_settings(file, SpecError)
    if "config" in plain or "MODEL" in plain:  # as VISSL's are
        if backbone is None:
            msg = (
                f"--backbone must be given with VISSL's {file.name}. Write e.g. "
                "--backbone module:torchvision:resnet50@weights.pth"
            )
            raise SpecError(msg)
        settings = read_vissl_config(plain)
        spec = settings.spec(parse_backbone(backbone), settings.prep)
        chosen = Chosen(spec, settings.layers, settings.shard)
    else:
        spec = FeatureSpec.from_dict(plain)
        if backbone is not None:
            spec = replace(spec, backbone=parse_backbone(backbone))
        chosen = Chosen(replace(spec, taps=tuple(taps)) if taps else spec)
    return _with_numbers(chosen, precision, codec)


def _with_numbers(chosen: Chosen, precision: Precision, codec: str | None) -> Chosen:
    changes: dict[str, Any] = {"codec": codec} if codec else {}
    if precision != "auto":
        changes["precision"] = precision
    return replace(chosen, spec=replace(chosen.spec, **changes))
