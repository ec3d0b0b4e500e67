"""``f3rm extract`` with taps, ``f3rm probe`` and ``f3rm bench`` as a user runs them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from f3rm.extract.tables.bench import BenchError, benchmark
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.extract.tables.tables import TapStore
from f3rm.recipes.vissl import load_features
from f3rm.scripts.cli import main
from f3rm.store.geometry import Prep
from f3rm.store.spec import FeatureSpec
from tests.extract.tables.backbone import GridBackbone


@pytest.fixture
def classes(tmp_path, write_images):
    """Two classes of six images."""
    folder = tmp_path / "data"
    write_images([f"{name}/{n}.png" for name in ("a", "b") for n in range(6)], (64, 64), folder)
    return folder


def test_extract_then_probe(tmp_path, classes, dinov2_folder, capsys):
    out, file = tmp_path / "out", tmp_path / "spec.yaml"
    arguments = ["extract", "--data", str(classes), "--labelled", "--out", str(out)]
    model = ["--backbone", f"dinov2:tiny@{dinov2_folder}", "--device", "cpu"]
    taps = ["--tap", "final@cls", "-1:query@all"]
    assert main([*arguments, *model, *taps, "--save-spec", str(file), "--export", "array"]) == 0
    printed = capsys.readouterr().out
    assert "final@cls: 12 items of shape (32,)" in printed
    assert np.load(out / "all.final_cls.npy").shape == (12, 32)
    settled = replace(FeatureSpec.load(file), precision="float32")  # on the CPU
    assert settled == TapStore.open(out).spec

    assert main([*arguments, "--spec", str(file), "--device", "cpu"]) == 0  # nothing to compute
    assert main(["probe", "--store", str(out), "--tap", "final@cls", "--kind", "knn",
                 "--save", str(tmp_path / "probe")]) == 0  # fmt: skip
    assert "tested on 2: top-1" in capsys.readouterr().out
    assert (tmp_path / "probe" / "probe.safetensors").is_file()


def test_extract_with_a_vissl_configuration(tmp_path, classes, capsys):
    settings = {
        "SHOULD_FLATTEN_FEATS": True,
        "LINEAR_EVAL_FEAT_POOL_OPS_MAP": [["res4", ["AvgPool2d", [[2, 2], 2, 0]]]],
    }
    config = {"config": {"MODEL": {"FEATURE_EVAL_SETTINGS": settings}}}
    (tmp_path / "vissl.yaml").write_text(yaml.safe_dump(config))
    arguments = ["extract", "--data", str(classes), "--labelled", "--split", "train"]
    arguments += ["--spec", str(tmp_path / "vissl.yaml"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert "--backbone must be given" in capsys.readouterr().err
    arguments += ["--backbone", "module:torchvision:resnet18@random", "--device", "cpu"]
    assert main([*arguments, "--export", "vissl"]) == 0
    found = load_features(tmp_path / "out" / "vissl", "train", "res4")
    assert found["features"].shape == (12, 256 * 7 * 7)


def test_extract_says_what_is_missing_and_what_it_would_do(tmp_path, classes, capsys):
    base = ["extract", "--data", str(classes), "--device", "cpu"]
    assert main([*base, "--tap", "final"]) == 1
    assert "--backbone and --tap must be given" in capsys.readouterr().err
    model = ["--backbone", "module:torchvision:resnet18@random", "--tap", "res9"]
    assert main([*base, *model]) == 1
    assert "--out must be given" in capsys.readouterr().err
    assert main([*base, *model, "--out", str(tmp_path / "out")]) == 1
    assert "There is no layer 'res9'" in capsys.readouterr().err
    model[-1] = "res4|mean"
    assert main([*base, *model, "--out", str(tmp_path / "out"), "--shard", "some"]) == 1
    assert "--shard must be auto, batch, all or a number" in capsys.readouterr().err
    assert main([*base, *model, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "12 of 12 images to compute" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_probe_needs_labels(tmp_path, write_images, capsys):
    write_images([f"{n}.png" for n in range(4)], (64, 64), tmp_path / "data")
    model = ["--backbone", "module:torchvision:resnet18@random", "--tap", "conv1|mean"]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["extract", "--data", str(tmp_path / "data"), *model, *out]) == 0
    probe = ["probe", "--store", str(tmp_path / "out"), "--kind", "knn"]
    assert main(probe) == 1
    assert "The items have no labels" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("0 1 1 0")
    labels = ["--labels", str(tmp_path / "labels.txt")]
    assert main([*probe, *labels, "--test-fraction", "0.25"]) == 0
    assert "learnt from 3 items, tested on 1" in capsys.readouterr().out


def test_bench_prints_what_it_measured(capsys):
    arguments = ["bench", "--backbone", "module:torchvision:resnet18@random", "--tap", "res2|mean"]
    arguments += ["--sizes", "32x48", "--batches", "1", "2", "--iterations", "3", "--warmup", "1"]
    assert main([*arguments, "--device", "cpu", "--as-json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["size"], row["batch"]) for row in rows] == [([32, 48], 1), ([32, 48], 2)]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        expected = 1e3 * row["batch"] / row["mean_ms"]
        assert row["images_per_second"] == pytest.approx(expected)
        assert row["peak_mb"] > 0
    assert main([*arguments[:5], "--sizes", "32"]) == 1
    assert "360x640" in capsys.readouterr().err


def test_bench_takes_a_feature_type_as_it_is(capsys):
    arguments = ["bench", "--feature-type", "TINYCLIP[side=48]", "--sizes", "32x48"]
    arguments += ["--batches", "1", "--iterations", "1", "--warmup", "0", "--device", "cpu"]
    assert main(arguments) == 0
    assert "clip tinyclip on cpu" in capsys.readouterr().out
    assert main([*arguments, "--tap", "final"]) == 1
    assert "leave out --backbone" in capsys.readouterr().err
    assert main(["bench", "--feature-type", "DINO+TINYCLIP"]) == 1
    assert "must be one model" in capsys.readouterr().err


def test_benchmark_counts_its_runs_and_refuses_none(monkeypatch):
    calls: list[int] = []
    real = GridBackbone.encode_image
    monkeypatch.setattr(
        GridBackbone,
        "encode_image",
        lambda self, batch: calls.append(len(batch)) or real(self, batch),
    )
    backbone = GridBackbone()
    spec = FeatureSpec(backbone.ref, ("final",), Prep(resize="exact", size=16))
    extractor = FeatureExtractor(spec, backbone=backbone)
    benchmark(extractor, [(16, 16)], batches=(3,), warmup=2, iterations=4)
    assert calls == [3] * 6
    with pytest.raises(BenchError, match="must be positive"):
        benchmark(extractor, iterations=0)
