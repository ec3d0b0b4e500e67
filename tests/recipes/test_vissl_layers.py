"""VISSL's layer-pool map, chunk policy, loader and files, against torchvision, timm and hooks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn
from torch.nn.functional import relu
from torchvision.datasets import ImageFolder

from f3rm.backbones.module.backbone import ModuleBackbone
from f3rm.backbones.registry import load_backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError, CacheError, TapError
from f3rm.extract.tables.items import list_items
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.extract.tables.run import extract
from f3rm.extract.tables.tables import TapStore
from f3rm.recipes.vissl import export_vissl, load_features, sample_features
from f3rm.recipes.vissl_config import read_vissl_config, tap_of
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec, SpecError

PREP = Prep(resize="exact", size=64)
CONFIG: dict[str, Any] = {
    "config": {
        "EXTRACT_FEATURES": {"OUTPUT_DIR": "", "CHUNK_THRESHOLD": 3},
        "MODEL": {
            "FEATURE_EVAL_SETTINGS": {
                "EVAL_MODE_ON": True,
                "FREEZE_TRUNK_ONLY": True,
                "EXTRACT_TRUNK_FEATURES_ONLY": True,
                "SHOULD_FLATTEN_FEATS": False,
                "LINEAR_EVAL_FEAT_POOL_OPS_MAP": [
                    ["conv1", ["AvgPool2d", [[10, 10], 10, 4]]],
                    ["res2", ["AvgPool2d", [[16, 16], 8, 0]]],
                    ["res3", ["MaxPool2d", [[3, 3], 2, 1]]],
                    ["res4", ["AdaptiveAvgPool2d", [[2, 2]]]],
                    ["res5", ["AdaptiveMaxPool2d", [[1, 2]]]],
                    ["res5avg", ["Identity", []]],
                ],
            }
        },
    }
}
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "conv1": nn.AvgPool2d((10, 10), 10, 4),
    "res2": nn.AvgPool2d((16, 16), 8, 0),
    "res3": nn.MaxPool2d((3, 3), 2, 1),
    "res4": nn.AdaptiveAvgPool2d((2, 2)),
    "res5": nn.AdaptiveMaxPool2d((1, 2)),
    "res5avg": nn.Identity(),
}
TORCHVISION_NAMES = {
    "conv1": "relu",
    "res2": "layer1",
    "res3": "layer2",
    "res4": "layer3",
    "res5": "layer4",
    "res5avg": "avgpool",
}
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.resnet18().eval()


@pytest.fixture(scope="module")
def backbone(resnet: nn.Module) -> ModuleBackbone:
    return ModuleBackbone(BackboneRef("module", "torchvision:resnet18", "random"), resnet)


@pytest.fixture
def classes(write_images, tmp_path: Path) -> Path:
    """Seven images in two classes, in an order that is not the alphabet's."""
    names = ["cat/b.png", "ant/x.png", "ant/c.png", "cat/a.png", "ant/d.png", "cat/e/f.png"]
    write_images([*names, "ant/y.png"], (64, 64), tmp_path / "classes")
    return tmp_path / "classes"


