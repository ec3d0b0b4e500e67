"""A splat as a scene: its frame is found, features are lifted onto it, and it answers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import f3rm
from f3rm.errors import DatasetError, F3rmError
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.scene.attach import AttachSettings, LiftSettings, attach_to_splat
from f3rm.scene.frames import FileCamera
from f3rm.scene.splat.loading import LoadedSplat, dataset_from_source, load_splat
from f3rm.scripts.cli import main
from f3rm.splats.feature_file import read_heads
from f3rm.splats.ply import read_ply, write_ply
from f3rm.splats.views import PhotographsDisagreeError, compare
from f3rm.synthetic.truth import SceneTruth
from tests.scene_fixtures import write_splat_scene

SIZES = {"views": 10, "height": 72, "width": 96}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_splat_scene(tmp_path_factory.mktemp("splat") / "scene", "tabletop", **SIZES)


@pytest.fixture(scope="module")
def lifted(colours, made):
    data, ply = made
    settings = AttachSettings("COLOURS+MUTE")
    return attach_to_splat(ply, settings, data=data, device="cpu"), f3rm.load(
        ply, data=data, device="cpu"
    )


def moved(ply, out, matrix):
    """Writes a splat of one colour from everywhere in another frame."""
    gaussians = read_ply(ply)
    assert gaussians.sh.shape[1] == 1
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    means = gaussians.means.double().numpy() @ matrix[:3, :3].T + matrix[:3, 3]
    own = Rotation.from_quat(gaussians.quats.numpy()[:, [1, 2, 3, 0]])
    quats = (Rotation.from_matrix(matrix[:3, :3] / scale) * own).as_quat()[:, [3, 0, 1, 2]]
    turned = dataclasses.replace(
        gaussians,
        means=torch.from_numpy(means).float(),
        quats=torch.from_numpy(quats).float(),
        scales=float(scale) * gaussians.scales,
    )
    write_ply(out, turned)
    return out


def test_the_frame_of_a_splat_is_found(made, tmp_path):
    data, ply = made
    own = load_splat(ply, data=data, device=CPU)
    assert np.allclose(dataset_from_source(own), np.eye(4))
    scene_from_dataset = own.source.frames.get("dataset").scene_from_frame
    exported = moved(ply, tmp_path / "exported.ply", scene_from_dataset)
    found = load_splat(exported, data=data, device=CPU)
    assert np.allclose(found.source.source.scene_from_frame, np.eye(4))
    # A run with other dataparser options has another frame, which its file names.
    other = tmp_path / "run" / "other.ply"
    other.parent.mkdir()
    run_from_dataset = np.diag([0.4, 0.4, 0.4, 1.0])
    moved(ply, other, run_from_dataset)
    note = {"transform": np.eye(4)[:3].tolist(), "scale": 0.4}
    (other.parent / "dataparser_transforms.json").write_text(json.dumps(note))
    named = load_splat(other, data=data, device=CPU)
    assert np.allclose(dataset_from_source(named) @ run_from_dataset, np.eye(4))


def test_a_splat_of_something_else_is_refused(made, tmp_path):
    data, ply = made
    gaussians = read_ply(ply)
    shuffled = gaussians.means[torch.randperm(len(gaussians))]
    other = tmp_path / "other.ply"
    write_ply(other, dataclasses.replace(gaussians, means=shuffled))
    with pytest.raises(PhotographsDisagreeError, match=r"does not show .* dataset .* dB .*anyway"):
        f3rm.load(other, data=data, device="cpu")
    assert load_splat(other, data=data, device=CPU, check=False).source.heads == {}
    write_ply(other, dataclasses.replace(gaussians, means=gaussians.means + 500))
    with pytest.raises(PhotographsDisagreeError, match="No photograph shows the splat"):
        f3rm.load(other, data=data, device="cpu")


def test_a_splat_needs_its_dataset(made):
    _, ply = made
    with pytest.raises(DatasetError, match="--data"):
        f3rm.load(ply, device="cpu")
    with pytest.raises(DatasetError):
        f3rm.load(ply, data=ply.parent / "nowhere", device="cpu")


def test_a_splat_without_features_says_how_to_get_some(made, tmp_path):
    data, ply = made
    bare = tmp_path / "bare.ply"
    bare.write_bytes(ply.read_bytes())
    scene = f3rm.load(bare, data=data, device="cpu")
    assert scene.heads == ()
    for ask in (scene.head, scene.surface_points):
        with pytest.raises(F3rmError, match="f3rm attach"):
            ask()


def test_heads_are_beside_the_splat_and_not_written_twice(lifted, made):
    attached, scene = lifted
    data, ply = made
    assert scene.heads == ("colours", "mute")
    assert [file.name for file in attached.files] == [
        "splat.colours.safetensors",
        "splat.mute.safetensors",
    ]
    assert attached.agreement.is_good
    assert all(0.5 < value <= 1 for value in attached.reliability.values())
    assert not list(ply.parent.glob(".*partial*"))
    with pytest.raises(F3rmError, match="has a head 'colours' already"):
        attach_to_splat(ply, AttachSettings("COLOURS"), data=data, device="cpu")
    with pytest.raises(F3rmError, match="--refine must be at least 0"):
        attach_to_splat(ply, AttachSettings(), LiftSettings(refine=-1), data=data)


def test_features_of_a_splat_are_averaged_over_segments(lifted, made, tmp_path):
    data, ply = made
    bare = tmp_path / "bare.ply"
    bare.write_bytes(ply.read_bytes())
    settings = AttachSettings("COLOURS", feature_masks=tmp_path)
    with pytest.raises(DatasetError, match="no segments of these photographs"):
        attach_to_splat(bare, settings, data=data, device="cpu")
    for photograph in (data / "images").iterdir():
        Image.new("L", (4, 3), 1).save(tmp_path / f"{photograph.stem}.png")  # one segment
    attach_to_splat(bare, settings, data=data, device="cpu")
    count = len(read_ply(ply))
    averaged, own = (read_heads(file, count)["colours"].coefficients for file in (bare, ply))
    assert averaged.var(0).sum() < 0.3 * own.var(0).sum()


def test_a_splat_is_measured_as_a_field_is(lifted, made, tmp_path, capsys):
    data, ply = made
    files = ["--json", str(tmp_path / "eval.json"), "--pictures", str(tmp_path / "pictures")]
    assert main(["eval", str(ply), "--data", str(data), "--device", "cpu", *files]) == 0
    numbers = json.loads((tmp_path / "eval.json").read_text())
    assert numbers["run"]["config"] == str(ply)
    assert numbers["dataset"]["training_views"] == len(lifted[1].views())
    assert numbers["dataset"]["held_out_views"] == list(lifted[1].views("eval"))
    assert numbers["teacher_miou"] is not None
    assert numbers["find_recall"] > 0.4
    assert numbers["psnr"] > 19
    assert set(numbers["heads"]) == {"colours", "mute"}
    for head in numbers["heads"].values():
        assert head["feature_cosine_bilinear"] > head["feature_cosine_constant"]
        assert head["feature_cosine_ratio"] > 0.95
    page = (tmp_path / "pictures" / "index.html").read_text()
    assert f"f3rm eval {ply} --data {data} --pictures" in page
    assert main(["eval", str(ply), "--data", str(data), "--nerfacto", str(ply)]) == 1
    assert "Leave it out" in capsys.readouterr().err


def test_without_its_features_a_teacher_is_not_measured(lifted, made, tmp_path):
    data, ply = made
    for file in (ply, *lifted[0].files):
        shutil.copy(file, tmp_path)
    copied = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("features"))
    shutil.rmtree(copied / "truth")
    (copied / "scene.json").unlink()
    found = evaluate_run(tmp_path / ply.name, data=copied, device="cpu")
    assert found.numbers["psnr"] > 20
    assert found.numbers["feature_cosine_bilinear"] is None
    assert [note.split(":")[0].split(",")[0] for note in found.notes] == [
        "No valid feature cache",
        "No ground truth",
    ]


def known_object(scene, truth):
    """An object of one colour that no other has, and its answer."""
    for thing in truth.objects:
        others = [other.name for other in truth.objects if other is not thing]
        colour = thing.name.split()[-2] if thing.kind == "object" else ""
        if colour and not any(colour in other for other in others):
            return thing, scene.find(colour, frame="metres")
    pytest.fail("every colour appears twice")


def test_find_returns_the_objects_of_the_truth(lifted, made):
    _, scene = lifted
    truth = SceneTruth.read(made[0])
    thing, found = known_object(scene, truth)
    assert found
    distance = np.linalg.norm(found[0].centre - np.array(thing.centre))
    assert distance < 0.1
    assert found[0].extent == pytest.approx(2 * np.array(thing.half_size), abs=0.12)
    index = 4
    mask = scene.mask(found[0], scene.cameras(frame="metres")[index]).numpy()
    visible = truth.view(scene.views()[index]).mask([thing.id])
    assert visible.sum() > 40
    assert (mask & visible).sum() / (mask | visible).sum() > 0.4


def test_a_mask_is_where_gaussians_of_the_instance_are_composited(lifted, made):
    """Of an instance that is exactly right, at every view that shows it."""
    _, scene = lifted
    truth = SceneTruth.read(made[0])
    thing, found = known_object(scene, truth)
    assert isinstance(scene.run, LoadedSplat)
    means = scene.run.source.source.to_scene(scene.run.source.gaussians.means)
    own = scene.frames.get("metres").from_scene(means) - torch.tensor(thing.centre)
    cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
    turned = own @ torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]).float()
    inside = (turned.abs() <= torch.tensor(thing.half_size) + 0.002).all(dim=1)
    inside &= turned[:, 2] > 0.004 - thing.half_size[2]  # not the table
    points = (own + torch.tensor(thing.centre))[inside]
    exact = dataclasses.replace(found[0], points=points, spacing=0.002)
    ious: list[float] = []
    for name, camera in zip(scene.views(), scene.cameras(frame="metres"), strict=True):
        visible = truth.view(name).mask([thing.id])
        mask = scene.mask(exact, camera).numpy()
        if visible.sum() > 40:
            ious.append((mask & visible).sum() / (mask | visible).sum())
    assert len(ious) > 3
    assert np.mean(ious) > 0.7


def test_pictures_have_the_photographs_colours_and_depths(lifted, made):
    _, scene = lifted
    truth = SceneTruth.read(made[0])
    camera = scene.cameras("eval", frame="metres")[0]
    names = ("rgb", "depth", "accumulation", "hidden", "features", "pca", "similarity", "mask")
    shown = scene.render(camera, names, query="red", frame="metres")
    assert shown["hidden"].shape == (72, 96, 130)
    torch.testing.assert_close(shown["features"], scene.head()(shown["hidden"]))
    # depth is along the ray, the truth's along the optical axis
    rays = camera.reshape((1,)).generate_rays(camera_indices=0, keep_shape=True)
    forward = -camera.camera_to_worlds[:, 2]
    along = shown["depth"] * (rays.directions @ forward)
    depth = torch.from_numpy(truth.view(scene.views("eval")[0]).depth)
    seen = torch.isfinite(depth) & (shown["accumulation"] > 0.9)
    assert seen.float().mean() > 0.8
    assert ((along - depth)[seen].abs() < 0.1).float().mean() > 0.85


def test_points_have_the_features_of_the_surface_that_they_are_on(lifted):
    _, scene = lifted
    surface = scene.surface_points(500, frame="metres")
    features = scene.features(surface.positions, frame="metres")
    direct = scene.head()(surface.hidden)
    cosine = torch.cosine_similarity(features, direct, dim=1)
    assert cosine.mean() > 0.95
    scores = scene.similarity(surface.positions, "red", frame="metres")
    assert ((scores >= 0) & (scores <= 1)).all()
    named = scene.identify(surface.positions, "red; green; blue", frame="metres")
    assert len(named.names) == len(surface.positions)
    far = torch.tensor([[50.0, 0, 0], [0, 0, 40.0]])
    assert not scene.hidden(far, frame="metres").any()
    assert not scene.similarity(far, "red", frame="metres").any()
    with pytest.raises(F3rmError, match="no density"):
        scene.density(surface.positions)


def test_each_surface_point_has_a_view_that_sees_it(lifted, made):
    _, scene = lifted
    truth = SceneTruth.read(made[0])
    cameras = scene.run.train.cameras
    seen = scene.source.sample_surface(4000, seed=1)
    assert len(seen.views.unique()) == len(cameras)
    assert len(seen.views) > 3600  # few points are left out
    metres = scene.frames.get("metres").scene_per_unit
    right = torch.zeros(len(seen.views), dtype=torch.bool)
    for index, name in enumerate(scene.views()):
        rows = seen.views == index
        true = torch.from_numpy(truth.view(name).depth)
        camera = FileCamera(cameras, index, (true.shape[0], true.shape[1]))
        xy, depth = camera.project(seen.points.positions[rows])
        x, y = xy.round().long().unbind(1)
        inside = (x >= 0) & (x < true.shape[1]) & (y >= 0) & (y < true.shape[0])
        there = true[y.clamp(0, true.shape[0] - 1), x.clamp(0, true.shape[1] - 1)]
        depth = depth / metres
        right[rows] = inside & (depth < there * 1.05 + 0.02)
    assert right.float().mean() >= 0.95


def test_examples_find_what_they_show(lifted, made):
    _, scene = lifted
    truth = SceneTruth.read(made[0])
    thing, _ = known_object(scene, truth)
    name = max(scene.views(), key=lambda each: truth.view(each).mask([thing.id]).sum())
    y, x = np.argwhere(truth.view(name).mask([thing.id])).mean(axis=0).round().astype(int)
    found = scene.find(like=(name, (int(x), int(y))), frame="metres")
    assert found
    assert np.linalg.norm(found[0].centre - np.array(thing.centre)) < 0.1


@pytest.mark.nightly
def test_a_distorting_lens_is_undone(tmp_path):
    data, ply = write_splat_scene(tmp_path / "scene", "tabletop-distorted", **SIZES)
    splat = load_splat(ply, data=data, device=CPU)
    views = splat.photographs(96)[::3]
    right = compare(splat.source.gaussians, views)
    plain = [dataclasses.replace(view, pixels=lambda: _grid(72, 96)) for view in views]
    assert right.psnr > compare(splat.source.gaussians, plain).psnr + 1


def _grid(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y), dim=-1).float()
