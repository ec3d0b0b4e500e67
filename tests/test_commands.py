"""The ns-* commands on a run, as a user types them: one small run, then everything on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.backbones import random_clip as clip, random_dino as dino
from tests.scene_fixtures import write_dataset
from tests.train_seed import TRAIN_SEED
from tests.viewer.shown import free_port

pytestmark = [pytest.mark.slow, pytest.mark.trains]

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "TORCH_HOME": "/nonexistent",  # LPIPS weights of the machine's owner must not matter
}
SMALL = [
    "--pipeline.model.num-nerf-samples-per-ray",
    "8",
    "--pipeline.model.num-proposal-samples-per-ray",
    "12",
    "8",
    "--pipeline.model.log2-hashmap-size",
    "10",
    "--pipeline.model.num-levels",
    "3",
    "--pipeline.model.feat-log2-hashmap-size",
    "10",
    "--pipeline.datamanager.train-num-rays-per-batch",
    "128",
]


def _ns(command, *arguments, cwd, check=True):
    result = subprocess.run(
        [BIN / command, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert not check or result.returncode == 0, output[-4000:]
    return output


def _train(scene, *arguments, steps=12):
    options = (
        f"--machine.device-type cpu --machine.seed {TRAIN_SEED} --vis tensorboard "
        f"--steps-per-save 1000 --max-num-iterations {steps} --output-dir runs --experiment-name e"
    )
    return [
        "f3rm-lite",
        *options.split(),
        *SMALL,
        "--data",
        scene / "data",
        "--pipeline.datamanager.feature-type",
        "DINOCLIP",
        "--pipeline.datamanager.weights",
        f"CLIP={scene / 'clip'}",
        f"DINO={scene / 'dino'}",
        *arguments,
    ]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    write_dataset(root / "data", {f"{i}.png": (36, 48) for i in range(20)})
    clip.write_random_checkpoint(root / "clip", layers=2, image_size=28)
    dino.write_random_checkpoint(root / "dino", width=16, layers=2)
    return root


@pytest.fixture(scope="module")
def run(scene):
    weights = [f"CLIP={scene / 'clip'}", f"DINO={scene / 'dino'}"]
    base = ("extract", "--data", scene / "data", "--feature-type")
    _ns("f3rm", *base, "CLIP", "--weights", weights[0], cwd=scene)  # what training then reuses
    query = ["--pipeline.model.positives", "red mug"]
    output = _ns("ns-train", *_train(scene, *query, "--timestamp", "first"), cwd=scene)
    assert "Training Finished" in output
    return scene / "runs" / "e" / "f3rm-lite" / "first"


def test_extraction_on_its_own_made_the_cache_that_training_uses(scene, run):
    folder = scene / "data" / "features"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["clip", "dino"]
    manifest = json.loads((folder / "clip" / "manifest.json").read_text())
    assert len(manifest["images"]) == 20
    meta = torch.load(folder / "clip" / "meta.pt", weights_only=True)
    assert meta["image_fnames"] == [f"images/{i}.png" for i in range(20)]


def test_checkpoint_loads_under_weights_only_and_holds_no_other_model(run):
    (path,) = (run / "nerfstudio_models").glob("*.ckpt")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    state = torch.load(path, weights_only=True)["pipeline"]
    assert not [name for name in state if "lpips" in name or "text" in name]
    assert [spec["name"] for spec in state["_model.feature_field._extra_state"]["heads"]] == [
        "dino",
        "clip",
    ]


def test_eval_reports_a_cosine_per_head_and_saves_pictures(run):
    arguments = ("--load-config", run / "config.yml", "--output-path", run / "metrics.json")
    _ns("ns-eval", *arguments, "--render-output-path", run / "pictures", cwd=run.parents[3])
    metrics = json.loads((run / "metrics.json").read_text())["results"]
    for name in ("psnr", "feature_cosine_dino", "feature_cosine_clip", "feature_mse_clip"):
        assert np.isfinite(metrics[name])
    assert -1 <= metrics["feature_cosine_dino"] <= 1
    with Image.open(run / "pictures" / "eval_feature_pca_clip_0000.png") as picture:
        assert picture.size == (96, 36)


def test_render_of_a_path_and_of_the_dataset(run):
    if shutil.which("ffmpeg", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("ns-render needs ffmpeg; `make setup` puts one into the environment")
    base = ("--load-config", run / "config.yml", "--rendered-output-names")
    names = ("rgb", "feature_pca", "similarity")
    path = ("--pose-source", "train", "--interpolation-steps", "2", "--frame-rate", "4")
    video = run / "path.mp4"
    _ns(
        "ns-render", "interpolate", *base, *names, *path, "--output-path", video, cwd=run.parents[3]
    )
    assert video.stat().st_size > 1000
    output = ("--output-path", run / "frames", "--split", "test")
    _ns("ns-render", "dataset", *base, "feature_pca", *output, cwd=run.parents[3])
    frames = sorted((run / "frames" / "test" / "feature_pca").iterdir())
    assert len(frames) == 2
    with Image.open(frames[0]) as frame:
        assert np.asarray(frame).std() > 0


def test_export_of_a_point_cloud_in_pca_colours(run):
    arguments = "--num-points 500 --remove-outliers False --normal-method open3d --obb-scale 9 9 9"
    paths = ("--load-config", run / "config.yml", "--output-dir", run / "cloud")
    output = _ns(
        "ns-export",
        "pointcloud",
        *paths,
        *arguments.split(),
        "--rgb-output-name",
        "feature_pca",
        cwd=run.parents[3],
    )
    assert (run / "cloud" / "point_cloud.ply").is_file(), output


def test_training_resumes_where_it_stopped(scene, run):
    load = ("--load-dir", run / "nerfstudio_models", "--timestamp", "second")
    output = _ns("ns-train", *_train(scene, *load, steps=5), cwd=scene)
    assert "Done loading Nerfstudio checkpoint" in output
    folder = run.parent / "second" / "nerfstudio_models"
    (path,) = folder.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["step"] == 12 + 5 - 1


def test_a_run_opens_without_its_cache(scene, run):
    features = scene / "data" / "features"
    hidden = features.rename(scene / "features-elsewhere")
    try:
        output = run / "metrics_without.json"
        log = _ns(
            "ns-eval", "--load-config", run / "config.yml", "--output-path", output, cwd=scene
        )
    finally:
        shutil.rmtree(features, ignore_errors=True)
        hidden.rename(features)
    metrics = json.loads(output.read_text())["results"]
    assert "psnr" in metrics
    assert "feature_cosine_clip" not in metrics
    assert "No feature metrics" in log


def test_viewer_starts_on_the_run(scene, run):
    port = free_port()
    command = [BIN / "ns-viewer", "--load-config", run / "config.yml"]
    command += ["--viewer.websocket-port", str(port), "--viewer.websocket-host", "127.0.0.1"]
    with (
        (scene / "viewer.log").open("w") as log,
        subprocess.Popen(
            list(map(str, command)), cwd=scene, env=ENVIRONMENT, stdout=log, stderr=log
        ) as process,
    ):
        try:
            page = _fetch(f"http://127.0.0.1:{port}", process, scene / "viewer.log")
        finally:
            process.send_signal(signal.SIGKILL)
    assert "<html" in page.lower()


def _fetch(url, process, log):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.read().decode()
        except OSError:
            time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])


def test_unknown_feature_type_ends_training_with_the_near_names(scene):
    arguments = _train(scene)
    arguments[arguments.index("DINOCLIP")] = "DINOCLOP"
    output = _ns("ns-train", *arguments, cwd=scene, check=False)
    assert "Did you mean DINOCLIP" in output