def reference_layers(resnet: nn.Module, paths: list[Path]) -> dict[str, torch.Tensor]:
    """Pooled trunk features by hooks of our own, channels first."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    found: dict[str, torch.Tensor] = {}
    modules = dict(resnet.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            found[name] = output.clone()

        return hook

    hooks = [
        modules[ours].register_forward_hook(keep(name)) for name, ours in TORCHVISION_NAMES.items()
    ]
    with torch.no_grad():
        resnet(images)
    for hook in hooks:
        hook.remove()
    return {name: POOLS[name](value) for name, value in found.items()}


def run(classes: Path, out: Path, backbone: ModuleBackbone, **options: Any) -> TapStore:
    settings = read_vissl_config(CONFIG)
    spec = settings.spec(backbone.ref, PREP)
    chosen = {"shard": settings.shard, "split": "train", "progress": False, **options}
    items = list_items(classes, labelled=True)
    return extract(items, spec, out, load=lambda *_, **__: backbone, **chosen)


def test_vissl_layer_pool_map_equals_hooks_on_torchvision(tmp_path, classes, resnet, backbone):
    store = run(classes, tmp_path / "out", backbone)
    export_vissl(store, tmp_path / "vissl", layers=read_vissl_config(CONFIG).layers, chunk=3)
    expected = reference_layers(resnet, [item.path for item in store.items.items])
    for layer, value in expected.items():
        found = load_features(tmp_path / "vissl", "train", layer)
        assert found["features"].dtype == np.float32
        assert found["features"].shape == tuple(value.shape)
        np.testing.assert_allclose(found["features"], value.numpy(), atol=1e-4, rtol=1e-3)


def test_vissl_targets_and_indices_are_those_of_image_folder(tmp_path, classes, backbone):
    store = run(classes, tmp_path / "out", backbone)
    export_vissl(store, tmp_path / "vissl")
    reference = ImageFolder(str(classes))
    found = load_features(tmp_path / "vissl", "train", "res5avg")
    np.testing.assert_array_equal(found["inds"], np.arange(7))
    np.testing.assert_array_equal(found["targets"], np.array(reference.targets)[:, None])
    assert [str(item.path) for item in store.items.items] == [path for path, _ in reference.imgs]
    assert list(store.items.classes) == reference.classes


def test_vissl_chunk_policies_give_the_same_features(tmp_path, classes, backbone):
    found = {}
    for name, threshold in {"batch": 0, "some": 2, "all": -1}.items():
        plain = {**CONFIG["config"], "EXTRACT_FEATURES": {"CHUNK_THRESHOLD": threshold}}
        shard = read_vissl_config(plain).shard
        found[name] = run(classes, tmp_path / name, backbone, shard=shard, batch_size=2)
    chunks = {name: len(list(store.folder.glob("chunk_*.npy"))) for name, store in found.items()}
    assert chunks == {"batch": 4, "some": 4, "all": 1}
    for tap in found["all"].taps:
        expected = found["all"].load(tap).features
        for store in found.values():
            np.testing.assert_allclose(store.load(tap).features, expected, atol=1e-5)


@pytest.mark.parametrize(("threshold", "files"), [(0, 4), (3, 3), (-1, 1)])
def test_vissl_files_are_cut_as_the_threshold_says(tmp_path, classes, backbone, threshold, files):
    plain = {**CONFIG["config"], "EXTRACT_FEATURES": {"CHUNK_THRESHOLD": threshold}}
    settings = read_vissl_config(plain)
    store = run(classes, tmp_path / "out", backbone, shard=settings.shard, batch_size=2)
    export_vissl(store, tmp_path / "vissl", layers=settings.layers)
    assert len(list((tmp_path / "vissl").glob("*_res4_features.npy"))) == files


HEADS: dict[str, tuple[list[Any], nn.Module]] = {
    "one": ([["mlp", {"dims": [512, 7]}]], nn.Sequential(nn.Flatten(), nn.Linear(512, 7))),
    "two": (
        [
            [
                "mlp",
                {
                    "dims": [512, 9],
                    "use_bn": True,
                    "use_relu": True,
                    "skip_last_layer_relu_bn": False,
                },
            ],
            ["mlp", {"dims": [9, 5]}],
        ],
        nn.Sequential(
            nn.Flatten(), nn.Linear(512, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5)
        ),
    ),
    "deep": (
        [
            [
                "mlp",
                {
                    "dims": [512, 9, 6],
                    "use_bn": True,
                    "use_relu": True,
                    "use_dropout": True,
                    "use_bias": False,
                },
            ]
        ],
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(512, 9, bias=False),
            nn.BatchNorm1d(9),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(9, 6, bias=False),
        ),
    ),
    "eval-deep": (
        [["eval_mlp", {"in_channels": 512, "dims": [512, 8, 4], "use_bn": True, "use_relu": True}]],
        nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Flatten(),
            nn.Linear(512, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 4),
        ),
    ),
    "eval": (
        [["eval_mlp", {"in_channels": 512, "dims": [512, 4]}]],
        nn.Sequential(nn.BatchNorm2d(512), nn.Flatten(), nn.Linear(512, 4)),
    ),
}
NAMES = {
    "eval-deep": {"0": "0.channel_bn", "2": "0.clf.clf.0", "3": "0.clf.clf.1", "5": "0.clf.clf.3"},
    "one": {"1": "0.clf.0"},
    "two": {"1": "0.clf.0", "2": "0.clf.1", "4": "1.clf.0"},
    "deep": {"1": "0.clf.0", "2": "0.clf.1", "5": "0.clf.4"},
    "eval": {"0": "0.channel_bn", "2": "0.clf.clf.0"},
}


def test_vissl_export_again_leaves_no_chunk_of_the_earlier_one(tmp_path, classes, backbone):
    store = run(classes, tmp_path / "out", backbone)
    for chunk in (1, 4):
        files = export_vissl(store, tmp_path / "vissl", chunk=chunk)
    assert sorted(files) == sorted((tmp_path / "vissl").glob("*_features.npy"))
    assert len(list((tmp_path / "vissl").glob("*.npy"))) == 3 * len(files)


def head_config(params: list[Any], depth: int = 18) -> dict[str, Any]:
    model = {
        "FEATURE_EVAL_SETTINGS": {"FREEZE_TRUNK_AND_HEAD": True, "EVAL_TRUNK_AND_HEAD": True},
        "HEAD": {"PARAMS": params},
        "TRUNK": {"NAME": "resnet", "RESNETS": {"DEPTH": depth}},
    }
    return {"config": {"MODEL": model}}


def write_checkpoint(file: Path, resnet: nn.Module, name: str) -> nn.Module:
    """Writes VISSL's checkpoint of a trunk and its heads; returns the heads."""
    head = HEADS[name][1].eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for tensor in (*head.parameters(), *head.buffers()):
            if tensor.is_floating_point():
                tensor.data.uniform_(0.2, 1)
    heads = {
        f"{NAMES[name][key.split('.')[0]]}.{key.split('.')[1]}": value
        for key, value in head.state_dict().items()
    }
    trunk = {
        f"_feature_blocks.{key}": value
        for key, value in resnet.state_dict().items()
        if not key.startswith("fc.")
    }
    model = {"model": {"trunk": trunk, "heads": heads}}
    torch.save({"classy_state_dict": {"base_model": model}, "iteration": 1}, file)
    return head


