"""What is exported opens in other programs and says what the scene says."""

import json
import math

import numpy as np
import open3d
import pytest
import torch
import trimesh
from nerfstudio.cameras.cameras import CameraType
from scipy.spatial import KDTree

import f3rm
from f3rm.colours.pca import pca_colours
from f3rm.evaluation.finding import true_box
from f3rm.scene.export import (
    ExportError,
    Look,
    Meshing,
    Sampling,
    export_boxes,
    export_features,
    export_mesh,
    export_object,
    export_points,
    export_splat,
    read_features,
)
from f3rm.scene.export.files import CLOUD_SUFFIXES, check_file
from f3rm.scene.export.mesh import pinhole
from f3rm.scene.export.objects import nearest_instance
from f3rm.scene.splat.answers import SplatSource
from f3rm.scripts.cli import main
from f3rm.view.shown import shown_splat

FEW = Sampling(rays=3000)


def _shown(colours):
    return (colours.clamp(0, 1) * 255).round().numpy()


def test_a_point_cloud_opens_in_open3d_and_trimesh(scene, tmp_path):
    file = tmp_path / "new" / "points.ply"
    metric = Sampling(rays=3000, frame="metres")
    points = export_points(scene, file, metric, Look("similarity"), query="orange")
    cloud = open3d.t.io.read_point_cloud(file)
    np.testing.assert_allclose(cloud.point.positions.numpy(), points.positions, atol=1e-5)
    scores = scene.question("orange").scores(points.hidden).detach()
    np.testing.assert_allclose(cloud.point.similarity.numpy()[:, 0], scores, atol=1e-6)
    there = scene.frames.get("metres").to_scene(points.positions.double())
    back = scene.surface_points(3000, frame="nerfstudio").positions
    torch.testing.assert_close(there, back.double(), atol=1e-5, rtol=1e-5)
    opened = trimesh.load(file)
    assert isinstance(opened, trimesh.PointCloud)
    assert len(opened.vertices) == len(points)
    assert [entry.name for entry in file.parent.iterdir()] == ["points.ply"]


def test_a_run_becomes_a_splat_that_answers_alike(scene, tmp_path):
    file = tmp_path / "run.ply"
    points = export_splat(scene, file, Sampling(rays=20_000, spacing=0.03, frame="metres"))
    splat = f3rm.load(file, data=scene.run.data, device="cpu")
    assert splat.heads == scene.heads
    assert isinstance(splat.source, SplatSource)
    means = splat.source.source.to_scene(splat.source.gaussians.means)
    own = splat.frames.get("metres").from_scene(means)
    torch.testing.assert_close(own, points.positions, atol=1e-4, rtol=0)
    for name in scene.heads:
        features = splat.features(points.positions, name, frame="metres")
        expected = scene.head(name)(points.hidden).detach()
        assert torch.cosine_similarity(features, expected, dim=1).mean() > 0.9
    shown = shown_splat(scene, Sampling(rays=20_000, spacing=0.03, frame="metres"))
    assert torch.equal(shown.gaussians.means, points.positions)
    assert torch.equal(shown.hidden, points.hidden)
    assert not shown.reliability
    assert set(shown_splat(splat).reliability) == set(scene.heads)
    with pytest.raises(ExportError, match="is a splat already"):
        export_splat(splat, tmp_path / "again.ply", FEW)


def test_point_colours_are_those_of_photographs_and_features(scene, tmp_path):
    export_points(scene, tmp_path / "rgb.ply", FEW, Look())
    points = export_points(scene, tmp_path / "pca.ply", FEW, Look("pca", "mute"))
    head = scene.head("mute")
    by_features = pca_colours(head(points.hidden).detach(), head.pca)
    for name, expected in (("rgb", points.colours), ("pca", by_features)):
        colours = np.asarray(open3d.io.read_point_cloud(tmp_path / f"{name}.ply").colors)
        np.testing.assert_allclose(colours * 255, _shown(expected), atol=1.01)


