"""Photographs, cameras and truth of a dataset on disk fit together, by Nerfstudio and by OpenCV."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from f3rm.store.items import read_items
from f3rm.synthetic.layouts import SCENE_KINDS
from f3rm.synthetic.scenes import model_options
from f3rm.synthetic.truth import SceneTruth, TruthObject
from tests.scene_fixtures import write_scene

AS_IT_IS = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}


@pytest.fixture(scope="module", params=SCENE_KINDS)
def scene(request, tmp_path_factory):
    """A dataset of each kind with enough views for neighbours to see the same."""
    folder = tmp_path_factory.mktemp("scene") / request.param
    return write_scene(folder, request.param, seed=3, views=16, height=72, width=96)


def parse(folder: Path, **options):
    """What Nerfstudio reads from all frames of a dataset."""
    config = NerfstudioDataParserConfig(data=folder, eval_mode="all", downscale_factor=1, **options)
    return config.setup().get_dataparser_outputs("train")


def seen_points(truth: SceneTruth, cameras, index: int, view) -> np.ndarray:
    """Where the pixels of a view are, in metres, by Nerfstudio's own rays."""
    rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
    directions = (rays.directions * rays.metadata["directions_norm"]).double().numpy()
    units = view.depth[..., None] / np.cbrt(np.linalg.det(truth.metres_from_dataset))
    points = rays.origins.double().numpy() + directions * units
    return points @ truth.metres_from_dataset[:3, :3].T + truth.metres_from_dataset[:3, 3]