@pytest.mark.parametrize("name", HEADS)
def test_vissl_heads_are_the_checkpoints(tmp_path, classes, resnet, name):
    file = tmp_path / "model.torch"
    head = write_checkpoint(file, resnet, name)
    settings = read_vissl_config(head_config(HEADS[name][0]))
    spec = settings.spec(BackboneRef("module", "torchvision:resnet18", str(file)), PREP)
    image = classes / "ant" / "c.png"
    if name == "two":
        store = extract(classes, spec, tmp_path / "out", split="train", progress=False)
        export_vissl(store, tmp_path / "vissl", layers=settings.layers)
        row = store.items.names.index("ant/c.png")
        rows = load_features(tmp_path / "vissl", "train", "heads")["features"]
        found = torch.from_numpy(rows[row : row + 1])
    else:
        found = FeatureExtractor(spec, device="cpu")([image])["head"]
    pooled = reference_layers(resnet, [image])["res5avg"]
    with torch.no_grad():
        torch.testing.assert_close(found, head(pooled), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([["swav_head", {"dims": [512, 128]}]], "'swav_head' cannot be built; known are"),
        ([["mlp", {"dims": [512, 7], "use_gelu": True}]], "unknown options .*use_gelu"),
        ([["eval_mlp", {"dims": [512, 7]}]], "lacks .*in_channels"),
        ([[["mlp", {"dims": [512, 7]}]]], "one head per feature cannot be built"),
        ([], "HEAD.PARAMS must be a list"),
    ],
)
def test_vissl_heads_that_cannot_be_built_are_refused_by_name(params, message):
    settings = read_vissl_config(head_config(params))
    with pytest.raises(SpecError, match=message):
        settings.spec(BackboneRef("module", "torchvision:resnet18", "x.torch"), PREP)


