"""Heads are added to a run: what was there stays, what is new learns."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from f3rm.camera_render import RenderRequest
from f3rm.errors import F3rmError
from f3rm.f3rm_config import f3rm_lite_method
from f3rm.feature_datamanager import FeatureDataManager
from f3rm.model import FeatureFieldModel
from f3rm.scene.attach import AttachSettings, attach, heads
from f3rm.scene.run_loading import RunError, load_run
from f3rm.scripts.cli import main
from tests.nerf_fixtures import NERFACTO_SIZES
from tests.run_fixtures import colours, small_config, train
from tests.scene_fixtures import write_scene
from tests.train_seed import TRAIN_SEED

__all__ = ["colours"]

CPU = torch.device("cpu")
EVERYTHING = RenderRequest(features=True)


def _shared(source, kind):
    names = kind.__dataclass_fields__.keys() - {"_target"}
    return {name: copy.deepcopy(getattr(source, name)) for name in names}


@pytest.fixture(scope="module")
def plain(colours, train_seed, tmp_path_factory):
    """A run of plain Nerfacto on a small scene."""
    root = tmp_path_factory.mktemp("attached")
    data = write_scene(root / "scene", seed=train_seed, views=10)
    config = small_config(data, root / "runs", "COLOURS")
    config.pipeline.datamanager = VanillaDataManagerConfig(
        **_shared(config.pipeline.datamanager, VanillaDataManagerConfig)
    )
    config.pipeline.datamanager.train_num_rays_per_batch = 128
    config.pipeline.model = NerfactoModelConfig(
        **{**_shared(config.pipeline.model, NerfactoModelConfig), **NERFACTO_SIZES}
    )
    del config.optimizers["feature_field"]
    config.method_name, config.max_num_iterations = "nerfacto", 20
    train(config)
    return config.get_base_dir() / "config.yml"


@pytest.fixture(scope="module")
def first(plain):
    """The same run with the head ``colours``."""
    settings = AttachSettings("COLOURS", steps=60, seed=TRAIN_SEED)
    return attach(plain, settings, out=plain.parents[3], device="cpu")


@pytest.fixture(scope="module")
def second(first):
    """The run with the heads ``colours`` and ``mute``, which were added one after the other."""
    settings = AttachSettings("MUTE", steps=5, seed=TRAIN_SEED)
    return attach(first.config_path, settings, out=first.config_path.parents[3], device="cpu")


def _rendered(config):
    run = load_run(config, device=CPU)
    camera = run.held_out.cameras[0:1]
    if isinstance(run.model, FeatureFieldModel):
        return run.model.get_outputs_for_camera(camera, request=EVERYTHING)
    return run.model.get_outputs_for_camera(camera)


def test_colours_and_density_stay_bit_for_bit(plain, first, second):
    expected = _rendered(plain)
    for made in (first, second):
        rendered = _rendered(made.config_path)
        for name, image in expected.items():
            assert torch.equal(rendered[name], image), name


def test_heads_that_were_there_stay_bit_for_bit(first, second):
    before, after = _rendered(first.config_path), _rendered(second.config_path)
    assert (first.heads, second.heads) == (("colours",), ("colours", "mute"))
    assert torch.equal(after["feature_colours"], before["feature"])
    torch.testing.assert_close(after["feature_pca_colours"], before["feature_pca"])
    assert after["feature_mute"].shape == before["feature"].shape


def test_the_new_head_learns(plain, first, monkeypatch):
    lite = f3rm_lite_method.config.optimizers["feature_field"]["optimizer"]
    monkeypatch.setattr(lite, "lr", 1e-12)  # a step of it leaves the head as it was drawn
    settings = AttachSettings("COLOURS", steps=1, seed=TRAIN_SEED)
    short = attach(plain, settings, out=plain.parents[3], device="cpu")
    assert first.config_path != short.config_path
    assert first.cosines["colours"] > short.cosines["colours"] + 0.1
    assert first.steps == 60


def test_targets_are_averaged_over_segments_as_by_training(plain, tmp_path, monkeypatch):
    for photograph in (plain.parents[4] / "scene" / "images").iterdir():
        Image.new("L", (4, 3), 1).save(tmp_path / f"{photograph.stem}.png")  # one segment
    targets = []

    def look(model, manager, recipe, **settings):
        rays = torch.tensor([[0, 0, 0], [0, 20, 30], [0, 40, 50], [1, 0, 0], [1, 20, 30]])
        targets.append(manager._lookups["train"].features("colours", rays))

    monkeypatch.setattr(heads, "train_features", look)
    for options in ([], ["--feature-masks", str(tmp_path)]):
        arguments = ["--feature-type", "COLOURS", "--out", str(tmp_path), "--device", "cpu"]
        assert main(["attach", str(plain), *arguments, *options]) == 0
    own, averaged = (len(each.unique(dim=0)) for each in targets)
    assert (own, averaged) == (5, 2)


def test_the_source_is_not_touched_and_nothing_else_is_left(plain, first):
    folder = plain.parent
    before = {path: _digest(path) for path in folder.rglob("*") if path.is_file()}
    made = attach(plain, AttachSettings("MUTE", steps=1), out=plain.parents[3], device="cpu")
    assert {path: _digest(path) for path in folder.rglob("*") if path.is_file()} == before
    assert not list(made.config_path.parents[1].glob(".*"))
    names = {path.name for path in made.config_path.parent.iterdir()}
    assert names == {"config.yml", "dataparser_transforms.json", "nerfstudio_models"}


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_nerfstudio_opens_and_measures_the_new_run(second):
    config, pipeline, _, step = eval_setup(second.config_path)
    assert step == 20 - 1 + 60 + 5
    assert config.method_name == "f3rm-lite"
    manager = pipeline.datamanager
    assert isinstance(manager, FeatureDataManager)
    assert manager.config.feature_type == "COLOURS+MUTE"
    camera, batch = manager.fixed_indices_eval_dataloader.get_camera(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    metrics, images = pipeline.model.get_image_metrics_and_images(outputs, batch)
    assert {"feature_cosine_colours", "feature_cosine_mute", "psnr"} <= set(metrics)
    assert {"feature_pca_colours", "feature_pca_mute"} <= set(images)


def test_what_cannot_be_attached_is_explained(first, tmp_path):
    def refused(match, **settings):
        out = Path(tmp_path)
        with pytest.raises(F3rmError, match=match):
            attach(first.config_path, AttachSettings(**settings), out=out, device="cpu")
        assert not list(out.rglob("config.yml"))

    refused(r"has a head 'colours' already \(its heads: colours\)", feature_type="COLOURS+MUTE")
    refused("--steps must be at least 1, got 0", feature_type="MUTE", steps=0)
    refused("NOTHING", feature_type="NOTHING")
    refused("no segments of these photographs", feature_type="MUTE", feature_masks=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(first, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(F3rmError, match=r"Cannot write the run to .*--out"):
        attach(
            first.config_path, AttachSettings("MUTE", steps=1), out=tmp_path / "file", device="cpu"
        )


def test_a_checkpoint_that_lacks_a_part_is_refused(plain, tmp_path):
    (source,) = (plain.parent / "nerfstudio_models").glob("*.ckpt")
    content = torch.load(source, weights_only=False)
    lost = [name for name in content["pipeline"] if "mlp_base" in name]
    for name in lost:
        del content["pipeline"][name]
    copied = tmp_path / "config.yml"
    copied.write_bytes(plain.read_bytes())
    (tmp_path / "nerfstudio_models").mkdir()
    torch.save(content, tmp_path / "nerfstudio_models" / source.name)
    with pytest.raises(RunError, match=rf"lacks {len(lost)} of the model's tensors.*tiny-cuda-nn"):
        load_run(copied, device=CPU)


def test_the_command_says_what_it_made(first, tmp_path, capsys):
    words = ["attach", str(first.config_path), "--feature-type", "MUTE", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Heads of the new run: colours, mute" in said
    (config,) = tmp_path.rglob("config.yml")
    assert f"f3rm eval {config}" in said.replace("\n", "")
