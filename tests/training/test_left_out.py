"""Images that cannot be extracted: left out of training by name, or an error with a way out."""

import os
import shutil

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from f3rm import load
from f3rm.errors import DatasetError, F3rmError, ImageError
from f3rm.extract.standalone import extract_features_for_dataset
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.scene.attach.heads import AttachSettings, attach
from f3rm.store.manifest import read_manifest
from tests.backbones import random_dino as dino
from tests.run_fixtures import colours, small_config, train
from tests.scene_fixtures import write_dataset

__all__ = ["colours"]

NAMES = [*(f"train_{number}.png" for number in range(4)), *(f"eval_{i}.png" for i in range(3))]
BAD = ("images/eval_0.png", "images/train_1.png")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "dino"
    return (f"DINO={dino.write_random_checkpoint(folder, width=16, layers=2)}",)


@pytest.fixture
def data(tmp_path):
    """A dataset with masks, two of whose images are cut off and do not decode."""
    root = write_dataset(tmp_path / "scene", dict.fromkeys(NAMES, (45, 60)), masks=True)
    for name in BAD:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    return root


def manager_of(data, weights, *, test_mode="val", **settings):
    config = FeatureDataManagerConfig(
        data=data,
        dataparser=NerfstudioDataParserConfig(eval_mode="filename", downscale_factor=1),
        train_num_rays_per_batch=64,
        eval_num_rays_per_batch=64,
        feature_type="DINO",
        weights=weights,
        **settings,
    )
    return config.setup(device="cpu", test_mode=test_mode)


def kept_names(manager):
    datasets = (manager.train_dataset, manager.eval_dataset)
    return [sorted(path.name for path in dataset.image_filenames) for dataset in datasets]


KEPT = [["train_0.png", "train_2.png", "train_3.png"], ["eval_1.png", "eval_2.png"]]


def check_batches(manager):
    for bundle, batch in (manager.next_train(0), manager.next_eval(0)):
        assert batch["feature"].shape == (len(bundle), 16)
        assert torch.isfinite(batch["feature"]).all()
        assert (batch["indices"][:, 2] < 30).all()  # the masks of the images that stayed
    train_image = manager.next_train(1)[1]["indices"][0, 0]
    assert 0 <= int(train_image) < 3


def test_training_after_extract_with_record_leaves_the_failed_images_out(data, weights, caplog):
    extract_features_for_dataset(data, "DINO", weights=weights, on_error="record", device="cpu")
    written = (data / "features/dino/manifest.json").read_bytes()
    caplog.clear()
    manager = manager_of(data, weights)
    said = [line for line in caplog.messages if "left out" in line]
    assert len(said) == 1
    assert said[0].startswith("2 of 7 images have no features and are left out of training and")
    assert said[0].endswith(": images/eval_0.png, images/train_1.png.")
    assert kept_names(manager) == KEPT
    assert len(manager.train_dataset.cameras) == len(manager.train_dataparser_outputs.cameras) == 3
    assert manager.config.feature_left_out == BAD
    check_batches(manager)
    assert (data / "features/dino/manifest.json").read_bytes() == written


def test_a_bad_image_ends_training_with_options_that_the_user_has(data, weights):
    with pytest.raises(ImageError, match=r"train_1\.png|eval_0\.png") as caught:
        manager_of(data, weights)
    assert "--on-error record to go on without it (f3rm extract)" in str(caught.value)
    assert "--pipeline.datamanager.feature-on-error record (ns-train)" in str(caught.value)
    assert FeatureDataManagerConfig.__dataclass_fields__["feature_on_error"].default == "raise"
    manager = manager_of(data, weights, feature_on_error="record")
    assert kept_names(manager) == KEPT
    check_batches(manager)


def test_a_missing_image_is_left_out_like_a_damaged_one(data, weights):
    (data / BAD[0]).unlink()
    with pytest.raises(ImageError, match=r"1 of 7 named in .* are missing: images/eval_0\.png"):
        manager_of(data, weights)
    assert kept_names(manager_of(data, weights, feature_on_error="record")) == KEPT


def test_a_repaired_image_comes_back(data, weights):
    manager_of(data, weights, feature_on_error="record")
    for name in BAD:
        shutil.copy(data / "images/train_0.png", data / name)
    manager = manager_of(data, weights)
    assert kept_names(manager) == [sorted(NAMES[:4]), sorted(NAMES[4:])]
    assert not read_manifest(data / "features/dino").failed


@pytest.mark.parametrize("test_mode", ["test", "inference"])
def test_opening_leaves_out_what_training_did_without_the_cache_too(data, weights, test_mode):
    manager_of(data, weights, feature_on_error="record")
    assert kept_names(manager_of(data, weights, test_mode="test")) == KEPT
    shutil.rmtree(data / "features")
    manager = manager_of(data, weights, test_mode=test_mode, feature_left_out=BAD)
    assert kept_names(manager) == KEPT


def test_without_a_training_image_the_reason_is_said(data, weights):
    for number in range(4):
        (data / f"images/train_{number}.png").write_bytes(b"no image")
    with pytest.raises(
        DatasetError, match="There is no image to train on: all training images are left out or"
    ):
        manager_of(data, weights, feature_on_error="record")


def test_a_run_trained_without_some_images_opens_after_its_cache_is_gone(data, colours, tmp_path):
    config = small_config(data, tmp_path / "runs", "COLOURS")
    manager = config.pipeline.datamanager
    assert isinstance(manager, FeatureDataManagerConfig)
    assert isinstance(manager.dataparser, NerfstudioDataParserConfig)
    manager.feature_on_error, manager.dataparser.eval_mode = "record", "filename"
    config.max_num_iterations = 2
    train(config)
    shutil.rmtree(data / "features")
    scene = load(config.get_base_dir() / "config.yml")
    assert sorted(scene.views("train")) == [f"images/{name}" for name in KEPT[0]]
    assert scene.views("eval") == ("images/eval_1.png", "images/eval_2.png")


def test_attached_features_lack_no_photograph_that_the_run_has(colours, tmp_path):
    """The scene has an entry for each training camera; what fails later cannot be left out."""
    data = write_dataset(tmp_path / "scene", dict.fromkeys(NAMES, (45, 60)))
    config = small_config(data, tmp_path / "runs", "COLOURS")
    manager = config.pipeline.datamanager
    assert isinstance(manager, FeatureDataManagerConfig)
    assert isinstance(manager.dataparser, NerfstudioDataParserConfig)
    manager.dataparser.eval_mode, config.max_num_iterations = "filename", 1
    train(config)
    run, image = config.get_base_dir() / "config.yml", data / BAD[1]
    content, time = image.read_bytes(), image.stat().st_mtime_ns
    image.write_bytes(content[:-100] + bytes(100))
    os.utime(image, ns=(time, time))
    extract_features_for_dataset(data, "MUTE", on_error="record", device="cpu")
    image.write_bytes(content)  # it decodes again, and looks like the file that failed
    os.utime(image, ns=(time, time))
    with pytest.raises(F3rmError, match=r"have no features: 1, e\.g\. 'images/train_1\.png'"):
        attach(run, AttachSettings("MUTE", steps=1), out=tmp_path / "runs", device="cpu")
    os.utime(image)
    made = attach(run, AttachSettings("MUTE", steps=1), out=tmp_path / "runs", device="cpu")
    assert made.heads == ("colours", "mute")
