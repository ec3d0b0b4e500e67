"""The specification that --spec, --backbone and --tap of a command ask for together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from f3rm.extract.taps.prep import Prep
from f3rm.extract.taps.run import Shard
from f3rm.extract.taps.settings import read_yaml
from f3rm.extract.taps.spec import ExtractionSpec, SpecError, parse_backbone
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.store.spec import Precision


@dataclass(frozen=True)
class Chosen:
    """A specification, and the other settings of a VISSL configuration.

    Attributes:
        spec: The specification.
        layers: Tap -> layer in VISSL's file names; None for the usual ones.
        shard: Items per file; None if no configuration says it.
    """

    spec: ExtractionSpec
    layers: Mapping[str, str] | None = None
    shard: Shard | None = None


def choose_spec(
    file: Path | None,
    backbone: str | None,
    taps: Sequence[str],
    precision: Precision = "auto",
) -> Chosen:
    """Combines a file with the options that replace parts of it.

    Args:
        file: YAML with backbone and taps, or a configuration of VISSL.
        backbone: ``adapter:model@weights``; replaces the file's.
        taps: Replace the file's.
        precision: Replaces the file's unless it is ``auto``.

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
        return Chosen(ExtractionSpec.of(backbone, list(taps), precision=precision))
    if _is_vissl(file):
        if backbone is None:
            msg = (
                f"--backbone must be given with VISSL's {file.name}. Write e.g. "
                "--backbone module:torchvision:resnet50@weights.pth"
            )
            raise SpecError(msg)
        settings = read_vissl_config(file)
        spec = settings.spec(parse_backbone(backbone), Prep(resize="cover", size=224))
        chosen = Chosen(spec, settings.layers, settings.shard)
    else:
        spec = ExtractionSpec.load(file)
        if backbone is not None:
            spec = replace(spec, backbone=parse_backbone(backbone))
        chosen = Chosen(replace(spec, taps=tuple(taps)) if taps else spec)
    if precision == "auto":
        return chosen
    return replace(chosen, spec=replace(chosen.spec, precision=precision))


def _is_vissl(file: Path) -> bool:
    try:
        plain = read_yaml(file)
    except (OSError, ValueError):
        return False  # ExtractionSpec.load then says what is wrong with the file
    return isinstance(plain, Mapping) and ("config" in plain or "MODEL" in plain)
