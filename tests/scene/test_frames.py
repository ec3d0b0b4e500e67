"""Frames and cameras: generated truth and Nerfstudio's cameras agree on where surfaces are."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from f3rm.errors import DatasetError, F3rmError
from f3rm.scene.frames import FileCamera, Frame, Frames, scene_from_dataset
from f3rm.synthetic.scenes import SceneSettings, make_scene
from f3rm.synthetic.truth import SceneTruth

KINDS = ("tabletop", "tabletop-distorted", "tabletop-mixed")


def _outputs(folder, **options):
    parser = NerfstudioDataParserConfig(data=folder, eval_mode="all", downscale_factor=1, **options)
    return parser.setup().get_dataparser_outputs("train")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    for kind in KINDS:
        make_scene(root / kind, kind, SceneSettings(views=6, height=36, width=48))
    return root


def _frame(folder, outputs):
    truth = SceneTruth.read(folder)
    scene = scene_from_dataset(outputs, folder)
    return truth, Frame(scene @ np.linalg.inv(truth.metres_from_dataset))


def _cameras(folder, outputs, truth):
    for index, path in enumerate(outputs.image_filenames):
        view = truth.view(path.relative_to(folder))
        height, width = view.ids.shape
        yield view, FileCamera(outputs.cameras, index, (height, width))


def _grid(shape, step=3):
    y, x = torch.meshgrid(
        torch.arange(0, shape[0], step), torch.arange(0, shape[1], step), indexing="ij"
    )
    return torch.stack((x, y), dim=-1).reshape(-1, 2).float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"scale_factor": 3.0, "orientation_method": "pca"}])
def test_what_a_camera_unprojects_lies_in_the_boxes_of_the_scene(folders, kind, options):
    outputs = _outputs(folders / kind, **options)
    truth, frame = _frame(folders / kind, outputs)
    checked = 0
    for view, camera in _cameras(folders / kind, outputs, truth):
        xy = _grid(view.ids.shape, step=2)
        x, y = xy.long().T
        ids, depth = view.ids[y, x], torch.from_numpy(view.depth[y, x])
        metres = frame.from_scene(camera.unproject(xy, depth * frame.scene_per_unit))
        for thing in truth.objects:
            if thing.kind == "object":
                local = metres[ids == thing.id].double() - torch.tensor(thing.centre).double()
                cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
                turned = local @ torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
                assert (turned.abs() <= torch.tensor(thing.half_size) + 0.004).all()
                checked += len(local)
    assert checked > 100


@pytest.mark.parametrize("kind", KINDS)
def test_projecting_undoes_unprojecting(folders, kind):
    outputs = _outputs(folders / kind)
    truth, _ = _frame(folders / kind, outputs)
    for view, camera in _cameras(folders / kind, outputs, truth):
        xy = _grid(view.ids.shape) + 0.25
        depth = torch.linspace(0.5, 2.0, len(xy))
        found, distance = camera.project(camera.unproject(xy, depth))
        torch.testing.assert_close(found, xy, atol=2e-2, rtol=0)
        torch.testing.assert_close(distance, depth, atol=1e-4, rtol=1e-4)


def test_what_is_behind_the_camera_has_no_positive_depth(folders):
    outputs = _outputs(folders / "tabletop")
    camera = FileCamera(outputs.cameras, 0, (36, 48))
    ahead = camera.unproject(torch.tensor([[20.0, 10.0]]), torch.tensor([1.0]))
    eye = outputs.cameras.camera_to_worlds[0, :, 3]
    assert float(camera.project(2 * eye - ahead)[1]) == pytest.approx(-1, abs=1e-5)


def test_a_camera_of_a_smaller_picture_is_addressed_by_the_files_pixels(folders):
    outputs = _outputs(folders / "tabletop")
    large = FileCamera(outputs.cameras, 1, (36, 48))
    smaller = _outputs(folders / "tabletop").cameras
    smaller.rescale_output_resolution(0.5)
    assert int(smaller.width[1]) == 24
    xy, depth = _grid((36, 48)), torch.full((12 * 16,), 0.7)
    expected = large.unproject(xy, depth)
    camera = FileCamera(smaller, 1, (36, 48))
    torch.testing.assert_close(camera.unproject(xy, depth), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(camera.project(expected)[0], xy, atol=1e-3, rtol=0)


def _random_frame(scale, shift, seed):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * turn * np.sign(np.linalg.det(turn)), shift
    return Frame(matrix)


FRAMES = st.builds(_random_frame, st.floats(0.1, 9), st.floats(-3, 3), st.integers(0, 99))


@settings(max_examples=20, deadline=None)
@given(FRAMES, st.integers(0, 99))
def test_a_frame_and_the_scene_invert_each_other_and_lengths_scale(frame, seed):
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 3)))
    torch.testing.assert_close(frame.from_scene(frame.to_scene(points)), points)
    torch.testing.assert_close(frame.to_scene(frame.from_scene(points)), points)
    distance = (frame.to_scene(points)[0] - frame.to_scene(points)[1]).norm()
    assert float(distance / (points[0] - points[1]).norm()) == pytest.approx(frame.scene_per_unit)


@settings(max_examples=20, deadline=None)
@given(FRAMES)
def test_cameras_move_with_what_they_see(frame):
    camera = Cameras(torch.eye(4)[None, :3], fx=9.0, fy=9.0, cx=4.0, cy=3.0, width=8, height=6)
    moved = frame.cameras_to_scene(camera)
    ray, there = camera.generate_rays(0), moved.generate_rays(0)
    ahead = (ray.origins + 2 * ray.directions).double()
    expected = there.origins + 2 * frame.scene_per_unit * there.directions
    torch.testing.assert_close(frame.to_scene(ahead).float(), expected, atol=1e-4, rtol=1e-4)
    back = frame.cameras_from_scene(moved).camera_to_worlds
    torch.testing.assert_close(back, camera.camera_to_worlds, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(FRAMES)
def test_the_way_up_of_a_frame_is_the_scenes(frame):
    up = torch.from_numpy(frame.up(is_level=False))
    lifted = frame.to_scene(torch.stack((torch.zeros(3).double(), up)))
    expected = torch.tensor([0, 0, frame.scene_per_unit]).double()
    torch.testing.assert_close(lifted[1] - lifted[0], expected, atol=1e-9, rtol=1e-6)
    assert frame.up(is_level=True).tolist() == [0, 0, 1]


def test_all_frames_of_a_generated_scene_agree(folders):
    outputs = _outputs(folders / "tabletop")
    frames = Frames.of_dataset(outputs, folders / "tabletop")
    content = json.loads((folders / "tabletop" / "transforms.json").read_text())
    poses = torch.tensor([f["transform_matrix"] for f in content["frames"]])[:, :3]
    by_name = {f["file_path"]: pose for f, pose in zip(content["frames"], poses, strict=True)}
    seen = frames.get("dataset").cameras_from_scene(outputs.cameras).camera_to_worlds
    for path, pose in zip(outputs.image_filenames, seen, strict=True):
        expected = by_name[path.relative_to(folders / "tabletop").as_posix()]
        torch.testing.assert_close(pose, expected, atol=1e-5, rtol=1e-5)
    truth, metres = _frame(folders / "tabletop", outputs)
    del truth
    known = frames.get("metres").scene_from_frame
    np.testing.assert_allclose(known, metres.scene_from_frame, atol=1e-9)


def test_a_frame_that_is_not_known_is_refused_with_those_that_are(folders, tmp_path):
    outputs = _outputs(folders / "tabletop")
    (tmp_path / "transforms.json").write_text('{"frames": []}')
    with pytest.raises(F3rmError, match=r"one of nerfstudio, dataset, got 'metres'"):
        Frames.of_dataset(outputs, tmp_path).get("metres")
    skewed = np.eye(4)
    skewed[0, 1] = 0.5
    for content in (
        '{"metres_from_dataset": 3}',
        json.dumps({"metres_from_dataset": skewed.tolist()}),
    ):
        (tmp_path / "scene.json").write_text(content)
        with pytest.raises(DatasetError, match=r"scene.json"):
            Frames.of_dataset(outputs, tmp_path)


def test_what_was_done_to_the_poses_before_is_not_undone(folders, tmp_path):
    content = json.loads((folders / "tabletop" / "transforms.json").read_text())
    applied = [[0, 2.0, 0, 1], [2.0, 0, 0, 2], [0, 0, -2.0, 3]]
    content |= {"applied_transform": applied, "applied_scale": 4.0}
    (tmp_path / "images").symlink_to(folders / "tabletop" / "images")
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    expected = scene_from_dataset(_outputs(folders / "tabletop"), folders / "tabletop")
    outputs = _outputs(tmp_path)
    assert outputs.dataparser_scale != pytest.approx(expected[0, 0])
    np.testing.assert_allclose(scene_from_dataset(outputs, tmp_path), expected, atol=1e-6)


def test_unreadable_poses_are_named(folders, tmp_path):
    with pytest.raises(DatasetError, match=r"transforms.json' must be readable JSON.*--data"):
        scene_from_dataset(_outputs(folders / "tabletop"), tmp_path)


def test_other_cameras_than_perspective_are_refused():
    cameras = Cameras(
        torch.eye(4)[None, :3],
        fx=5.0,
        fy=5.0,
        cx=4.0,
        cy=4.0,
        width=8,
        height=8,
        camera_type=CameraType.FISHEYE,
    )
    with pytest.raises(DatasetError, match="must be perspective, got FISHEYE"):
        FileCamera(cameras, 0, (8, 8))