def test_vissl_another_trunk_or_checkpoint_than_the_configurations_is_refused(tmp_path, resnet):
    file = tmp_path / "model.torch"
    write_checkpoint(file, resnet, "one")
    params = HEADS["one"][0]
    small = BackboneRef("module", "torchvision:resnet18", str(file))
    with pytest.raises(SpecError, match=r"depth 50 .*resnet18"):
        read_vissl_config(head_config(params, 50)).spec(small, PREP)
    large = BackboneRef("module", "torchvision:resnet50", str(file))
    for ref, config, message in (
        (large, head_config(params, 50), "does not fit the model"),
        (small, head_config([["mlp", {"dims": [512, 8]}]]), "does not hold these heads"),
        (replace(small, weights="random"), head_config(params), "read from a checkpoint"),
    ):
        with pytest.raises(BackboneUnavailableError, match=message):
            load_backbone(read_vissl_config(config).spec(ref, PREP).backbone)


def test_vissl_one_layer_with_two_pools_keeps_both_under_the_right_names(backbone, classes):
    taps = ["res5|mean", "res3|max(2,2)", "res3|avg(2,2)"]  # not in network order
    spec = FeatureSpec(backbone.ref, tuple(taps), PREP)
    found = FeatureExtractor(spec, backbone=backbone)([classes / "ant" / "c.png"])
    assert list(found) == [str(tap) for tap in spec.taps]
    assert found["res5|mean"].shape == (1, 512)
    pooled = found["res3|max(2,2)"], found["res3|avg(2,2)"]
    assert pooled[0].shape == pooled[1].shape == (1, 4, 4, 128)
    assert (pooled[0] >= pooled[1]).all()
    assert (pooled[0] > pooled[1]).any()


