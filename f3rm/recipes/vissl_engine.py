"""VISSL's engine ``extract_features``: a configuration in Hydra's grammar to its files of features.

``config=feature_extraction/...`` names a file of VISSL's in ``configs/config`` of the current
folder, or one of those here in ``vissl_configs``, which have VISSL's names and keys. Differences:
the CPU computes where there is no GPU, and weights must be named.

*Source:* https://github.com/facebookresearch/vissl, ``vissl/engines/extract_features.py`` and
``vissl/config/defaults.yaml`` (MIT; no code of it is used).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from f3rm.backbones.optional import require
from f3rm.errors import BackboneRef, DatasetError, StrPath, as_path
from f3rm.extract.tables.items import ItemList, list_items
from f3rm.extract.tables.run import extract
from f3rm.recipes.elsewhere import present_device
from f3rm.recipes.vissl import ExtractedFeaturesLoader, export_vissl
from f3rm.recipes.vissl_config import prep_of, read_vissl_config
from f3rm.store.npy import load_npy
from f3rm.store.spec import SpecError

ENGINE = "extract_features"

_CONFIGS = Path(__file__).parent / "vissl_configs"
_SPLITS = {"TRAIN": "train", "TEST": "val"}
"""Split of a configuration -> its name in VISSL's catalog of datasets."""
_RESNETS = {
    (1, 1, 64): "resnet{}",
    (1, 32, 4): "resnext{}_32x4d",
    (1, 32, 8): "resnext{}_32x8d",
    (1, 64, 4): "resnext{}_64x4d",
}
"""WIDTH_MULTIPLIER, GROUPS and WIDTH_PER_GROUP -> torchvision's name, given DEPTH."""


