"""A run in tiny-cuda-nn's stand-in: it trains, resumes, is measured, asked, shown and exported."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.utils.eval_utils import eval_setup

import f3rm
from f3rm.camera_render import RenderRequest
from f3rm.errors import ImplementationError
from f3rm.model import FeatureFieldModel
from f3rm.networks import base
from f3rm.scene.attach.heads import AttachSettings, attach
from f3rm.scene.attach.training import held_out_cosines
from f3rm.scene.export.features import export_features, read_features
from f3rm.scene.export.objects import export_boxes
from f3rm.scene.export.points import Look, Sampling, export_points
from f3rm.scripts.cli import main
from tests.nerf_fixtures import NERFACTO_SIZES, camera, feature_model, head, rays
from tests.run_fixtures import colours, small_config, train
from tests.scene_fixtures import write_scene
from tests.tcnn_fixtures import tcnn_module
from tests.viewer.viewer_fixtures import FakeViewer, press

__all__ = ["colours", "tcnn_module"]

# Nerfstudio's viewer looks at every property of a model, also at torchmetrics' old ones.
pytestmark = pytest.mark.filterwarnings("ignore:This property will be removed:DeprecationWarning")

STEPS = 40
FEW = Sampling(rays=500)


@dataclass
class _Run:
    config: Path
    trained: Any
    before: float
    after: float


def _config(root, data, timestamp):
    config = small_config(data, root / "runs", "COLOURS")
    for name, value in {**NERFACTO_SIZES, "implementation": "auto"}.items():
        setattr(config.pipeline.model, name, value)
    manager: Any = config.pipeline.datamanager
    manager.train_num_rays_per_batch = manager.eval_num_rays_per_batch = 128
    config.timestamp, config.max_num_iterations = timestamp, STEPS
    assert config.mixed_precision is False  # so there is no gradient scaler
    return config


@pytest.fixture(scope="module")
def run(colours, tcnn_module, tmp_path_factory):
    root = tmp_path_factory.mktemp("tcnn")
    config = _config(root, write_scene(root / "scene", views=10), "run")
    fresh = train(copy.deepcopy(config), steps=0).pipeline
    before = held_out_cosines(fresh.model, fresh.datamanager)["colours"]
    trained = train(config)
    pipeline = trained.pipeline
    after = held_out_cosines(pipeline.model, pipeline.datamanager)["colours"]
    return _Run(config.get_base_dir() / "config.yml", trained, before, after)


@pytest.fixture(scope="module")
def scene(run):
    return f3rm.load(run.config, device="cpu", surface_rays=2000)


def test_it_trains_in_tiny_cuda_nn_without_a_gradient_scaler(run):
    model = run.trained.pipeline.model
    assert model.feature_field.config.implementation == "tcnn"
    names = model.state_dict()
    assert "feature_field.trunk.module.params" in names
    assert any("tcnn_encoding" in name for name in names)  # Nerfacto's own run in it, too
    assert run.after > run.before + 0.1


def test_it_resumes_where_it_ended(run):
    config = _config(run.config.parents[4], run.trained.config.data, "resumed")
    config.pipeline.datamanager.data = run.trained.config.pipeline.datamanager.data
    config.load_dir = run.config.parent / "nerfstudio_models"
    config.max_num_iterations = 2
    resumed = train(config, steps=0)
    assert resumed._start_step == STEPS
    state = run.trained.pipeline.model.state_dict()
    for name, value in resumed.pipeline.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state[name]), name
    before = state["feature_field.trunk.module.params"].clone()
    resumed.train()
    assert not torch.equal(
        resumed.pipeline.model.get_parameter("feature_field.trunk.module.params"), before
    )


def test_nerfstudio_evaluates_it_and_no_frame_is_kept(run):
    _, pipeline, _, _ = eval_setup(run.config)
    model: Any = pipeline.model
    manager: Any = pipeline.datamanager
    view, batch = manager.fixed_indices_eval_dataloader.get_camera(0)
    outputs = model.get_outputs_for_camera(view)
    assert outputs.hidden.dtype == torch.float32
    metrics, images = model.get_image_metrics_and_images(outputs, batch)
    assert {"feature_cosine", "feature_mse", "psnr"} <= set(metrics)
    assert images["feature_pca"].isfinite().all()
    assert model._frames.num_bytes == 0


def test_it_answers_at_points_in_float32(scene):
    points = scene.surface_points(500).positions
    hidden, features = scene.hidden(points), scene.features(points)
    assert hidden.dtype == features.dtype == torch.float32
    torch.testing.assert_close(features, scene.head()(hidden).detach())
    scores = scene.similarity(points, "orange")
    assert scores.shape == (len(points),)
    assert ((scores >= 0) & (scores < 1)).all()
    assert scene.similarity(points, "orange", negatives=[]).abs().max() <= 1 + 1e-5
    identified = scene.identify(points, "orange; blue", none_threshold=0.0)
    assert set(identified.names) <= {"orange", "blue"}
    assert scene.density(points).dtype == torch.float32
    found = scene.find("orange", threshold=0.0)
    assert len(found) > 0 or found.reason
    assert scene.features(np.zeros((0, 3))).shape == (0, scene.head().spec.channels)


def test_it_is_rendered_and_exported(run, scene, tmp_path):
    words = ["--output", "rgb,pca", "--downscale", "2", "--device", "cpu"]
    out = tmp_path / "pictures"
    assert main(["render", str(run.config), *words, "--out", str(out)]) == 0
    assert sorted(folder.name for folder in out.iterdir()) == ["pca", "rgb"]
    view = scene.cameras("eval")[0]
    view.rescale_output_resolution(0.5)
    names = ("similarity", "composite", "labels", "features")
    pictures = scene.render(view, names, query="orange; blue")
    assert {"composite", "labels", "features"} <= set(pictures)
    assert all(picture.isfinite().all() for picture in pictures.values())
    for look in (Look(), Look("pca"), Look("similarity")):
        query = "orange" if look.colour == "similarity" else None
        assert len(export_points(scene, tmp_path / "points.ply", FEW, look, query=query)) > 0
    file = tmp_path / "features.safetensors"
    points = export_features(scene, file, FEW, head="colours")
    read = read_features(file)
    assert torch.equal(read.coefficients, points.hidden)
    assert read.coefficients.dtype == torch.float32
    (answer,) = export_boxes(scene, tmp_path / "boxes.json", query="orange")
    assert len(answer) > 0 or answer.reason


def test_heads_are_attached_to_it_and_learn(run):
    out = run.config.parents[3]
    made = attach(run.config, AttachSettings("MUTE", steps=15), out=out, device="cpu")
    short = attach(run.config, AttachSettings("MUTE", steps=1), out=out, device="cpu")
    assert made.heads == ("colours", "mute")
    assert made.cosines["mute"] > short.cosines["mute"]
    whole = f3rm.load(made.config_path, device="cpu").model.feature_field
    alone = f3rm.load(run.config, device="cpu").model.feature_field
    positions = torch.rand(20, 3) - 0.5
    torch.testing.assert_close(
        whole.head("colours")(whole.hidden(positions)),
        alone.head("colours")(alone.hidden(positions)),
    )


def test_a_viewer_shows_it_clicks_and_refreshes_its_colours(run, tmp_path):
    model = f3rm.load(run.config, device="cpu").model
    viewer = FakeViewer(model, tmp_path)
    first = viewer.render(model, camera())
    press(model.controls.pca.a_refresh)
    again = viewer.render(model, camera())
    assert again["feature_pca"].dtype == torch.float32
    assert again["feature_pca"].shape == first["feature_pca"].shape
    assert model.controls.pca_override
    view = f3rm.load(run.config, device="cpu").cameras("eval", frame="nerfstudio")[0]
    bundle = view.generate_rays(camera_indices=0, keep_shape=True)
    rendered = model.get_outputs_for_camera(view, request=RenderRequest(features=True))
    row, column = divmod(int(rendered["accumulation"].argmax()), int(view.width))
    origin, direction = (t[row, column].tolist() for t in (bundle.origins, bundle.directions))
    clicked = model._features_along(tuple(origin), tuple(direction))["colours"]
    torch.testing.assert_close(clicked, rendered["feature"][row, column], atol=5e-2, rtol=5e-2)


def test_a_run_in_tiny_cuda_nn_is_not_opened_without_it(run, monkeypatch):
    monkeypatch.setattr(base, "tcnn_runs_on", lambda device: False)
    with pytest.raises(ImplementationError, match=r"trained with implementation 'tcnn'"):
        f3rm.load(run.config, device="cpu")


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["tcnn", "torch"])
def test_hidden_vectors_leave_the_field_in_float32(tcnn_module, implementation, autocast):
    model = feature_model(head(), implementation=implementation)
    positions = torch.rand(5, 7, 3) - 0.5
    for training in (True, False):
        with (
            torch.set_grad_enabled(training),
            torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
        ):
            hidden = model.feature_field.hidden(positions)
            assert model.feature_field.hidden(positions[:0]).shape == (0, 7, 16)
        assert hidden.dtype == torch.float32
        assert hidden.shape == (5, 7, 16)
        model.heads["clip"](hidden)  # outside of autocast, where half was refused


def test_half_precision_training_scales_and_learns_as_without(tcnn_module):
    model = feature_model(head(), implementation="tcnn").train()
    target = torch.randn(32, 12)
    parameter = model.feature_field.trunk.module.params
    found = []
    for outer in (1.0, 65536.0):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = model(rays())
            losses = model.feature_losses(outputs, {"feature": target})
        (losses["feature_loss"] * outer).backward()
        found.append(parameter.grad.clone() / outer)
        model.zero_grad()
    assert found[0].abs().max() > 0
    difference = (found[0] - found[1]).norm() / found[1].norm()
    assert float(difference) < 0.1


def test_sizes_of_the_options_are_refused_by_name(tcnn_module):
    with pytest.raises(ImplementationError, match=r"--pipeline.model.feat-num-layers is 1"):
        feature_model(head(), implementation="tcnn", feat_num_layers=1)
    model = feature_model(head(), implementation="auto", feat_num_layers=1)
    assert isinstance(model, FeatureFieldModel)
    assert model.config.implementation == "torch"