def test_vissl_trunk_and_head_of_any_module(classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trunk = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        head = nn.Sequential(nn.Flatten(), nn.Linear(8, 5))
    ref = BackboneRef("module", "mine", "random")
    backbone = ModuleBackbone(ref, trunk, head=head, probe_size=64)
    extractor = FeatureExtractor(FeatureSpec(ref, ("head", "1|mean"), PREP), backbone=backbone)
    found = extractor([classes / "ant" / "c.png"])
    pixels = torch.from_numpy(np.asarray(Image.open(classes / "ant" / "c.png")).copy())
    image = ((pixels.permute(2, 0, 1).float() / 255 - MEAN) / STD)[None]
    with torch.no_grad():
        torch.testing.assert_close(found["head"], head(trunk(image)), atol=1e-5, rtol=1e-4)
        mean = relu(trunk[0](image)).mean((2, 3))
    torch.testing.assert_close(found["1|mean"], mean, atol=1e-5, rtol=1e-4)


def test_vissl_timm_model_by_name(classes):
    spec = FeatureSpec.of("module:timm:resnet18@random", ["res4|flatten"], prep=PREP)
    extractor = FeatureExtractor(spec, device="cpu")
    found = extractor([classes / "ant" / "c.png"])["res4|flatten"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("resnet18").eval()
    pixels = torch.from_numpy(np.asarray(Image.open(classes / "ant" / "c.png")).copy())
    image = ((pixels.permute(2, 0, 1).float() / 255 - MEAN) / STD)[None]
    network.layer4, network.global_pool, network.fc = nn.Identity(), nn.Identity(), nn.Identity()
    with torch.no_grad():
        expected = network.forward_features(image).flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_vissl_unknown_layer_and_impossible_facet_fail_at_once(backbone):
    for tap, message in (("res6", "did you mean"), ("res4:query", "facet")):
        with pytest.raises(TapError, match=message):
            FeatureExtractor(FeatureSpec(backbone.ref, (tap,), PREP), backbone=backbone)


def test_vissl_yaml_without_a_map_is_the_trunks_output_under_the_name_heads(tmp_path):
    plain = {"MODEL": {"FEATURE_EVAL_SETTINGS": {"EXTRACT_TRUNK_FEATURES_ONLY": True}}}
    file = tmp_path / "trunk.yaml"
    file.write_text(yaml.safe_dump({"config": plain}))
    settings = read_vissl_config(file)
    assert settings.layers == {"res5avg|flatten": "heads"}
    assert settings.shard == "all"
    head = {"MODEL": {"FEATURE_EVAL_SETTINGS": {"FREEZE_TRUNK_AND_HEAD": True}}}
    assert read_vissl_config(head).layers == {"head": "heads"}


def test_vissl_unknown_pool_names_the_known_ones():
    with pytest.raises(SpecError, match="did you mean AvgPool2d"):
        tap_of("res4", ["AvgPool", [2]], flatten=False)


def _write_shard(folder: Path, rank: int, chunk: int, inds: list[int], value: float) -> None:
    stem = folder / f"rank{rank}_chunk{chunk}_train_res4_"
    np.save(f"{stem}features.npy", np.full((len(inds), 2), value, dtype=np.float32))
    np.save(f"{stem}targets.npy", np.array(inds)[:, None])
    np.save(f"{stem}inds.npy", np.array(inds))


def test_vissl_foreign_folder_last_duplicate_wins_and_chunk_10_follows_chunk_2(tmp_path):
    _write_shard(tmp_path, 0, 2, [4, 0], 2.0)
    _write_shard(tmp_path, 0, 10, [0, 3], 10.0)
    _write_shard(tmp_path, 1, 0, [3, 1], 100.0)
    found = load_features(tmp_path, "train", "res4")
    np.testing.assert_array_equal(found["inds"], [0, 1, 3, 4])
    np.testing.assert_array_equal(found["features"][:, 0], [10.0, 100.0, 100.0, 2.0])
    np.testing.assert_array_equal(found["targets"], [[0], [1], [3], [4]])


@pytest.mark.parametrize("num", [-1, 0, 1, 5, 9, 50])
def test_vissl_samples_have_the_size_the_rows_and_the_seed(tmp_path, num):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 2, 3)).astype(np.float32)
    order = rng.permutation(9)
    for name, cuts in (("one", [9]), ("many", [2, 5, 9])):
        (tmp_path / name).mkdir()
        start = 0
        for chunk, end in enumerate(cuts):
            inds = order[start:end]
            stem = tmp_path / name / f"rank0_chunk{chunk}_test_heads_"
            np.save(f"{stem}features.npy", rows[inds])
            np.save(f"{stem}inds.npy", inds)
            start = end
    first = sample_features(tmp_path / "one", "test", "heads", num, 3)
    again = sample_features(tmp_path / "many", "test", "heads", num, 3, flatten_features=True)
    size = 9 if num < 0 else min(num, 9)
    assert first["features"].shape == (size, 2, 3)
    np.testing.assert_array_equal(first["features"], rows[first["inds"]])
    np.testing.assert_array_equal(first["inds"], again["inds"])
    np.testing.assert_array_equal(first["features"].reshape(size, 6), again["features"])
    assert list(first["inds"]) == sorted(set(first["inds"].tolist()))
    assert "targets" not in first


def test_vissl_missing_layer_names_what_there_is(tmp_path):
    _write_shard(tmp_path, 0, 0, [0], 1.0)
    with pytest.raises(CacheError, match=r"'res9'.*train_res4"):
        load_features(tmp_path, "train", "res9")


def test_vissl_several_processes_compute_every_item_once(tmp_path, classes):
    """Seven items and two workers: a padded sampler would give eight."""
    spec = FeatureSpec.of("module:timm:resnet18@random", ["conv1|mean"], prep=PREP)
    items = list_items(classes, labelled=True)
    options: dict[str, Any] = {"shard": 2, "progress": False, "device": "cpu"}
    alone = extract(items, spec, tmp_path / "alone", **options)
    both = extract(items, spec, tmp_path / "both", workers=2, **options)
    np.testing.assert_array_equal(both.load().indices, np.arange(7))
    for file in sorted(alone.folder.glob("chunk_*.npy")):
        assert file.read_bytes() == (both.folder / file.name).read_bytes()