def test_all_channels_come_back_from_coefficients(scene, tmp_path):
    exact, plain = tmp_path / "features.safetensors", tmp_path / "features.npy"
    points = export_features(scene, exact, FEW, head="colours")
    export_features(scene, plain, FEW, head="colours")
    read = read_features(exact)
    head = scene.head("colours")
    assert read.head == head.spec
    assert read.frame == "dataset"
    assert torch.equal(read.coefficients, points.hidden)
    assert torch.equal(read.basis, head.weight.detach())
    features = head(points.hidden).detach()
    torch.testing.assert_close(read.features(), features, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(read.features(slice(5, 9)), features[5:9], atol=1e-6, rtol=1e-6)
    assert torch.equal(read.positions, points.positions.float())
    stored = np.load(plain)
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, features, rtol=1e-3, atol=1e-6)
    positions = np.load(tmp_path / "features_positions.npy")
    np.testing.assert_array_equal(positions, read.positions.numpy())


def test_other_files_are_no_features(tmp_path, scene):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="is no file of f3rm export RUN features"):
        read_features(tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"No such file: '.*gone.safetensors'"):
        read_features(tmp_path / "gone.safetensors")


def test_an_object_is_cut_out_as_points_and_as_a_mesh(scene, run, tmp_path):
    (found,) = export_object(
        scene, tmp_path / "object.ply", Sampling(20_000), Look(), query="orange"
    )
    cloud = open3d.t.io.read_point_cloud(tmp_path / "object.ply").point
    owners = cloud.instance.numpy()[:, 0]
    assert set(owners.tolist()) == set(range(len(found)))
    assert set(cloud.question.numpy()[:, 0].tolist()) == {0}
    for number, instance in enumerate(found):
        inside = instance.box.contains(
            cloud.positions.numpy()[owners == number].astype(float), margin=3 * instance.spacing
        )
        assert inside.mean() > 0.95
    mesh = export_mesh(scene, tmp_path / "object.glb", Meshing(views=6, height=60), query="orange")
    opened = trimesh.load_mesh(tmp_path / "object.glb")
    assert len(opened.faces) == len(mesh.triangles) > 20
    inside = np.zeros(len(mesh.vertices), dtype=bool)
    for instance in found:
        inside |= instance.box.contains(mesh.vertices, margin=4 * instance.spacing)
    assert inside.mean() > 0.95
    # What the thing stands on is no part of its mesh: 15 % of the vertices were.
    (thing,) = [thing for thing in run.truth.objects if thing.name == "orange box"]
    metres, dataset = scene.frames.get("metres"), scene.frames.get("dataset")
    vertices = metres.from_scene(dataset.to_scene(torch.from_numpy(mesh.vertices))).numpy()
    beside = ~true_box(thing).contains(vertices, margin=0.02)
    assert beside.mean() < 0.08


def test_a_mesh_of_an_object_is_that_of_whole_pictures(scene, tmp_path, monkeypatch):
    size, drawn = Meshing(views=6, height=60), []
    cast = type(scene.source).at_pixels

    def noted(source, camera, coords, *, hidden=True):
        drawn.append(len(coords))
        return cast(source, camera, coords, hidden=hidden)

    monkeypatch.setattr(type(scene.source), "at_pixels", noted)
    mesh = export_mesh(scene, tmp_path / "object.ply", size, query="orange")
    few = sum(drawn)
    drawn.clear()
    monkeypatch.setattr(
        "f3rm.scene.export.mesh.meeting",
        lambda _box, origins, _directions, **_: np.ones(origins.shape[:-1], dtype=bool),
    )
    whole = export_mesh(scene, tmp_path / "whole.ply", size, query="orange")
    assert 0 < few < sum(drawn) / 2
    for some, others in ((mesh, whole), (whole, mesh)):  # rays in other batches: other roundings
        assert KDTree(some.vertices).query(others.vertices)[0].max() < 1e-4


def test_a_mesh_of_the_scene_lies_on_its_surfaces(scene, tmp_path):
    file = tmp_path / "scene.ply"
    mesh = export_mesh(scene, file, Meshing(voxel=0.05, views=6, height=48, frame="metres"))
    opened = open3d.io.read_triangle_mesh(file)
    assert len(opened.triangles) == len(mesh.triangles) > 100
    np.testing.assert_allclose(np.asarray(opened.vertices), mesh.vertices, atol=1e-4)
    surface = scene.surface_points(20_000, frame="metres").positions.double()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(mesh.vertices))
    other = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(surface.numpy()))
    assert np.median(np.asarray(cloud.compute_point_cloud_distance(other))) < 0.05


