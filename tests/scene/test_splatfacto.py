"""Runs of splatfacto, as its own model, configuration and checkpoint write them."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.splatfacto import SplatfactoModelConfig

import f3rm
from f3rm.compat import lazy_lpips
from f3rm.scene.run_loading import RunError
from f3rm.scene.splat.loading import LoadedSplat, dataset_from_source, load_splat
from f3rm.scripts.cli import main
from f3rm.splats.ply import SplatFileError, read_ply
from f3rm.splats.views import compare
from f3rm.synthetic.truth import SceneTruth
from tests.scene.test_splat import CPU, known_object, made, moved

__all__ = ["made"]


def _splatfacto_state(gaussians, harmonics):
    """The tensors that splatfacto saves of Gaussians, made by its own model."""
    config = SplatfactoModelConfig(random_init=True, num_random=9, sh_degree=3 if harmonics else 0)
    with lazy_lpips():
        box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
        model = config.setup(scene_box=box, num_train_data=9)
    rest = 15 if harmonics else 0
    colours = (gaussians.sh[:, 0] * 0.28209479177387814 + 0.5).clamp(1e-4, 1 - 1e-4)
    values = {
        "means": gaussians.means,
        "scales": gaussians.scales.log(),
        "quats": 3 * gaussians.quats,
        "features_dc": gaussians.sh[:, 0] if harmonics else colours.logit(),
        "features_rest": torch.zeros(len(gaussians), rest, 3),
        "opacities": gaussians.opacities[:, None].logit(),
    }
    for name, value in values.items():
        model.gauss_params[name] = torch.nn.Parameter(value.contiguous())
    return {f"_model.{name}": value for name, value in model.state_dict().items()}, model


def _write_splatfacto(root, made, *, harmonics=True, transform=None, change=None):
    """A run as ns-train writes it, of a splat of the scene; returns its config.yml."""
    data, ply = made
    config = copy.deepcopy(all_methods["splatfacto"])
    config.data, config.output_dir, config.timestamp = data, root, "run"
    config.pipeline.datamanager.data = data
    config.set_experiment_name()
    config.save_config()
    folder = config.get_base_dir()
    scene = load_splat(ply, data=data, device=CPU).source.frames.get("dataset").scene_from_frame
    transform = scene if transform is None else transform
    scale = float(np.cbrt(np.linalg.det(transform[:3, :3])))
    note = {"transform": (transform[:3] / scale).tolist(), "scale": scale}
    (folder / "dataparser_transforms.json").write_text(json.dumps(note))
    in_run = read_ply(moved(ply, root / "moved.ply", transform))
    state, model = _splatfacto_state(in_run, harmonics)
    if change is not None:
        change(state)
    optimizer = torch.optim.Adam(list(model.gauss_params.parameters()), lr=1e-3)
    saved = {
        "step": 29_999,
        "pipeline": state,
        "optimizers": {"means": optimizer.state_dict()},
        "schedulers": {},
        "scalers": {},
    }
    folder.joinpath("nerfstudio_models").mkdir()
    torch.save({**saved, "pipeline": {}}, folder / "nerfstudio_models" / "step-000002000.ckpt")
    torch.save(saved, folder / "nerfstudio_models" / "step-000029999.ckpt")
    return folder / "config.yml"


def test_a_splatfacto_run_is_lifted_onto_and_asked(colours, made, tmp_path, capsys):
    data, _ = made
    config = _write_splatfacto(tmp_path, made)
    before = {path.name for path in config.parent.rglob("*")}
    words = ["attach", str(config.parent), "--feature-type", "COLOURS", "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"Ask it: f3rm.load({str(config.parent)!r}) in Python" in printed
    new = {path.name for path in config.parent.rglob("*")} - before
    assert new == {"step-000029999.colours.safetensors"}
    scene = f3rm.load(config, device="cpu")
    assert str(config) in repr(scene)
    assert scene.heads == ("colours",)
    thing, found = known_object(scene, SceneTruth.read(data))
    assert np.linalg.norm(found[0].centre - np.array(thing.centre)) < 0.1
    # the run's own frame
    points = scene.surface_points(500, frame="nerfstudio")
    assert isinstance(scene.run, LoadedSplat)
    own = scene.run.source.source.from_scene(points.positions)
    torch.testing.assert_close(own, points.positions)


def test_a_splatfacto_run_is_in_the_frame_that_it_was_trained_in(made, tmp_path):
    """Which is not that of its dataset once photographs were added to it."""
    data, ply = made
    trained = np.diag([0.4, 0.4, 0.4, 1.0])
    config = _write_splatfacto(tmp_path, made, harmonics=False, transform=trained)
    run = load_splat(config, data=data, device=CPU)
    assert np.allclose(dataset_from_source(run) @ trained, np.eye(4), atol=1e-6)
    views = run.photographs(96)[::4]
    expected = compare(read_ply(ply), load_splat(ply, data=data, device=CPU).photographs(96)[::4])
    assert compare(run.source.gaussians, views).psnr == pytest.approx(expected.psnr, abs=0.1)


def test_gaussians_that_an_export_leaves_out_are_left_out(made, tmp_path):
    data, ply = made

    def spoil(state):
        name = "_model.gauss_params."
        state[f"{name}means"][0] = torch.nan
        state[f"{name}scales"][1, 2] = torch.inf
        state[f"{name}quats"][2] = 0
        state[f"{name}opacities"][3] = -9.0
        state[f"{name}opacities"][4] = torch.nan
        state[f"{name}features_rest"][5, 3] = torch.nan

    config = _write_splatfacto(tmp_path / "spoilt", made, change=spoil)
    run = load_splat(config, data=data, device=CPU)
    assert len(run.source.gaussians) == len(read_ply(ply)) - 6
    empty = _write_splatfacto(
        tmp_path / "empty",
        made,
        change=lambda state: state["_model.gauss_params.means"].fill_(torch.inf),
    )
    with pytest.raises(SplatFileError, match="has 0 Gaussians that can be seen"):
        f3rm.load(empty, device="cpu")
    state = torch.load(empty.parent / "nerfstudio_models" / "step-000029999.ckpt")
    del state["pipeline"]["_model.gauss_params.means"]
    torch.save(state, empty.parent / "nerfstudio_models" / "step-000030000.ckpt")
    with pytest.raises(SplatFileError, match=r"no _model.gauss_params.means: it is no splat"):
        f3rm.load(empty, device="cpu")


def test_a_splatfacto_run_that_cannot_be_read_says_why(made, tmp_path):
    config = _write_splatfacto(tmp_path, made)
    with pytest.raises(RunError, match=r"No such dataset: .*data= in Python"):
        f3rm.load(config, data=tmp_path / "nowhere", device="cpu")
    newest = config.parent / "nerfstudio_models" / "step-000029999.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"step-000029999.ckpt' does not fit the run"):
        f3rm.load(config, device="cpu")
    shutil.rmtree(newest.parent)
    with pytest.raises(RunError, match="There is no checkpoint in"):
        f3rm.load(config, device="cpu")
