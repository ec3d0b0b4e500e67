"""The calls of the standalone extractor's page, in its order, with a toy model and a tiny CLIP."""

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.extract.tables.live import FeatureExtractor
from f3rm.features import extract_features_standalone as standalone
from f3rm.features.extract_features_standalone import (
    LazyFeatures,
    _async_to_cuda,
    extract_features_for_dataset,
    feature_loader,
    feature_saver,
)
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec
from tests.extract.toy import write_dataset
from tests.systems.shell import run_script


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


@pytest.mark.parametrize("folder", ["scripts", "features"])
def test_the_script_writes_chunks_and_meta(tmp_path, folder):
    data = write_dataset(tmp_path / "scene001", [(48, 64)] * 3)
    script = f"f3rm/{folder}/extract_features_standalone.py"
    words = ("--data", data, "--feature-type", "TINYCLIP", "--shard-size", 2, "--device", "auto")
    run_script(script, *words, cwd=tmp_path)
    cache = data / "features" / "tinyclip"
    assert sorted(path.name for path in cache.glob("chunk_*.npy")) == [
        "chunk_0000.npy",
        "chunk_0001.npy",
    ]
    before = (cache / "chunk_0000.npy").stat().st_mtime_ns
    run_script(script, *words, cwd=tmp_path)  # valid: nothing is computed
    assert (cache / "chunk_0000.npy").stat().st_mtime_ns == before
    run_script(script, *words, "--force", cwd=tmp_path)
    assert (cache / "chunk_0000.npy").stat().st_mtime_ns != before
    meta = torch.load(cache / "meta.pt", weights_only=True)
    assert len(meta["image_fnames"]) == 3
    stores = extract_features_for_dataset(data, "TINYCLIP", progress=False)
    features = LazyFeatures(sorted(cache.glob("chunk_*.npy")), torch.device("cpu"))
    torch.testing.assert_close(features[2, 1, 3].float(), stores["tinyclip"].feature_map(2)[1, 3])


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


def test_tensors_stay_on_the_cpu_where_that_is_the_device():
    values = torch.arange(4)
    assert _async_to_cuda(values, "cpu") is values
    assert {"feature_saver", "feature_loader", "LazyFeatures"} <= set(standalone.__all__)


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
