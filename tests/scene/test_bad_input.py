"""What cannot be answered is refused with what to do, or answered by a stated nothing."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import f3rm
from f3rm.errors import DeviceError, F3rmError, ImplementationError
from f3rm.language.heads import LanguageError
from f3rm.model import FeatureFieldModelConfig
from f3rm.scene.finding.find import Wish, find_instances
from f3rm.scene.finding.scored import score_surface
from f3rm.scene.run_loading import RunError, read_config
from f3rm.scene.scene import Scene
from f3rm.scene.surface import Surface, thinned
from f3rm.scripts.cli import main

LEVEL = np.array([0.0, 0.0, 1.0])


@pytest.fixture
def copied(run, tmp_path):
    """The run's folder, somewhere else."""
    return shutil.copytree(run.config.parent, tmp_path / "moved")


def test_a_run_that_moved_opens_by_its_folder(copied, scene):
    moved = f3rm.load(copied, device="cpu")
    point = [[0.1, 0.2, 0.3]]
    assert torch.equal(moved.features(point), scene.features(point))
    (copied.parent / "demo").mkdir()
    (copied.parent / "demo" / "config.yml").symlink_to(copied / "config.yml")
    linked = f3rm.load(copied.parent / "demo", device="cpu")
    assert torch.equal(linked.features(point), scene.features(point))
    (copied.parent / "demo" / "config.yml").unlink()
    with pytest.raises(RunError, match=r"There is no config.yml in .* Deeper inside are .*moved"):
        f3rm.load(copied.parent)
    with pytest.raises(RunError, match=r"No such file: '.*nowhere'"):
        f3rm.load(copied / "nowhere")


def test_data_that_moved_must_be_named(copied, run, scene, tmp_path):
    text = (copied / "config.yml").read_text()
    data = tmp_path / "elsewhere"
    data.symlink_to(run.truth.folder)
    parts = run.truth.folder.parts[1:]
    listed = "".join(f"- {part}\n" for part in parts[-1:])
    assert listed in text.replace(" ", "").replace("-", "- ")
    (copied / "config.yml").write_text(text.replace(f"- {parts[-1]}\n", "- gone\n"))
    with pytest.raises(RunError, match=r"No such dataset: .*gone.*--data \(data= in Python\)"):
        f3rm.load(copied, device="cpu")
    opened = f3rm.load(copied, data=data, device="cpu")
    assert opened.views() == scene.views()


def _rewritten(copied, old, new):
    text = (copied / "config.yml").read_text()
    assert old in text
    (copied / "config.yml").write_text(text.replace(old, new, 1))
    return copied / "config.yml"


def test_options_that_an_older_version_did_not_write_take_their_default(copied):
    path = copied / "config.yml"
    config = read_config(path)
    model = vars(config.pipeline.model)
    optimizer = model.pop("camera_optimizer")
    del model["feat_pe_n_freq"]
    path.write_text(yaml.dump(config))
    assert "feat_pe_n_freq" not in path.read_text()
    filled = read_config(path).pipeline.model
    assert isinstance(filled, FeatureFieldModelConfig)
    assert filled.feat_pe_n_freq == 6
    assert type(filled.camera_optimizer) is type(optimizer)


def test_options_of_a_newer_version_are_refused_by_name(copied):
    path = _rewritten(copied, "feat_pe_n_freq: 6\n", "feat_pe_n_freq: 6\n    feat_magic: 3\n")
    with pytest.raises(
        RunError, match=r"does not have: FeatureFieldModelConfig.feat_magic. Another version"
    ):
        read_config(path)


