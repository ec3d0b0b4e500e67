"""The calls of VISSL's page on extraction, in its order, against torchvision's own layers."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from f3rm.recipes import ExtractedFeaturesLoader
from f3rm.recipes.vissl_engine import compose, run_engine
from f3rm.scripts.command import run_command
from f3rm.scripts.systems.vissl import RunDistributedEngines
from f3rm.store.names import UnsafeNameError
from tests.recipes.test_vissl_layers import TORCHVISION_NAMES
from tests.systems.shell import run_script
from tests.systems.table import shows

BASE = "config=feature_extraction/extract_resnet_in1k_8gpu"
LAYERS = "+config/feature_extraction/trunk_only=rn50_layers"
SIZE, RESIZED = 224, 256
POOLS = {
    "conv1": nn.AvgPool2d((10, 10), 10, 4),
    "res2": nn.AvgPool2d((16, 16), 8, 0),
    "res3": nn.AvgPool2d((13, 13), 5, 0),
    "res4": nn.AvgPool2d((8, 8), 3, 0),
    "res5": nn.AvgPool2d((6, 6), 1, 0),
    "res5avg": nn.Identity(),
}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.resnet18().eval()


@pytest.fixture
def photos(tmp_path, write_images) -> Path:
    names = [f"{name}/{number}.png" for name in ("ant", "cat") for number in range(2)]
    write_images([*names, "cat/other.png"], (RESIZED, RESIZED + 9), tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def words(tmp_path, resnet, photos) -> list[str]:
    """What a session gives beside the page's words: a small trunk, its weights, images."""
    state = {name: value for name, value in resnet.state_dict().items() if "fc." not in name}
    trunk = {f"_feature_blocks.{name}": value for name, value in state.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = {"0.clf.0.weight": torch.randn(7, 512), "0.clf.0.bias": torch.randn(7)}
    model = {"model": {"trunk": trunk, "heads": head}}
    torch.save({"classy_state_dict": {"base_model": model}}, tmp_path / "my_weights.torch")
    return [
        f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={tmp_path}/my_weights.torch",
        "config.MODEL.TRUNK.RESNETS.DEPTH=18",
        f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
        f"config.EXTRACT_FEATURES.OUTPUT_DIR={tmp_path}/out",
    ]


def reference(resnet: nn.Module, photos: Path) -> dict[str, np.ndarray]:
    """The layers in ImageFolder's order, by torchvision's transforms and hooks."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = Compose([Resize(RESIZED), CenterCrop(SIZE), ToTensor(), Normalize(mean, std)])
    images = torch.stack([image for image, _ in ImageFolder(str(photos), steps)])
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.update({name: output.clone()})

    modules = dict(resnet.named_modules())
    for name, ours in TORCHVISION_NAMES.items():
        modules[ours].register_forward_hook(keep(name))
    with torch.no_grad():
        resnet(images)
    return {name: POOLS[name](value).numpy() for name, value in found.items()}


@shows(
    "`run_distributed_engines.py config=feature_extraction/extract_resnet_in1k_8gpu "
    "+config/feature_extraction/trunk_only=rn50_layers "
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=FILE`",
    "with `config.DATA.TRAIN.DATA_PATHS=[DIR]`, unless `dataset_catalog.json` names the data",
)
@shows("a configuration, from Python", "`settings = read_vissl_config(config)`")
@shows(
    "the same, from Python",
    "`store = extract(list_items(photos, labelled=True), settings.spec(resnet, "
    'Prep("cover", 64)), out / "res", split="train", shard=settings.shard)`',
)
@shows("`LINEAR_EVAL_FEAT_POOL_OPS_MAP`: layers of the trunk, each pooled")
@shows(
    "`Resize` and `CenterCrop` of `TRANSFORMS`",
    "the same pixels; PIL rounds to grey levels once more",
)
@shows("`CHUNK_THRESHOLD`: 0 a file per batch, N per N images, -1 one")
@shows("`rank0_chunk0_train_res4_features.npy`, `_targets.npy`, `_inds.npy`")
@shows("the same, of a store", "`export_vissl(store, vissl, layers=settings.layers)`")
@shows('`ExtractedFeaturesLoader.load_features(input_dir=..., split="train", layer="res4")`')
@shows("the same, from Python", '`load_features(vissl, "train", "res4")`')
@shows(
    "`ExtractedFeaturesLoader.sample_features(..., num_samples=5, seed=0, flatten_features=True)`",
)
@shows("the same, from Python", '`sample_features(vissl, "train", "res4", 2, 0)`')
def test_the_command_writes_the_layers_that_the_loader_reads(tmp_path, words, resnet, photos):
    threshold = ["config.EXTRACT_FEATURES.CHUNK_THRESHOLD=3"]
    threshold.append("config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=2")
    script = "tools/run_distributed_engines.py"
    printed = run_script(script, BASE, LAYERS, *words, *threshold, cwd=tmp_path)
    assert "rank0_chunk0_train_res4_features.npy" in printed
    names = {path.name for path in (tmp_path / "out").glob("rank0_chunk*_train_res4_*.npy")}
    assert names == {
        f"rank0_chunk{chunk}_train_res4_{what}.npy"  # 4 images are the first whole batches over 3
        for chunk in (0, 1)
        for what in ("features", "targets", "inds")
    }
    expected = reference(resnet, photos)
    for layer in POOLS:
        features = ExtractedFeaturesLoader.load_features(
            input_dir=str(tmp_path / "out"), split="train", layer=layer, flatten_features=False
        )
        feature, targets = features["features"], features["targets"]
        np.testing.assert_allclose(feature, expected[layer], atol=1e-4, rtol=1e-3)
        assert targets.tolist() == [[0], [0], [1], [1], [1]]
        assert features["inds"].tolist() == [0, 1, 2, 3, 4]
    sampled_features = ExtractedFeaturesLoader.sample_features(
        input_dir=str(tmp_path / "out"),
        split="train",
        layer="res4",
        num_samples=3,
        seed=0,
        flatten_features=True,
    )
    rows = expected["res4"].reshape(5, -1)[sampled_features["inds"]]
    np.testing.assert_allclose(sampled_features["features"], rows, atol=1e-4, rtol=1e-3)


@shows(
    "trunk output: no layers are named",
    "the last pooled layer, in files called `heads`, as there",
)
@shows("`SHOULD_FLATTEN_FEATS`", "True by default, as in VISSL's `defaults.yaml`")
def test_the_trunks_output_is_named_heads(tmp_path, words, resnet, photos):
    settings = "config.MODEL.FEATURE_EVAL_SETTINGS"
    flags = [
        f"{settings}.{name}=True"
        for name in ("EVAL_MODE_ON", "FREEZE_TRUNK_ONLY", "EXTRACT_TRUNK_FEATURES_ONLY")
    ]
    run_engine([BASE, *flags, f"{settings}.SHOULD_FLATTEN_FEATS=False", *words])
    found = ExtractedFeaturesLoader.load_features(str(tmp_path / "out"), "train", "heads")
    expected = reference(resnet, photos)["res5avg"]
    np.testing.assert_allclose(found["features"], expected, atol=1e-4, rtol=1e-3)
    run_engine([BASE, *flags, *words])  # the default flattens
    flat = ExtractedFeaturesLoader.load_features(str(tmp_path / "out"), "train", "heads")
    assert flat["features"].shape == (5, 512)
    again = ExtractedFeaturesLoader.load_features(str(tmp_path / "out"), "train", "heads", True)
    np.testing.assert_array_equal(flat["features"], again["features"])


@shows("head output: `FREEZE_TRUNK_AND_HEAD`, `HEAD.PARAMS` with `mlp` or `eval_mlp`")
@shows("the same, from Python", '`FeatureExtractor(FeatureSpec(resnet, ("head",)))(image)`')
def test_the_heads_of_the_checkpoint(tmp_path, words, resnet, photos):
    head = ["+config/feature_extraction/with_head=rn50_supervised"]
    head.append("config.MODEL.HEAD.PARAMS=[[mlp,{dims:[512,7]}]]")
    run_engine([BASE, *head, *words])
    found = ExtractedFeaturesLoader.load_features(str(tmp_path / "out"), "train", "heads")
    saved = torch.load(tmp_path / "my_weights.torch", weights_only=True)
    clf = saved["classy_state_dict"]["base_model"]["model"]["heads"]
    pooled = reference(resnet, photos)["res5avg"].reshape(5, 512)
    expected = pooled @ clf["0.clf.0.weight"].numpy().T + clf["0.clf.0.bias"].numpy()
    np.testing.assert_allclose(found["features"], expected, atol=1e-3, rtol=1e-3)


@shows("configurations of your own in `configs/config`, `dataset_catalog.json`")
@shows('`OUTPUT_DIR: ""`: the checkpoint\'s folder, `CHECKPOINT.DIR`')
@shows("`MAP_FEATURES_TO_IMG_NAME`", "two images of one name are refused, not overwritten")
@shows("the same, of a store", '`export_per_item(store, out / "files", "res5avg")`')
def test_files_of_ones_own_and_the_catalog_replace_those_that_ship(tmp_path, words, photos):
    own = tmp_path / "configs/config"
    (own / "mine").mkdir(parents=True)
    (own / "mine/small.yaml").write_text(
        "# @package _global_\nengine_name: extract_features\nconfig:\n  CHECKPOINT: "
        f"{{DIR: {tmp_path}/checkpoints}}\n  DATA:\n    TEST: {{LABEL_TYPE: sample_index}}\n"
        "  OPTIMIZER: {name: sgd}\n"
    )
    catalog = {"imagenet1k_folder": {"train": ["<img_path>", "<lbl_path>"], "val": [str(photos)]}}
    (own / "dataset_catalog.json").write_text(json.dumps(catalog))
    pool = "+config/feature_extraction/trunk_only=rn50_res5"
    mapped = "config.EXTRACT_FEATURES.MAP_FEATURES_TO_IMG_NAME=True"
    with pytest.raises(UnsafeNameError, match="'0' twice"):  # ant/0.png and cat/0.png
        run_engine(["config=mine/small", pool, *words[:2], mapped], configs=tmp_path / "configs")
    for path in (photos / "cat").glob("[01].png"):
        path.unlink()
    run_engine(["config=mine/small", pool, *words[:2], mapped], configs=tmp_path / "configs")
    folder = tmp_path / "checkpoints"  # an empty OUTPUT_DIR is the checkpoint's folder
    found = ExtractedFeaturesLoader.load_features(folder, "test", "res5avg")
    assert found["targets"].tolist() == [[0], [1], [2]]
    image = np.load(folder / "features_to_image/test/res5avg/other.npy")
    np.testing.assert_array_equal(image, found["features"][2:])


def vissls_own_loader(folder, split, layer):
    """Reads a folder as VISSL does: every file whose name fits, one row after another."""
    features, targets = {}, {}
    for path in sorted(folder.iterdir()):
        match = re.match(rf"(.*)_{split}_{layer}_features.npy", path.name)
        if match:
            stem = folder / f"{match[1]}_{split}_{layer}"
            arrays = [np.load(f"{stem}_{what}.npy") for what in ("features", "targets", "inds")]
            for feature, target, index in zip(*arrays, strict=True):
                features[index], targets[index] = feature, target
    inds = np.array(sorted(features))
    stacked = [np.array([found[index] for index in inds]) for found in (features, targets)]
    return {"features": stacked[0], "targets": stacked[1], "inds": inds}


@shows("files that VISSL wrote are read, files written here are read by its loader")
def test_files_of_both_are_read_by_both(tmp_path, words, resnet, photos):
    pool = "+config/feature_extraction/trunk_only=rn50_res5"
    run_engine([BASE, pool, *words, "config.EXTRACT_FEATURES.CHUNK_THRESHOLD=0"])
    ours = ExtractedFeaturesLoader.load_features(tmp_path / "out", "train", "res5avg")
    theirs = vissls_own_loader(tmp_path / "out", "train", "res5avg")
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    rows = {0: [3, 1, 0], 1: [2, 4, 0]}  # two processes; the sampler gave one image to both
    for rank, inds in rows.items():
        stem = tmp_path / f"rank{rank}_chunk0_train_heads"
        for what, array in ours.items():  # features as VISSL stores them, in float64
            wide = array.astype(np.float64) if what == "features" else array
            np.save(f"{stem}_{what}.npy", wide[inds])
    found = ExtractedFeaturesLoader.load_features(tmp_path, "train", "heads")
    again = vissls_own_loader(tmp_path, "train", "heads")
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, theirs[name])


@shows("`PARAMS_FILE` of torchvision's own")
def test_weights_of_torchvision_are_read(tmp_path, words, resnet, photos):
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    weights = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={tmp_path}/resnet18.pth"
    pool = "+config/feature_extraction/trunk_only=rn50_res5"
    run_engine([BASE, pool, *words, weights])
    found = ExtractedFeaturesLoader.load_features(tmp_path / "out", "train", "res5avg")
    np.testing.assert_allclose(
        found["features"], reference(resnet, photos)["res5avg"], atol=1e-2, rtol=1e-2
    )


@shows("`disk_filelist`: arrays of paths and labels")
def test_a_list_of_files_with_labels(tmp_path, words, photos):
    paths = sorted(map(str, photos.rglob("*.png")), reverse=True)
    np.save(tmp_path / "images.npy", np.array(paths))
    np.save(tmp_path / "labels.npy", np.arange(5) * 10)
    pool = "+config/feature_extraction/trunk_only=rn50_res5"
    split = "config.DATA.TRAIN"
    more = [f"{split}.DATA_SOURCES=[disk_filelist]", f"{split}.DATA_PATHS=[{tmp_path}/images.npy]"]
    more.append(f"{split}.LABEL_PATHS=[{tmp_path}/labels.npy]")
    run_engine([BASE, pool, *words, *more])
    found = ExtractedFeaturesLoader.load_features(tmp_path / "out", "train", "res5avg")
    assert found["targets"].reshape(-1).tolist() == [0, 10, 20, 30, 40]


@shows("`config.A.B=value`, `+config.A=value`: Hydra's grammar")
def test_the_page_s_values_arrive():
    found = compose([BASE, LAYERS, "config.EXTRACT_FEATURES.CHUNK_THRESHOLD=0", "+config.NEW=[1]"])
    assert found["engine_name"] == "extract_features"
    assert found["config"]["EXTRACT_FEATURES"]["CHUNK_THRESHOLD"] == 0
    assert found["config"]["NEW"] == [1]
    pools = found["config"]["MODEL"]["FEATURE_EVAL_SETTINGS"]["LINEAR_EVAL_FEAT_POOL_OPS_MAP"]
    assert pools[4] == ["res5", ["AvgPool2d", [[6, 6], 1, 0]]]
    assert found["config"]["MODEL"]["TRUNK"]["RESNETS"]["DEPTH"] == 50


@shows(
    "`engine_name=extract_features`",
    "other engines are refused by name; benchmarks: `f3rm probe`",
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "You must specify 'config'"),
        (["config=feature_extraction/extract_resnet"], "Could not find 'config/feature_extraction"),
        ([BASE, "config.MODEL.TYPO=1"], r"Could not override 'config\.MODEL\.TYPO'"),
        ([BASE, "engine_name=train"], "engine_name must be extract_features, got 'train'"),
        ([BASE, "config.MODEL.TRUNK.NAME=vision_transformer"], "a resnet that torchvision has"),
        ([BASE, "config.MODEL.WEIGHTS_INIT.PARAMS_FILE="], "PARAMS_FILE must name a checkpoint"),
        ([BASE, "config.DATA.TRAIN.DATA_SOURCES=[airstore]"], "disk_folder or disk_filelist"),
        ([BASE, "config.DATA.TRAIN.DATA_PATHS=[]"], r"DATA_PATHS=\[photos/train\]"),
    ],
)
def test_impossible_configurations_are_named(words, tmp_path, monkeypatch, given, message, capsys):
    monkeypatch.chdir(tmp_path)
    has_values = len(given) > 1
    assert run_command(RunDistributedEngines, [*(words if has_values else []), *given]) == 1
    assert re.search(message, capsys.readouterr().err)
