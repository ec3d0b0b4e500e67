"""The calls of the standalone extractor's page, in its order, with a toy model and a tiny CLIP."""

import numpy as np
import pytest
import torch
from PIL import Image

import f3rm.extract
from f3rm.extract.cache import find_cache
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.features import extract_features_standalone as standalone
from f3rm.features.extract_features_standalone import (
    LazyFeatures,
    _async_to_cuda,
    extract_features_for_dataset,
    feature_loader,
    feature_saver,
)
from f3rm.scripts.command import run_command
from f3rm.scripts.extract import Extract
from f3rm.store.geometry import Prep
from f3rm.store.items import read_items
from f3rm.store.spec import FeatureSpec, resolve_feature_type
from tests.backbones import random_dino
from tests.extract.toy import write_dataset
from tests.systems.shell import run_script
from tests.systems.table import shows


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    return random_dino.write_random_checkpoint(folder, family="dino", width=32)


class ColourArgs:
    """Settings of an extraction function, as the earlier extractor's classes have them."""

    cells = 4

    @classmethod
    def id_dict(cls):
        return {"cells": cls.cells, "model": "colours"}


def colours(image_fnames, device):
    """Mean colours of 4 x 4 cells: (images, 4, 4, 3)."""
    small = [np.asarray(Image.open(name).resize((4, 4))) for name in image_fnames]
    return torch.from_numpy(np.stack(small)).float().to(device)


def extract(data, feature_type, *words):
    """Runs the script's command in this process."""
    options = ("--data", data, "--feature-type", feature_type, *words)
    assert run_command(Extract, [str(word) for word in options]) == 0


def cache_of(data, name):
    """Names of a cache's files, and when each was written."""
    folder = data / "features" / name
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("chunk_*.npy")}


@shows("`f3rm/features/extract_features_standalone.py --data DIR --feature-type CLIP`")
@shows("`f3rm/scripts/extract_features_standalone.py --data DIR --feature-type CLIP`")
@pytest.mark.parametrize("folder", ["features", pytest.param("scripts", marks=pytest.mark.nightly)])
def test_the_script_writes_chunks_and_meta(tmp_path, folder):
    data = write_dataset(tmp_path / "scene001", [(48, 64)] * 3)
    words = ("--data", data, "--feature-type", "TINYCLIP", "--shard-size", 2, "--device", "auto")
    run_script(f"f3rm/{folder}/extract_features_standalone.py", *words, cwd=tmp_path)
    assert sorted(cache_of(data, "tinyclip")) == ["chunk_0000.npy", "chunk_0001.npy"]
    meta = torch.load(data / "features/tinyclip/meta.pt", weights_only=True)
    assert len(meta["image_fnames"]) == 3


@shows("`--feature-type DINO --shard-size 32`, `--feature-type DINOCLIP`: a folder per type")
@shows("`--device cpu`, `--device cuda:0`, `--device auto`")
@shows("`--force`", "computes anew, also on a hit; the old cache stays valid until then")
def test_dinoclip_extracts_both_and_force_both_again(tmp_path, clip_folder, dino_folder):
    data = write_dataset(tmp_path / "scene001", [(48, 64)] * 3)
    weights = ("--weights", f"CLIP={clip_folder}", f"DINO={dino_folder}", "--device", "cpu")
    extract(data, "DINO[side=32]", *weights[:1], weights[2], "--shard-size", 2)
    dino = cache_of(data, "dino")
    assert sorted(dino) == ["chunk_0000.npy", "chunk_0001.npy"]
    extract(data, "DINOCLIP[side=32]", *weights, "--shard-size", 2)
    clip = cache_of(data, "clip")
    assert cache_of(data, "dino") == dino  # valid: nothing is computed
    assert sorted(clip) == sorted(dino)
    extract(data, "DINOCLIP[side=32]", *weights, "--shard-size", 2, "--force")
    assert not set(clip.values()) & set(cache_of(data, "clip").values())
    assert not set(dino.values()) & set(cache_of(data, "dino").values())
    for name in ("dino", "clip"):  # what training asks
        spec = {each.name: each for each in resolve_feature_type(
            "DINOCLIP[side=32]", weights=weights[1:3]
        )}[name]  # fmt: skip
        found, reason = find_cache(read_items(data), spec, data / "features" / name)
        assert found is not None, reason