def project(frame: dict, truth: SceneTruth, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (x, y) and depths in metres of points, by OpenCV."""
    dataset = np.linalg.inv(truth.metres_from_dataset)
    placed = points.reshape(-1, 3) @ dataset[:3, :3].T + dataset[:3, 3]
    camera = np.linalg.inv(np.array(frame["transform_matrix"]))
    local = (placed @ camera[:3, :3].T + camera[:3, 3]) * (1, -1, -1)  # OpenCV: z forward, y down
    matrix = np.array([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
    lens = np.array([frame[key] for key in ("k1", "k2", "p1", "p2")])
    pixels, _ = cv2.projectPoints(local, np.zeros(3), np.zeros(3), matrix, lens)
    return pixels[:, 0], local[:, 2] * np.cbrt(np.linalg.det(truth.metres_from_dataset))


def frames(folder: Path) -> list[dict]:
    content = json.loads((folder / "transforms.json").read_text())
    return [{**content, **frame} for frame in content["frames"]]


def outside(entry: TruthObject, points: np.ndarray) -> np.ndarray:
    """How far points are outside of an object's box, in metres."""
    cos, sin = math.cos(entry.yaw), math.sin(entry.yaw)
    local = (points - entry.centre) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (np.abs(local) - entry.half_size).max(axis=-1)


def test_points_by_nerfstudio_s_rays_lie_on_the_objects(scene):
    truth, cameras = SceneTruth.read(scene), parse(scene, **AS_IT_IS).cameras
    for index, item in enumerate(read_items(scene)):
        view = truth.view(item.name)
        points = seen_points(truth, cameras, index, view)
        for entry in truth.objects:
            here = points[view.ids == entry.id]
            assert (outside(entry, here) < 2e-3).all(), entry.name


def test_balls_are_round(tmp_path):
    """Distances from a ball's middle are one-sided in no direction, unlike those from a box."""
    folder = write_scene(tmp_path / "s", "tabletop-distorted", seed=4, height=120, width=160)
    truth, cameras = SceneTruth.read(folder), parse(folder, **AS_IT_IS).cameras
    ball = next(entry for entry in truth.objects if entry.name.endswith("ball"))
    for index, item in enumerate(read_items(folder)):
        view = truth.view(item.name)
        points = seen_points(truth, cameras, index, view)[view.mask([ball.id])]
        away = np.linalg.norm(points - ball.centre, axis=-1)
        np.testing.assert_allclose(away, ball.half_size[0], atol=2e-3)


def test_views_agree_about_points_that_both_see(scene):
    truth, cameras = SceneTruth.read(scene), parse(scene, **AS_IT_IS).cameras
    all_frames = frames(scene)
    views = [truth.view(frame["file_path"]) for frame in all_frames]
    hidden, same, inside_total = [], [], 0
    for index, (frame, other) in enumerate(zip(all_frames[1:], views[1:], strict=True)):
        points = seen_points(truth, cameras, index, views[index])
        pixels, depth = project(frame, truth, points)
        inside = ((pixels >= 0) & (pixels < (frame["w"], frame["h"]))).all(-1) & (depth > 0)
        column, row = pixels[inside].astype(int).T
        # A point falls between pixels: it is compared with the nearest and the farthest about it.
        nearest, farthest = (
            change(other.depth, np.ones((3, 3)))[row, column] for change in (cv2.erode, cv2.dilate)
        )
        assert (nearest > depth[inside] + 0.02).mean() < 1e-3  # would be looked through
        seen_again = farthest > depth[inside] - 0.02
        hidden.append(1 - seen_again.mean())
        numbers = other.ids.astype(np.float32)
        edge = cv2.dilate(numbers, np.ones((3, 3))) > cv2.erode(numbers, np.ones((3, 3)))
        same_number = views[index].ids.ravel()[inside] == other.ids[row, column]
        same.append(same_number[seen_again & ~edge[row, column]].mean())
        inside_total += inside.sum()
    assert inside_total > 1000
    assert min(same) > 0.99
    assert 0.005 < np.mean(hidden) < 0.4  # something stands before something else


def test_points_project_to_the_pixel_they_were_seen_at(scene):
    truth, cameras = SceneTruth.read(scene), parse(scene, **AS_IT_IS).cameras
    for index, frame in enumerate(frames(scene)):
        view = truth.view(frame["file_path"])
        pixels, depth = project(frame, truth, seen_points(truth, cameras, index, view))
        rows, columns = np.meshgrid(*map(np.arange, view.ids.shape), indexing="ij")
        wanted = np.stack((columns + 0.5, rows + 0.5), axis=-1).reshape(-1, 2)
        np.testing.assert_allclose(pixels, wanted, atol=0.01)
        np.testing.assert_allclose(depth, view.depth.ravel(), rtol=1e-4)


def test_all_that_is_seen_lies_between_the_planes(scene):
    """In Nerfstudio's units, with its dataparser's own options; and the planes are not far off."""
    truth, outputs = SceneTruth.read(scene), parse(scene)
    words = model_options(scene)
    near, far = float(words[1]), float(words[3])
    scale = outputs.dataparser_scale / np.cbrt(np.linalg.det(truth.metres_from_dataset))
    ways = []
    for index, item in enumerate(read_items(scene)):
        rays = outputs.cameras.generate_rays(camera_indices=index, keep_shape=True)
        norms = rays.metadata["directions_norm"][..., 0].numpy()
        ways.append((truth.view(item.name).depth * norms * scale).ravel())
    ways = np.concatenate(ways)
    assert 0.5 < near / ways.min() < 0.61
    assert 1.14 < far / ways.max() < 1.2


def test_poses_are_not_in_metres(scene):
    truth = SceneTruth.read(scene)
    scale = np.cbrt(np.linalg.det(truth.metres_from_dataset[:3, :3]))
    assert 1 / 3 <= scale <= 1 / 2
    assert np.abs(truth.metres_from_dataset[:3, 3]).max() > 0.1
    assert abs(truth.metres_from_dataset[1, 0]) > 0.01
    for frame in frames(scene):
        rotation = np.array(frame["transform_matrix"])[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)


def test_every_thing_is_well_seen_in_many_views_of_a_tabletop_and_a_larger_room(tmp_path):
    sizes = {}
    for kind in ("tabletop", "room"):
        folder = write_scene(tmp_path / kind, kind, seed=1, views=48, height=45, width=60)
        truth = SceneTruth.read(folder)
        views = [truth.view(item.name) for item in read_items(folder)]
        for query in truth.queries:
            for number in query.ids:
                seen = [view.mask([number]).sum() for view in views]
                assert np.sum(np.array(seen) >= 6) >= 10, query.text  # 384 pixels of 360 x 480
        surfaces = sum(entry.kind == "surface" for entry in truth.objects)
        distance = np.mean([np.median(view.depth) for view in views])
        sizes[kind] = (surfaces, len(truth.objects) - surfaces, distance)
    assert all(room > 1.2 * table for table, room in zip(*sizes.values(), strict=True))


def test_the_lens_is_written_down(scene):
    content = json.loads((scene / "transforms.json").read_text())
    lens = [content[key] for key in ("k1", "k2", "p1", "p2")]
    if scene.name == "tabletop-distorted":
        assert all(lens)
        assert abs(content["cx"] - content["w"] / 2) > 1
        assert abs(content["cy"] - content["h"] / 2) > 1
        assert content["fl_x"] != content["fl_y"]
    else:
        assert lens == [0.0] * 4


def test_mixed_sizes_stand_with_each_frame(scene):
    content = json.loads((scene / "transforms.json").read_text())
    per_frame = {"fl_x", "fl_y", "cx", "cy", "w", "h"}
    if scene.name != "tabletop-mixed":
        assert per_frame <= set(content)
        return
    assert not per_frame & set(content)
    sizes = {(frame["h"], frame["w"]) for frame in content["frames"]}
    assert len(sizes) == 5
    assert {h > w for h, w in sizes} == {True, False}
    assert len({frame["fl_x"] for frame in content["frames"]}) == 5
    outputs = parse(scene)
    for index, frame in enumerate(content["frames"]):
        assert (outputs.cameras.height[index], outputs.cameras.width[index]) == (
            frame["h"],
            frame["w"],
        )
        with Image.open(scene / frame["file_path"]) as image:
            assert image.size == (frame["w"], frame["h"])


def test_nerfstudio_s_evaluation_views_look_from_all_sides(tmp_path):
    folder = write_scene(tmp_path / "s", views=48, height=8, width=8)
    config = NerfstudioDataParserConfig(data=folder, downscale_factor=1)
    cameras = config.setup().get_dataparser_outputs("val").cameras
    assert len(cameras) == 4
    directions = torch.atan2(cameras.camera_to_worlds[:, 1, 2], cameras.camera_to_worlds[:, 0, 2])
    turns = torch.sort(directions).values.diff()
    assert (turns > 0.9).all()  # a full turn has 6.28