def run_engine(overrides: Sequence[str], *, configs: StrPath = "configs") -> list[Path]:
    """Extracts features as a command line of VISSL's says; returns the files of features.

    Args:
        overrides: Words in Hydra's grammar: ``config=feature_extraction/...``,
            ``+config/feature_extraction/trunk_only=rn50_layers``, ``config.A.B=value``.
        configs: The folder of configurations, as VISSL's ``configs``; it need not exist.

    Raises:
        F3rmError: If the configuration, the model, the data or the disk cannot be used.
    """
    plain = compose(overrides, configs)
    if plain.get("engine_name") != ENGINE:
        found = plain.get("engine_name")
        raise SpecError(f"engine_name must be {ENGINE}, got {found!r}. Write engine_name={ENGINE}.")
    config = plain["config"]
    settings = read_vissl_config(config)
    out = settings.output_dir or Path(config["CHECKPOINT"]["DIR"])
    on_gpu = config["MACHINE"]["DEVICE"] == "gpu" and present_device("cuda") != "cpu"
    processes = min(int(config["DISTRIBUTED"]["NUM_PROC_PER_NODE"]), torch.cuda.device_count())
    written: list[Path] = []
    for name in ("TEST",) if config["TEST_ONLY"] else _SPLITS:
        data = config["DATA"][name]
        items = _items(data, _SPLITS[name], as_path(configs))
        if items is None:
            continue
        batch = int(data["BATCHSIZE_PER_REPLICA"])
        shard = settings.shard
        if isinstance(shard, int):  # whole batches are buffered until there are so many images
            shard = -(-shard // batch) * batch
        store = extract(
            items,
            settings.spec(_backbone(config["MODEL"]), prep_of(data["TRANSFORMS"])),
            out / "store",
            split=name.lower(),
            shard=shard,
            batch_size=batch,
            device="auto" if on_gpu else "cpu",
            workers=processes if on_gpu and processes > 1 else None,
        )
        written += export_vissl(store, out, layers=settings.layers)
        if config["EXTRACT_FEATURES"].get("MAP_FEATURES_TO_IMG_NAME"):
            paths = [str(item.path) for item in items.items]
            for layer in settings.layers.values():
                ExtractedFeaturesLoader.map_features_to_img_filepath(
                    paths, out, name.lower(), layer
                )
    if not written:
        raise DatasetError(
            "config.DATA.TRAIN.DATA_PATHS or config.DATA.TEST.DATA_PATHS must name the data, got "
            "none. Write e.g. 'config.DATA.TRAIN.DATA_PATHS=[photos/train]'."
        )
    return written


def compose(overrides: Sequence[str], configs: StrPath = "configs") -> dict[str, Any]:
    """Composes a configuration from files and words in Hydra's grammar.

    Args:
        overrides: As for :func:`run_engine`.
        configs: As there; its files replace those that ship with f3rm.

    Raises:
        SpecError: If a word is malformed, or names no file or no key.
        MissingExtraError: If Hydra is missing.
    """
    hydra = require("hydra", extra="vissl", purpose="VISSL's command line")
    omegaconf = require("omegaconf", extra="vissl", purpose="VISSL's command line")
    with TemporaryDirectory() as merged:  # Hydra looks for the first file in one folder alone
        shutil.copytree(_CONFIGS, merged, dirs_exist_ok=True)
        if as_path(configs).is_dir():
            shutil.copytree(as_path(configs), merged, dirs_exist_ok=True)
        try:
            with hydra.initialize_config_dir(config_dir=merged, version_base="1.3"):
                found = hydra.compose("defaults", overrides=list(overrides))
            return omegaconf.OmegaConf.to_container(found, resolve=True)
        except (hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException) as error:
            message = str(error).replace(f"file://{merged}", str(configs))
            raise SpecError(
                f"{message.strip()}\nWrite e.g. config=feature_extraction/..."
            ) from error


def _backbone(model: Mapping[str, Any]) -> BackboneRef:
    """Returns the trunk as a model of torchvision with the checkpoint's weights."""
    trunk, weights = model["TRUNK"], model["WEIGHTS_INIT"]["PARAMS_FILE"]
    resnet = trunk["RESNETS"]
    shape = tuple(resnet[name] for name in ("WIDTH_MULTIPLIER", "GROUPS", "WIDTH_PER_GROUP"))
    if trunk["NAME"] != "resnet" or shape not in _RESNETS:
        raise SpecError(
            f"config.MODEL.TRUNK must be a resnet that torchvision has, got {trunk['NAME']} with "
            f"{shape}. Other models: f3rm extract --spec CONFIG --backbone adapter:model@weights."
        )
    if not weights:
        raise SpecError(
            "config.MODEL.WEIGHTS_INIT.PARAMS_FILE must name a checkpoint, got none. Name one, or "
            "write random."
        )
    name = _RESNETS[shape].format(resnet["DEPTH"])
    return BackboneRef("module", f"torchvision:{name}", str(weights))


def _items(data: Mapping[str, Any], split: str, configs: Path) -> ItemList | None:
    """Lists a split's images with labels; None if nothing says where they are."""
    paths, labels = list(data["DATA_PATHS"]), list(data["LABEL_PATHS"])
    if not paths:
        paths, labels = _catalogued(data["DATASET_NAMES"], split, configs)
    if not paths:
        return None
    source = (data["DATA_SOURCES"] or ["disk_folder"])[0]
    if source == "disk_folder":
        items = list_items(paths[0], labelled=True)
    elif source == "disk_filelist":
        items = list_items(paths[0])
        if labels:
            targets = load_npy(as_path(labels[0])).reshape(-1).tolist()
            items = replace(items, targets=tuple(map(int, targets)))
    else:
        raise DatasetError(
            f"DATA_SOURCES must be disk_folder or disk_filelist, got {source!r}. Write the images "
            "to a folder of classes, or list their paths in a .npy file."
        )
    if data["LABEL_TYPE"] == "sample_index":  # every image is its own class
        items = replace(items, targets=tuple(range(len(items))))
    return items


def _catalogued(names: Sequence[str], split: str, configs: Path) -> tuple[list[str], list[str]]:
    """Returns paths of images and labels from ``dataset_catalog.json``, if it is filled in."""
    catalog = configs / "config" / "dataset_catalog.json"
    if not catalog.is_file() or not names:
        return [], []
    entry = json.loads(catalog.read_text(encoding="utf-8")).get(names[0], {}).get(split, [])
    known = [path for path in entry if not path.startswith("<")]
    return known[:1], known[1:2]