@shows("`extract_features_for_dataset(image_fnames, data_dir, feature_type, device)`")
@shows("`LazyFeatures`: `feat[img, y, x]`, `feat.H`, `feat.W`, `feat.C`", "vectors in float32")
def test_the_datasets_features_have_the_order_of_the_images(tmp_path):
    data = write_dataset(tmp_path / "scene", [(48, 64)] * 3)
    names = [str(data / "images" / f"{number}.png") for number in (2, 0, 1)]
    device = torch.device("cpu")
    features = extract_features_for_dataset(names, data, "TINYCLIP", device, shard_size=2)
    assert isinstance(features, LazyFeatures)
    stores = f3rm.extract.extract_features_for_dataset(data, "TINYCLIP", progress=False)
    before = cache_of(data, "tinyclip")
    rows = {name: row for row, name in enumerate(stores["tinyclip"].names)}
    for image, number in enumerate((2, 0, 1)):
        expected = stores["tinyclip"].feature_map(rows[f"images/{number}.png"]).float()
        assert expected.shape == (features.H, features.W, features.C)
        assert torch.equal(features[image, 1, 3], expected[1, 3])
    again = extract_features_for_dataset(names, data, "TINYCLIP", device, 2, True, False)
    assert isinstance(again, LazyFeatures)
    assert cache_of(data, "tinyclip") == before
    loaded = extract_features_for_dataset(names, data, "TINYCLIP", device, enable_cache=False)
    assert isinstance(loaded, torch.Tensor)
    assert torch.equal(loaded[2, 1, 3], features[2, 1, 3])


@shows("`feature_saver(image_fnames, extract_fn, extract_args, data_dir, feature_type, device)`")
@shows("`feature_loader(image_fnames, extract_args, data_dir, feature_type, device)`")
def test_saver_and_loader_have_the_earlier_arguments_and_files(tmp_path):
    data = write_dataset(tmp_path / "scene", [(24, 33)] * 5)
    names = [str(data / "images" / f"{number}.png") for number in range(5)]
    device = torch.device("cpu")
    feature_saver(names, colours, ColourArgs, data, "COLOURS", device, shard_sz=2)
    root = data / "features" / "colours"
    assert [len(np.load(path)) for path in sorted(root.glob("chunk_*.npy"))] == [2, 2, 1]
    assert torch.load(root / "meta.pt", weights_only=True) == {
        "args": ColourArgs.id_dict(),
        "image_fnames": names,
    }
    feat = feature_loader(names, ColourArgs, data, "COLOURS", device)
    assert feat is not None
    assert (len(feat), feat.H, feat.W, feat.C) == (5, 4, 4, 3)
    every = colours(names, device)
    for where in ((0, 0, 0), (2, 3, 1), (4, 2, 2)):
        assert torch.equal(feat[where], every[where])
    with pytest.raises(IndexError, match="5 images"):
        feat[5, 0, 0]


def test_a_cache_of_other_images_settings_or_a_longer_run_is_none(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "scene", [(24, 33)] * 3)
    names = [str(data / "images" / f"{number}.png") for number in range(3)]
    options = (ColourArgs, data, "COLOURS", "cpu")
    assert feature_loader(names, *options) is None
    feature_saver(names, colours, *options, 1)
    feature_saver(names[:2], colours, *options, 1)
    assert feature_loader(names, *options) is None
    found = feature_loader(names[:2], *options)
    assert found is not None
    assert len(found) == 2  # chunk_0002.npy of the longer run is gone
    monkeypatch.setattr(ColourArgs, "cells", 5)
    assert feature_loader(names[:2], *options) is None
    (data / "features/colours/meta.pt").write_bytes(b"cut")
    assert feature_loader(names[:2], *options) is None


def test_a_killed_saver_leaves_no_valid_cache(tmp_path):
    data = write_dataset(tmp_path / "scene", [(24, 33)] * 3)
    names = [str(data / "images" / f"{number}.png") for number in range(3)]
    options = (ColourArgs, data, "COLOURS", "cpu", 1)

    def dies(image_fnames, device):
        if image_fnames == names[2:]:
            raise KeyboardInterrupt
        return colours(image_fnames, device)

    feature_saver(names, colours, *options)
    with pytest.raises(KeyboardInterrupt):
        feature_saver(names, dies, *options)
    assert feature_loader(names, *options[:-1]) is None


@shows("`_async_to_cuda(tensor, device)`")
def test_tensors_stay_on_the_cpu_where_that_is_the_device():
    values = torch.arange(4)
    assert _async_to_cuda(values, "cpu") is values
    assert {"feature_saver", "feature_loader", "LazyFeatures"} <= set(standalone.__all__)


@shows("a tap asked for as `0:token`", "found under that key, and as `0`")
def test_a_tap_is_found_under_the_key_that_was_asked_for(write_images):
    (path,) = write_images(["a.png"], (64, 64))
    spec = FeatureSpec.of("module:torchvision:resnet18@random", ["res2:token@patch"])
    found = FeatureExtractor(FeatureSpec(spec.backbone, spec.taps, Prep("exact", 64)))(path)
    assert list(found) == ["res2"]
    for key in ("res2", "res2:token", "res2 @patch"):
        assert key in found
        assert found[key] is found["res2"]
    for key in ("res3", "res2|mean", "|", 3):
        assert key not in found
    with pytest.raises(KeyError, match="res3"):
        found["res3:token"]
