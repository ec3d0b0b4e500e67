"""A camera from calibration sees what Nerfstudio's camera of the same photograph sees."""

import cv2
import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from f3rm import Camera
from f3rm.camera_render import camera_key
from f3rm.errors import F3rmError
from f3rm.scene.frames import FileCamera, single

K = np.array([[61.0, 0, 30.2], [0, 58.0, 21.7], [0, 0, 1]])
LENS = (0.08, -0.03, 0.004, -0.002, 0.01)
"""OpenCV's order: k1, k2, p1, p2, k3."""
SIZE = (44, 60)


@pytest.fixture
def pose():
    turn, _ = cv2.Rodrigues(np.array([0.3, -1.1, 0.5]))
    return np.vstack((np.hstack((turn, [[0.4], [-0.2], [1.5]])), [0, 0, 0, 1]))


@pytest.mark.parametrize("lens", [(), LENS[:4], LENS])
def test_rays_are_those_of_opencv(pose, lens):
    pixels = np.array([[0.0, 0.0], [30.2, 21.7], [59.0, 43.0], [12.5, 40.0]])
    plane = cv2.undistortPoints(pixels[:, None], K, np.array(lens or [0.0] * 4))[:, 0]
    expected = np.concatenate((plane, np.ones((4, 1))), axis=1) @ pose[:3, :3].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    camera = FileCamera(single(Camera(K, pose, SIZE, distortion=lens)), 0, SIZE)
    bundle = camera.rays(torch.from_numpy(pixels).float())
    np.testing.assert_allclose(bundle.directions[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(bundle.origins[:, 0], np.tile(pose[:3, 3], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("lens", [(), LENS])
def test_both_conventions_describe_one_camera(pose, lens):
    moved = K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    k1, k2, p1, p2, k3 = lens or (0.0,) * 5
    other = Camera(
        torch.from_numpy(moved),
        (pose * [1, -1, -1, 1]).tolist(),
        SIZE,
        convention="nerfstudio",
        distortion=(k1, k2, k3, 0.0, p1, p2),
    )
    one, two = Camera(K, pose, SIZE, distortion=lens).to_nerfstudio(), other.to_nerfstudio()
    assert camera_key(one) == camera_key(two)


def test_a_camera_of_nerfstudios_stays_as_it_is(pose):
    camera = Cameras(
        torch.from_numpy(pose)[None, :3].float(), 5.0, 5.0, 4.0, 3.0, 8, 6,
        camera_type=CameraType.FISHEYE,
    )  # fmt: skip
    assert single(camera[0]).camera_type[0] == CameraType.FISHEYE.value
    with pytest.raises(F3rmError, match="must be one camera, got 2"):
        single(Camera(K, pose, SIZE).to_nerfstudio()[torch.tensor([0, 0])])


def test_a_scene_takes_it_wherever_it_takes_a_camera(scene):
    given = scene.cameras("eval", frame="metres")[0]
    size = int(given.height), int(given.width)
    camera = Camera(
        given.get_intrinsics_matrices() - torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]),
        given.camera_to_worlds * torch.tensor([1, -1, -1, 1]),
        size,
    )
    expected = scene.render(given, ["rgb", "depth"], frame="metres")
    found = scene.render(camera, ["rgb", "depth"], frame="metres")
    for name, image in expected.items():
        torch.testing.assert_close(found[name], image, atol=1e-3, rtol=1e-3)
    pixel = (size[1] // 2, size[0] // 2)
    likes = [scene.like((each, pixel), frame="metres") for each in (given, camera)]
    hidden = scene.cells.hidden[:50]
    torch.testing.assert_close(likes[0].scores(hidden), likes[1].scores(hidden), atol=1e-3, rtol=0)
    instance = scene.find(likes[1], frame="metres")[0]
    masks = [scene.mask(instance, each) for each in (given, camera)]
    assert (masks[0] == masks[1]).float().mean() > 0.99
