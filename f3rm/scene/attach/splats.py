"""Lifts feature heads onto a splat, beside its ``.ply`` or its run's checkpoint."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from f3rm.errors import CacheError, F3rmError, HeadSpec, StrPath
from f3rm.extract.cache import feature_folder
from f3rm.extract.extraction import extract_features
from f3rm.feature_field import FeatureStats
from f3rm.scene.attach.recipe import AttachSettings
from f3rm.scene.splat.loading import (
    DATASET_FROM_SOURCE,
    LoadedSplat,
    SourceFrame,
    data_name,
    dataset_from_source,
    load_splat,
)
from f3rm.splats.feature_file import HeadFeatures, content_key, feature_file, write_head
from f3rm.splats.lifting import FeatureBasis, Lifting, lift
from f3rm.splats.rasterizer import ImplementationChoice
from f3rm.splats.views import Agreement, View, compare
from f3rm.store.device import resolve_device
from f3rm.store.items import read_items
from f3rm.store.manifest import read_manifest
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec, resolve_feature_type
from f3rm.training.segments import Segments

_STATS_ROWS = 1 << 14
_COMPARED = 8
_LONGEST_SIDE = {"cpu": 640, "cuda": 1600}
"""Longest side in pixels of the pictures that features are lifted in."""


@dataclass(frozen=True)
class LiftSettings:
    """How features get onto a splat."""

    refine: int = 0
    """Steps that sharpen the features after lifting, one photograph each; 0 for none."""
    source_frame: SourceFrame = "auto"
    """Frame of the .ply: dataset (of transforms.json), nerfstudio (of ns-export), colmap, or auto:
    the one in which the splat shows what the photographs show."""
    anyway: bool = False
    """Whether to go on where the splat does not show what the photographs show."""
    implementation: ImplementationChoice = "auto"
    """What draws the splat: gsplat, numba or torch; auto takes the fastest that is there."""


@dataclass(frozen=True)
class AttachedToSplat:
    """A splat with features.

    Attributes:
        files: Files of the new heads, beside the ``.ply``.
        agreement: How well the splat shows what the photographs show.
        reliability: Mean reliability of the Gaussians that photographs show, by head.
        views: Photographs that features were lifted from.
        seconds: Duration, without the extraction of features.
    """

    files: tuple[Path, ...]
    agreement: Agreement
    reliability: Mapping[str, float]
    views: int
    seconds: float


def attach_to_splat(
    splat: StrPath,
    settings: AttachSettings,
    lifting: LiftSettings | None = None,
    *,
    data: StrPath | None = None,
    device: str = "auto",
    show_progress: bool = False,
) -> AttachedToSplat:
    """Lifts features of the photographs onto a splat, and writes them beside its file.

    That file is not changed. Features are extracted where the dataset has none yet; a lifting
    that was interrupted goes on.

    Args:
        splat: A ``.ply``, or a splatfacto run.
        settings: The feature type; its training settings are not used.
        lifting: How features are lifted.
        data: The dataset that the splat was trained on; None for that of a run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        show_progress: Whether bars count photographs.

    Raises:
        SplatFileError: If the file cannot be used.
        PhotographsDisagreeError: If the splat does not show what the photographs show.
        F3rmError: If dataset, features or device cannot be used, or the splat has such a head.
    """
    lifting = lifting or LiftSettings()
    if lifting.refine < 0:
        raise F3rmError(f"--refine must be at least 0, got {lifting.refine}.")
    specs = resolve_feature_type(settings.feature_type, weights=settings.weights)
    place = resolve_device(device)
    loaded = load_splat(
        splat,
        data=data,
        device=place,
        source_frame=lifting.source_frame,
        implementation=lifting.implementation,
        check=not lifting.anyway,
    )
    _check_new(loaded, specs)
    stores = {
        spec.name: _open_features(loaded, spec, settings, device, show_progress=show_progress)
        for spec in specs
    }
    start = time.perf_counter()
    photographs = loaded.photographs(_LONGEST_SIDE[place.type])
    step = max(1, len(photographs) // _COMPARED)
    agreement = compare(
        loaded.source.gaussians, photographs[::step], implementation=lifting.implementation
    )
    made: dict[str, HeadFeatures] = {}
    for spec in specs:
        store = stores[spec.name]
        views = [view for view in photographs[:] if view.name in store.names]
        masks = settings.feature_masks
        segments = None if masks is None else Segments.read(masks, store.names)
        made[spec.name] = _lifted(
            loaded, spec, store, views, lifting, agreement, segments, show_progress=show_progress
        )
    reliable = {name: head.reliability[head.weights > 1].mean() for name, head in made.items()}
    files = tuple(write_head(loaded.file, head) for head in made.values())
    return AttachedToSplat(
        files=files,
        agreement=agreement,
        reliability={name: float(mean) for name, mean in reliable.items()},
        views=len(photographs),
        seconds=time.perf_counter() - start,
    )


def _check_new(splat: LoadedSplat, specs: Sequence[FeatureSpec]) -> None:
    taken = [spec.name for spec in specs if spec.name in splat.source.heads]
    if taken:
        msg = (
            f"The splat has a head {taken[0]!r} already. Give another --feature-type, or remove "
            f"{feature_file(splat.file, taken[0]).name!r}."
        )
        raise F3rmError(msg)


def _open_features(
    splat: LoadedSplat,
    spec: FeatureSpec,
    settings: AttachSettings,
    device: str,
    *,
    show_progress: bool,
) -> FeatureStore:
    """Opens the cache of a feature type, in whatever codec it is, or extracts it."""
    items = read_items(splat.data)
    folder = feature_folder(splat.data, spec, settings.cache_dir, items=items)
    with contextlib.suppress(CacheError):
        spec = replace(spec, codec=read_manifest(folder).spec.codec)
    return extract_features(items, spec, folder=folder, device=device, progress=show_progress)


def _made_from(
    splat: LoadedSplat, store: FeatureStore, views: list[View], segments: Segments | None
) -> dict[str, Any]:
    """Returns what an interrupted lifting must share with the one that goes on."""
    return {
        "ply": content_key(splat.file),
        "features": store.manifest.key,
        "views": [view.name for view in views],
        "size": views[0].camera.size if views else (),
        DATASET_FROM_SOURCE: dataset_from_source(splat).tolist(),
        "segments": None if segments is None else segments.key,
    }


def _lifted(
    splat: LoadedSplat,
    spec: FeatureSpec,
    store: FeatureStore,
    views: list[View],
    settings: LiftSettings,
    agreement: Agreement,
    segments: Segments | None,
    *,
    show_progress: bool,
) -> HeadFeatures:
    ply, manifest = splat.file, store.manifest
    made_from = _made_from(splat, store, views, segments)
    basis = FeatureBasis.of_store(store)
    path = feature_file(ply, spec.name)
    lifted = lift(
        splat.source.gaussians,
        views,
        store,
        basis,
        Lifting(
            implementation=settings.implementation,
            refine=settings.refine,
            partial=path.with_name(f".{path.name}.partial"),
            key=xxhash.xxh3_128_hexdigest(json.dumps(made_from).encode()),
            show_progress=show_progress,
            segments=segments,
        ),
    )
    if not bool((lifted.weights > 0).any()):
        raise F3rmError(
            f"No photograph of {data_name(splat)!r} shows any Gaussian of {ply.name!r}. It is in "
            "another frame, or of another scene. Give --source-frame."
        )
    return HeadFeatures(
        spec=HeadSpec(
            name=spec.name,
            channels=store.channels,
            has_text=manifest.has_text,
            backbone=spec.backbone,
            identity=f"{manifest.weights_identity} {spec.taps[0]}",
        ),
        coefficients=lifted.hidden,
        weight=basis.weight,
        reliability=lifted.reliability,
        weights=lifted.weights,
        pca=FeatureStats.fit(torch.nn.functional.normalize(store.sample(_STATS_ROWS, 0))).pca,
        provenance={
            DATASET_FROM_SOURCE: made_from[DATASET_FROM_SOURCE],
            "features": manifest.key,
            "dataset": data_name(splat),
            "views": len(views),
            "refine": settings.refine,
            "segments": made_from["segments"],
            "psnr": agreement.psnr,
        },
    )
