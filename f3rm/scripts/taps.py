"""What the commands about taps share: the specification, and ``f3rm extract`` with taps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from f3rm.errors import F3rmError
from f3rm.extract.preview import preview_job
from f3rm.extract.taps.exports import export_array, export_per_item, slug_of
from f3rm.extract.taps.lists import list_items, split_folder
from f3rm.extract.taps.prep import Prep
from f3rm.extract.taps.run import Shard, extract, make_job
from f3rm.extract.taps.settings import read_yaml
from f3rm.extract.taps.spec import ExtractionSpec, SpecError, parse_backbone
from f3rm.extract.taps.store import TapStore
from f3rm.extract.taps.worker import TapWorker
from f3rm.recipes.vissl import export_vissl
from f3rm.recipes.vissl_config import read_vissl_config
from f3rm.store.device import is_first_rank
from f3rm.store.spec import Precision

Export = Literal["none", "array", "per-item", "vissl"]


@dataclass(frozen=True)
class Chosen:
    """What is extracted, and what a VISSL configuration says besides.

    Attributes:
        spec: The specification.
        layers: Tap -> layer in VISSL's file names; None for the usual ones.
        shard: How results are cut into files; None if that was left open.
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
    """Puts a specification together from the command line.

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
            msg = (
                "f3rm: --backbone and --tap must be given, or --spec with a YAML file, got only "
                f"{'--tap' if taps else '--backbone' if backbone else 'neither'}. Write e.g. "
                "--backbone dinov2:facebook/dinov2-base --tap final@cls"
            )
            raise SpecError(msg)
        return Chosen(ExtractionSpec.of(backbone, list(taps), precision=precision))
    if _is_vissl(file):
        if backbone is None:
            msg = (
                f"f3rm: --backbone must be given with VISSL's {file.name}, got none. Write e.g. "
                "--backbone module:torchvision:resnet50@weights.pth"
            )
            raise SpecError(msg)
        settings = read_vissl_config(file)
        spec = settings.spec(parse_backbone(backbone), Prep(resize="cover", size=224))
        return Chosen(_computed_in(spec, precision), settings.layers, settings.shard)
    spec = _computed_in(ExtractionSpec.load(file), precision)
    if backbone is not None:
        spec = replace(spec, backbone=parse_backbone(backbone))
    return Chosen(replace(spec, taps=tuple(taps)) if taps else spec)


def _computed_in(spec: ExtractionSpec, precision: Precision) -> ExtractionSpec:
    return spec if precision == "auto" else replace(spec, precision=precision)


def extract_taps(  # noqa: PLR0913 - the command line's choices, by keyword
    source: Path,
    chosen: Chosen,
    out: Path,
    *,
    split: str,
    labelled: bool,
    shard: str | None,
    export: Export,
    dry_run: bool,
    options: Mapping[str, Any],
) -> list[str]:
    """Extracts taps of a folder, a list or a pattern, and exports them; returns what to print.

    Args:
        source: What :func:`f3rm.extract.taps.lists.list_items` takes.
        chosen: What to extract.
        out: Where results go.
        split: Name of this list of items.
        labelled: Whether the folders in a folder are classes.
        shard: ``auto``, ``batch``, ``all`` or a number; None for the configuration's.
        export: Which files for other programs are written.
        dry_run: Whether only the costs are said.
        options: Further options of :func:`f3rm.extract.taps.run.extract`.

    Raises:
        F3rmError: If it cannot be done.
    """
    items = list_items(source, labelled=labelled)
    cut = chosen.shard or "auto" if shard is None else _shard(shard)
    if dry_run:
        renamed = {name: options[name] for name in ("device", "on_error", "batch_size")}
        job = make_job(items, chosen.spec, split_folder(out, split), shard=cut, **renamed)
        return [str(preview_job(job, kind=TapWorker))]
    store = extract(items, chosen.spec, out, split=split, shard=cut, **options)
    if not is_first_rank():
        return []
    lines = [_summary(store, tap) for tap in store.taps]
    lines += [f"{name} has no features: {reason}" for name, reason in store.failed.items()]
    return [*lines, *_export(store, out, export, chosen.layers)]


def _export(
    store: TapStore, out: Path, export: Export, layers: Mapping[str, str] | None
) -> list[str]:
    if export == "vissl":
        folder = out / "vissl"
        files = export_vissl(store, folder, layers=layers)
        return [f"{len(files)} files of features for VISSL in {folder}"]
    lines: list[str] = []
    for tap in store.taps if export != "none" else ():
        name = f"{store.split}.{slug_of(tap)}"
        if export == "array":
            shape = export_array(store, out / f"{name}.npy", tap)
            lines.append(f"{tap}: {shape} in {out / f'{name}.npy'}")
        else:
            count = export_per_item(store, out / name, tap)
            lines.append(f"{tap}: {count} files in {out / name}")
    return lines


def _summary(store: TapStore, tap: str) -> str:
    shapes = sorted({store.shape(int(index), tap) for index in store.indices})
    words = ", ".join(str(shape) for shape in shapes[:3]) + (" ..." if len(shapes) > 3 else "")
    return f"{tap}: {len(store)} items of shape {words}, {store.dtype}, in {store.folder}"


def _shard(text: str) -> Shard:
    if text.isdecimal():
        return int(text)
    if text in ("auto", "batch", "all"):
        return text
    msg = f"f3rm extract: --shard must be auto, batch, all or a number, got {text!r}."
    raise F3rmError(msg)


def _is_vissl(file: Path) -> bool:
    try:
        plain = read_yaml(file)
    except (OSError, ValueError):
        return False  # reading it as a specification says what is wrong
    return isinstance(plain, Mapping) and ("config" in plain or "MODEL" in plain)
