"""Depth pictures become meshes."""

from dataclasses import replace

import numpy as np
import trimesh

from f3rm.scene.export.mesh import DepthView, TriangleMesh, fuse, restricted
from tests.scene_fixtures import need_raycaster

RADIUS = 0.4
SIZE = 96


def _sphere_view(number, total):
    """What a camera on a circle sees of a sphere at the origin."""
    angle = 2 * np.pi * number / total
    forward = -np.array([np.cos(angle), np.sin(angle), 0.3])
    eye = -1.5 * forward
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(forward, right), forward], axis=-1)  # x right, y down
    across = (np.arange(SIZE) - (SIZE - 1) / 2) / SIZE
    x, y = np.meshgrid(across, across)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ turn.T  # depth 1 along the axis
    # |eye + depth * ray| = radius
    a, b, c = (rays**2).sum(-1), rays @ eye, eye @ eye - RADIUS**2
    root = b**2 - a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    scene_from_camera = np.eye(4)
    scene_from_camera[:3] = np.column_stack([turn, eye])
    hits = eye + depth[..., None] * rays
    rgb = np.where(hits[..., 2:] > 0, [200, 0, 0], [0, 0, 200]).astype(np.uint8)
    centre = (SIZE - 1) / 2
    return DepthView(
        rgb=np.ascontiguousarray(rgb),
        depth=depth.astype(np.float32),
        intrinsics=np.array([[SIZE, 0, centre], [0, SIZE, centre], [0, 0, 1.0]]),
        camera_from_scene=np.linalg.inv(scene_from_camera),
    )


def test_depth_pictures_of_a_sphere_become_a_sphere():
    need_raycaster()
    mesh = fuse((_sphere_view(number, 12) for number in range(12)), voxel=0.03)
    away = np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS)
    assert len(away) > 2000
    assert away.max() < 0.03  # a voxel
    assert np.median(away) < 0.005
    solid = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    outwards = (solid.face_normals * solid.triangles_center).sum(axis=1)
    assert (outwards > 0).mean() > 0.99
    upper = mesh.vertices[:, 2] > 0.06
    assert np.abs(mesh.colours[upper].astype(int) - [200, 0, 0]).max() <= 1


def test_triangles_with_a_dropped_corner_go_and_lone_corners_with_them():
    triangles = np.array([[0, 1, 2], [2, 3, 4], [4, 5, 6]])
    vertices, colours = np.arange(21.0).reshape(7, 3), np.arange(21, dtype=np.uint8).reshape(7, 3)
    mesh = TriangleMesh(vertices, triangles, colours)
    kept = np.array([True, True, True, True, True, False, True])
    left = restricted(mesh, kept)
    assert left.triangles.tolist() == [[0, 1, 2], [2, 3, 4]]
    assert left.vertices.tolist() == vertices[:5].tolist()
    assert left.colours.tolist() == colours[:5].tolist()
    none = restricted(mesh, np.zeros(7, dtype=bool))
    assert none.triangles.shape == none.vertices.shape == none.colours.shape == (0, 3)


def test_a_view_that_shows_a_few_pixels_only_is_left_out():
    need_raycaster()
    views = [_sphere_view(number, 6) for number in range(6)]
    speck = np.zeros_like(views[0].depth)
    speck[9, 9] = views[0].depth[SIZE // 2, SIZE // 2]
    alone = fuse(iter(views), 0.02)
    with_speck = fuse(iter([*views, replace(views[0], depth=speck)]), 0.02)
    assert {*map(tuple, alone.vertices)} == {*map(tuple, with_speck.vertices)}  # in any order
