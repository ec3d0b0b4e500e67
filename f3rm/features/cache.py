"""Where the features of a dataset lie, and whether what lies there is valid."""

import logging
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import xxhash

from f3rm._types import CacheError
from f3rm.backbones.registry import weights_identity
from f3rm.features.folders import is_writable
from f3rm.features.images import content_hash
from f3rm.features.items import ImageItem, dataset_root
from f3rm.features.manifest import MANIFEST, Manifest, read_manifest
from f3rm.features.records import ImageRecord
from f3rm.features.spec import FeatureSpec
from f3rm.features.store import FeatureStore

log = logging.getLogger(__name__)


def feature_folder(
    data: Path,
    spec: FeatureSpec,
    cache_dir: Path | None,
    *,
    items: Sequence[ImageItem] | None = None,
) -> Path:
    """Chooses the cache folder of a feature type.

    It is ``<data>/features/<name>``, or ``<cache_dir>/<dataset>-<hash of its path>/<name>`` if a
    cache directory is given. If the dataset can neither be written to nor holds a cache already, it
    is the latter in the user's cache home.

    Args:
        data: The dataset folder or a ``.json`` file in it.
        spec: The feature type.
        cache_dir: A directory for caches outside datasets.
        items: The dataset's images; with them, a cache in a read-only dataset counts only if it is
            valid.
    """
    root = dataset_root(data)
    usual = root / "features" / spec.name
    if cache_dir is not None:
        return _keyed(cache_dir.expanduser().absolute(), root) / spec.name
    if is_writable(usual):
        return usual
    present = (usual / MANIFEST).is_file()
    if present and (items is None or find_cache(items, spec, usual)[0] is not None):
        return usual
    elsewhere = _keyed(Path(platformdirs.user_cache_dir("f3rm")), root) / spec.name
    log.warning("%s is not writable; the features are kept in %s.", usual, elsewhere)
    return elsewhere


def find_cache(
    items: Sequence[ImageItem], spec: FeatureSpec, folder: Path
) -> tuple[FeatureStore | None, str]:
    """Opens a cache if it is complete and fits these images and settings; loads no model.

    An image counts as the same if name, length and modification time agree, or else its content
    does.

    Args:
        items: The images that it must hold, in any order.
        spec: The settings.
        folder: Where to look.

    Returns:
        The cache, or None; and a sentence that says which cache it is, or why there is none.

    Raises:
        BackboneUnavailableError: If the weights are given as a path that does not exist.
    """
    identity = weights_identity(spec.backbone)
    if not (folder / MANIFEST).exists():
        return None, f"there is no finished cache in {folder}"
    try:
        manifest = read_manifest(folder)
        reason = _other_settings(manifest, spec, identity) or _other_images(manifest, items)
        if reason:
            return None, reason
        return FeatureStore.open(folder), f"the cache in {folder} is valid"
    except CacheError as error:
        return None, str(error)


def _keyed(base: Path, root: Path) -> Path:
    resolved = root.resolve()
    digest = xxhash.xxh3_64(str(resolved).encode()).hexdigest()[:8]
    return base / f"{resolved.name}-{digest}"


def _other_settings(manifest: Manifest, spec: FeatureSpec, identity: str) -> str:
    if manifest.key == spec.key(identity):
        return ""
    before = manifest.spec.settings(manifest.weights_identity, manifest.algorithm)
    after = spec.settings(identity)
    changes = [
        f"{name} {before[name]} -> {after[name]}" for name in after if before[name] != after[name]
    ]
    return f"the cache was made with other settings: {', '.join(changes)}"


def _other_images(manifest: Manifest, items: Sequence[ImageItem]) -> str:
    recorded = {image.name: image for image in manifest.images}
    wanted = {item.name for item in items}
    added = [item.name for item in items if item.name not in recorded]
    if added:
        return f"the cache lacks {len(added)} of the dataset's images, e.g. {added[0]!r}"
    removed = [name for name in recorded if name not in wanted]
    if removed:
        return f"the cache has {len(removed)} image(s) that the dataset lacks, e.g. {removed[0]!r}"
    for item in items:
        if not _same_image(recorded[item.name], item):
            return f"the image {item.name!r} has changed since the cache was made"
    return ""


def _same_image(record: ImageRecord, item: ImageItem) -> bool:
    try:
        status = item.path.stat()
        if status.st_size != record.bytes:
            return False
        return status.st_mtime_ns == record.mtime_ns or content_hash(item.path) == record.content
    except OSError:
        return False