def test_a_checkpoint_of_tiny_cuda_nn_is_refused_where_that_cannot_run(copied):
    (file,) = (copied / "nerfstudio_models").glob("*.ckpt")
    content = torch.load(file, map_location="cpu", weights_only=True)
    content["pipeline"]["_model.feature_field._extra_state"]["implementation"] = "tcnn"
    torch.save(content, file)
    with pytest.raises(ImplementationError, match=r"trained with implementation 'tcnn'.*CUDA"):
        f3rm.load(copied, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(run):
    with pytest.raises(DeviceError, match="finds no CUDA GPU here"):
        f3rm.load(run.config, device="cuda")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("ask", ["features", "hidden", "density", "contains"])
def test_points_that_are_not_finite_are_named_by_row(scene, ask, bad):
    points = torch.zeros(4, 3)
    points[2, 1] = bad
    with pytest.raises(F3rmError, match=r"points must be finite, got \[.*\] in row 2 \(1 such"):
        getattr(scene, ask)(points)


def test_points_of_another_shape_are_refused(scene):
    with pytest.raises(F3rmError, match=r"must be of shape \(points, 3\), got \(4, 2\)"):
        scene.similarity(torch.zeros(4, 2), "red")


def test_no_points_give_no_answers(scene):
    nothing = torch.zeros(0, 3)
    assert scene.features(nothing).shape == (0, scene.head().spec.channels)
    assert scene.density(nothing).shape == scene.similarity(nothing, "red").shape == (0,)
    assert scene.identify(nothing, "red; blue").names == []


def test_outside_of_the_scene_there_is_nothing(scene):
    cameras = scene.cameras()
    eyes, forward = cameras.camera_to_worlds[:, :, 3], -cameras.camera_to_worlds[:, :, 2]
    middle = eyes.mean(0)
    up = (eyes - eyes.mean(0)).double().svd().V[:, 2].float()
    behind = middle + 100 * up * -torch.sign(forward.mean(0) @ up)
    points = torch.stack((behind, eyes[0] + forward[0] * 0.5))
    assert scene.contains(points).tolist() == [False, True]
    assert float(scene.features(points)[0].abs().max()) == 0
    assert float(scene.density(points)[0]) == 0
    assert float(scene.similarity(points, "grey")[0]) == 0
    for threshold in (0.5, -1.0):
        named = scene.identify(points, ["grey", "red"], none_threshold=threshold)
        assert named.names[0] == "none of these"
        assert float(named.scores[0]) == float(named.margins[0]) == 0


def test_unknown_outputs_frames_heads_and_missing_queries_are_refused(scene):
    camera = scene.cameras()[0]
    for arguments, message in [
        ({"outputs": ["rbg"]}, r"There is no output 'rbg'. Choose from rgb, "),
        ({"outputs": []}, "at least one"),
        ({"outputs": ["mask"]}, "The output 'mask' needs a query, got none"),
        ({"outputs": ["mask"], "query": " ; "}, "at least one phrase"),
        ({"head": "clip"}, "got 'clip'"),
        ({"outputs": ["mask"], "query": "red", "thresholds": [0.1, 0.2]}, "one per question"),
    ]:
        with pytest.raises(F3rmError, match=message):
            scene.render(camera, **arguments)
    with pytest.raises(F3rmError, match="must be one camera, got 22"):
        scene.render(scene.cameras())


def test_a_head_without_language_cannot_be_asked(scene):
    with pytest.raises(LanguageError, match=r"'mute' has no text tower.*'colours'"):
        scene.find("red", head="mute")
    with pytest.raises(F3rmError, match="no head 'nothing'"):
        scene.find("red", head="nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ["a photo"]}, "templates must be sentences"),
        ({"templates": "a {}"}, "templates must be sentences"),
        ({"templates": []}, "templates must be sentences"),
        ({"negatives": [], "question": "red or blue"}, "negatives must not be empty"),
    ],
)
def test_options_that_cannot_be_used_are_refused(scene, options, message):
    question = options.pop("question", "red")
    with pytest.raises(F3rmError, match=message):
        scene.find(question, **options)


def _answer(scene, rows):
    """What a scene answers where its surface is some of its sightings only."""
    surface = Surface(scene.surface.sightings.subset(rows), 0.01)
    scored = score_surface(surface, scene.question("orange"), None)
    wish = Wish(scene.frames.get("dataset"), "dataset", LEVEL)
    return surface, find_instances(scored, wish, scene._look_closer)


def test_a_scene_without_surfaces_has_nothing_to_be_found(scene):
    surface, found = _answer(scene, torch.zeros(0, dtype=torch.long))
    assert len(surface.points) == len(thinned(surface.points, 0.1)) == 0
    assert not found
    assert found.reason == "'orange' not found: the field has no surface at all"
    assert found.best_score is None


def test_a_few_scattered_points_are_no_thing(scene):
    scores = scene.question("orange").scores(scene.surface.sightings.points.hidden)
    lone = scores.topk(200).indices[::40]
    surface = Surface(scene.surface.sightings.subset(lone), 0.01)
    scored = score_surface(surface, scene.question("orange"), None)
    found = find_instances(scored, Wish(scene.frames.get("dataset"), "dataset", LEVEL))
    assert found.reason == "'orange' not found: its matches are scattered over a few points"


@pytest.mark.parametrize("kept", ["one camera", "one side"])
def test_few_cameras_give_an_answer_all_the_same(scene, kept):
    train = scene.run.train
    x = train.cameras.camera_to_worlds[:, 0, 3]
    chosen = [0] if kept == "one camera" else torch.nonzero(x > x.median())[:, 0].tolist()
    names = tuple(train.names[number] for number in chosen)
    split = replace(train, names=names, cameras=train.cameras[torch.tensor(chosen)])
    few = Scene(replace(scene.run, train=split), surface_rays=4000)
    found = few.find("orange")
    assert len(few.cells) > 100
    assert found.reason or found.certainty == "found"
    for instance in found:
        assert np.isfinite(instance.box.corners()).all()
        inside = instance.box.contains(instance.visible.corners(), margin=0.05)
        assert inside.mean() > 0.4  # the completed box is turned towards the views


def _spoiled(run, part):
    broken = f3rm.load(run.config, device="cpu", surface_rays=200)
    with torch.no_grad():
        for values in getattr(broken.model, part).parameters():
            values.fill_(math.nan)
    return broken


def test_features_with_nan_are_refused(run):
    with pytest.raises(F3rmError, match="The field has no finite values: its training diverged"):
        _spoiled(run, "feature_field").find("orange")


def test_a_checkpoint_with_nan_is_refused_by_commands(copied, tmp_path, capsys):
    (file,) = (copied / "nerfstudio_models").glob("*.ckpt")
    content = torch.load(file, map_location="cpu", weights_only=True)
    for name, values in content["pipeline"].items():
        if name.startswith("_model.feature_field") and name.endswith("weight"):
            values.fill_(math.nan)
    torch.save(content, file)
    out = str(tmp_path / "points.ply")
    for words in (["find", "orange"], ["export", "points", "--rays", "200", "--out", out]):
        assert main([words[0], str(copied), *words[1:]]) == 1
        assert "The field has no finite values: its training diverged" in capsys.readouterr().err


def test_a_density_with_nan_is_no_surface(run):
    found = _spoiled(run, "field").find("orange")  # Nerfstudio makes its weights zero
    assert (found.certainty, len(found)) == ("absent", 0)
    assert found.reason == "'orange' not found: the field has no surface at all"
