"""The cache folders of a dataset, and whether the cache in one is valid."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import platformdirs
import xxhash

from f3rm.backbones.weights import weights_identity
from f3rm.errors import CacheError, StrPath, as_path, printable
from f3rm.extract.legacy import is_legacy, open_legacy
from f3rm.extract.locks.folders import is_writable
from f3rm.store.images import content_hash
from f3rm.store.items import ImageItem, dataset_root
from f3rm.store.manifest import (
    MANIFEST,
    FailedRecord,
    ImageRecord,
    Manifest,
    read_manifest,
)
from f3rm.store.reader import FeatureStore
from f3rm.store.spec import FeatureSpec

log = logging.getLogger(__name__)


def feature_folder(
    data: StrPath,
    spec: FeatureSpec,
    cache_dir: StrPath | None,
    *,
    items: Sequence[ImageItem] | None = None,
) -> Path:
    """Chooses the cache folder of a feature type.

    It is ``<data>/features/<name>``, or ``<cache_dir>/<dataset>-<hash of its path>/<name>`` if a
    cache directory is given. A dataset that is read-only and holds no cache has it in the user's
    cache home instead.

    Args:
        data: The dataset folder or a ``.json`` file in it.
        spec: The feature type.
        cache_dir: A folder for caches outside datasets.
        items: The dataset's images; with them, a cache in a read-only dataset counts only if it is
            valid.
    """
    data = as_path(data)
    if cache_dir is not None:
        return cache_roots(data, as_path(cache_dir))[0] / spec.name
    usual, elsewhere = (root / spec.name for root in cache_roots(data, None))
    if is_writable(usual):
        return usual
    present = (usual / MANIFEST).is_file()
    if present and (items is None or find_cache(items, spec, usual, failed_too=True)[0]):
        return usual
    log.warning("%s is not writable; the features are kept in %s.", usual, elsewhere)
    return elsewhere


def find_cache(
    items: Sequence[ImageItem], spec: FeatureSpec, folder: StrPath, *, failed_too: bool = False
) -> tuple[FeatureStore | None, str]:
    """Opens a cache if it is complete and fits these images and settings; loads no model.

    An image counts as unchanged if its length agrees, and its modification time or else content.

    Args:
        items: The images that it must hold, in any order.
        spec: The settings; the precision ``auto`` accepts any.
        folder: The cache folder.
        failed_too: Whether some of the images may be recorded as failed.

    Returns:
        The cache, or None; and a clause that names the cache, or the reason why there is none.

    Raises:
        BackboneUnavailableError: If the weights are given as a path that does not exist.
    """
    folder = as_path(folder)
    # Outside of the try: weights that are missing are no reason to extract.
    identity = weights_identity(spec.backbone)
    try:
        if not (folder / MANIFEST).exists():
            if is_legacy(folder):
                store = open_legacy(folder, items, spec)
                return store, f"the cache in {folder} was made by f3rm's earlier extractor"
            return None, f"there is no finished cache in {folder}"
        manifest = read_manifest(folder)
        reason = _other_settings(manifest, spec, identity) or _other_images(
            manifest, items, failed_too=failed_too
        )
        if reason:
            return None, reason
        return FeatureStore.open(folder), f"the cache in {folder} is valid"
    except CacheError as error:
        return None, str(error)


def cache_roots(data: Path, cache_dir: Path | None) -> list[Path]:
    """Returns the folders that may hold caches of a dataset.

    Args:
        data: The dataset folder or a ``.json`` file in it.
        cache_dir: A folder for caches outside datasets; then only that.
    """
    root = dataset_root(data)
    if cache_dir is not None:
        return [_keyed(cache_dir.expanduser().absolute(), root)]
    return [root / "features", _keyed(Path(platformdirs.user_cache_dir("f3rm")), root)]


def _keyed(base: Path, root: Path) -> Path:
    """Returns the folder of a dataset's caches in one that several datasets share."""
    # The hash tells datasets of equal names apart.
    resolved = root.resolve()
    digest = xxhash.xxh3_64(str(resolved).encode()).hexdigest()[:8]
    return base / f"{resolved.name}-{digest}"


def _other_settings(manifest: Manifest, spec: FeatureSpec, identity: str) -> str:
    if spec.precision == "auto":  # any precision will do
        spec = replace(spec, precision=manifest.spec.precision)
    if manifest.key == spec.key(identity):
        return ""
    before = manifest.spec.settings(manifest.weights_identity, manifest.algorithm)
    after = spec.settings(identity)
    changes = [
        f"{name} {before.get(name)} -> {value}"
        for name, value in after.items()
        if before.get(name) != value
    ]
    return printable(f"the cache was made with other settings: {', '.join(changes)}")


def _other_images(manifest: Manifest, items: Sequence[ImageItem], *, failed_too: bool) -> str:
    recorded = {image.name: image for image in (*manifest.images, *manifest.failed)}
    wanted = {item.name for item in items}
    added = [item.name for item in items if item.name not in recorded]
    if added:
        return f"the cache lacks {len(added)} of the dataset's images, e.g. {added[0]!r}"
    removed = [name for name in recorded if name not in wanted]
    if removed:
        return f"the cache has {len(removed)} image(s) that the dataset lacks, e.g. {removed[0]!r}"
    for item in items:
        if not is_same_image(recorded[item.name], item):
            return f"the image {item.name!r} has changed since the cache was made"
    if manifest.failed and not failed_too:
        error = printable(manifest.failed[0].error)
        return f"the image {manifest.failed[0].name!r} has failed: {error}"
    return ""


def is_same_image(record: ImageRecord | FailedRecord, item: ImageItem) -> bool:
    """Returns whether an image file is still the recorded one.

    The content is read only if the modification time differs, e.g. because the dataset was copied.
    """
    if isinstance(record, FailedRecord):  # has no content hash: it could not be read
        return FailedRecord.of(item, record.error) == record
    try:
        status = item.path.stat()
        if status.st_size != record.bytes:
            return False
        return status.st_mtime_ns == record.mtime_ns or content_hash(item.path) == record.content
    except OSError:
        return False