def test_boxes_say_where_things_are_or_why_nothing_is(known, tmp_path):
    file = tmp_path / "boxes.json"
    answers = export_boxes(known, file, query="orange; red; yellow")
    content = json.loads(file.read_text())
    assert content["frame"] == "dataset"
    frames = known.frames
    expected = frames.get("dataset").scene_per_unit / frames.get("metres").scene_per_unit
    assert content["metres_per_unit"] == pytest.approx(expected)
    assert [query["query"] for query in content["queries"]] == ["orange", "red", "yellow"]
    for found, query in zip(answers, content["queries"], strict=True):
        assert len(query["instances"]) == len(found)
        assert (query["certainty"], query["reason"]) == (found.certainty, found.reason)
        assert bool(query["reason"]) is (found.certainty != "found")
        assert query["best_score"] == found.best_score
        assert query["threshold"] == (None if found.threshold == math.inf else found.threshold)
        for instance, plain in zip(found, query["instances"], strict=True):
            assert plain["box"] == "visible"  # from all sides
            assert plain["visible"]["extent"] == plain["extent"]
            np.testing.assert_allclose(plain["centre"], instance.centre)
            np.testing.assert_allclose(np.mean(plain["corners"], axis=0), instance.centre)
    orange, red, yellow = answers
    assert len(orange) == 1
    assert orange.threshold < orange[0].score
    assert red.reason.endswith("scattered over a few points")  # a threshold, but no instance
    assert [each.certainty for each in answers] == ["found", "uncertain", "absent"]
    assert red.best_score is not None
    assert red.threshold < red.best_score
    assert "'yellow' not found: best score" in yellow.reason
    assert yellow.threshold == math.inf


def test_each_position_belongs_to_the_instance_that_it_is_near(scene):
    instances = scene.find("orange").instances
    for number, instance in enumerate(instances):
        assert (nearest_instance(instances, instance.points) == number).all()
    away = torch.full((1, 3), 1e6)
    assert nearest_instance(instances, away).tolist() == [-1]


def test_cameras_of_meshes_are_pinholes(scene):
    camera = scene.run.train.cameras[0:1]
    small = pinhole(camera, 60)
    assert (int(small.height[0]), int(small.width[0])) == (60, 80)
    assert small.distortion_params is None
    rays = [
        c.generate_rays(0, coords=torch.tensor([[y, x]]))
        for c, y, x in ((camera.to("cpu"), 60.0, 100.0), (small, 30.0, 50.0))
    ]
    torch.testing.assert_close(rays[0].directions, rays[1].directions)
    small.camera_type[:] = CameraType.FISHEYE.value
    with pytest.raises(ExportError, match="must be perspective, got FISHEYE"):
        pinhole(small, 60)


def test_what_cannot_be_exported_is_explained(scene, tmp_path):
    with pytest.raises(ExportError, match=r"must end in \.ply, got 'points.xyz'"):
        check_file(tmp_path.__class__("points.xyz"), CLOUD_SUFFIXES, what="a point cloud")
    out = tmp_path / "points.ply"
    with pytest.raises(ExportError, match="--colour similarity needs a query"):
        export_points(scene, out, FEW, Look("similarity"))
    with pytest.raises(ExportError, match="--rays and --spacing must be > 0, got 0"):
        export_points(scene, out, Sampling(rays=0), Look())
    with pytest.raises(ExportError, match=r"Nothing to export: 'orange' not found: .* --threshold"):
        export_object(scene, out, FEW, Look(), query="orange", threshold=2.0)
    with pytest.raises(ExportError, match="--voxel, --views and --height must be > 0"):
        export_mesh(scene, out, Meshing(views=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"Cannot write .*--out"):
        export_points(scene, tmp_path / "file" / "points.ply", FEW, Look())
    assert not out.exists()


def test_the_command_writes_and_says_what(run, tmp_path, capsys):
    config, out = str(run.config), tmp_path / "points.ply"
    assert main(["export", config, "object", "--out", str(out)]) == 1
    assert "object needs a query, got none. Give one with --query" in capsys.readouterr().err
    assert main(["export", "nowhere", "mesh", "--out", str(tmp_path / "mesh.jpg")]) == 1
    assert "mesh must end in .ply or .obj or .glb or .stl" in capsys.readouterr().err
    assert main(["export", config, "points", "--out", str(out), "--rays", "500"]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {out} in the frame 'dataset'" in said
    count = len(open3d.io.read_point_cloud(out).points)
    assert f"{count} points" in said
