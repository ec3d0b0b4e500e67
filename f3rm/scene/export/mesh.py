"""A triangle mesh of a scene or of a query's instances: Open3D's fusion of rendered depth.

*Source:* Curless and Levoy, "A volumetric method for building complex models from range images"
(SIGGRAPH 1996), as ``open3d.t.geometry.VoxelBlockGrid`` does it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.errors import StrPath, as_path
from f3rm.language.questions import Query, Question, questions_in
from f3rm.scene.boxes import OrientedBox, meeting
from f3rm.scene.casting import DEPTH_AGREEMENT, LEAST_ACCUMULATION
from f3rm.scene.export.files import (
    MESH_SUFFIXES,
    ExportError,
    check_file,
    write_mesh,
)
from f3rm.scene.export.objects import found_instances, nearest_instance
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import FrameName
from f3rm.scene.open3d_library import require_open3d
from f3rm.scene.scene import SPACING, Scene
from f3rm.store.progress import track

_TRUNCATION = 4.0
"""Voxels in front of and behind a surface that its depth updates."""
_LEAST_VIEWS = 2
"""Views that must see a voxel."""
_BLOCK = 8
_INITIAL_BLOCKS = 1 << 12
"""Blocks of 8 x 8 x 8 voxels to begin with; the grid grows."""
_DEPTH_STRIDE = 4
"""Open3D finds a picture's blocks at every fourth pixel, and fails where none shows a surface."""
_FARTHEST = 4.0
"""Largest depth, in units of the scene frame, in which cameras are within [-1, 1]."""
_OBJECT_VOXELS = 48
"""Voxels along the longest side of an object."""
_REACH = 2.5
"""Cells around an instance's points and box that still belong to it."""
_MARGIN = _REACH * SPACING
_SMOOTHED = 32
"""Nearest vertices that the score of one is the mean of."""
_LEAST_SHARE = 0.01
"""Pieces with a smaller share of the triangles float, and are dropped."""


@dataclass(frozen=True)
class Meshing:
    """Resolution and frame of a mesh."""

    voxel: float | None = None
    """Edge of a voxel, in units of the frame; None derives it from the object's or scene's size."""
    views: int = 60
    """Largest number of training views whose depth is used, evenly chosen."""
    height: int = 240
    """Largest number of rows that they are rendered with."""
    frame: FrameName = "dataset"
    """Frame of the file: dataset (of transforms.json), metres, or nerfstudio (the run's own)."""


@dataclass(frozen=True)
class TriangleMesh:
    """A mesh.

    Attributes:
        vertices: Corners of the triangles.
        triangles: Their indices.
        colours: RGB of the vertices.
    """

    vertices: Float[np.ndarray, "vertices 3"]
    triangles: Int[np.ndarray, "triangles 3"]
    colours: UInt8[np.ndarray, "vertices 3"]


@dataclass(frozen=True)
class DepthView:
    """Colour and depth of one pinhole camera, in the scene frame.

    Attributes:
        rgb: The picture.
        depth: Depth along the optical axis; 0 without a surface.
        intrinsics: Map from the camera's axes to pixels, (0, 0) being the centre of the first.
        camera_from_scene: The pose, in OpenCV's axes: x right, y down, z forward.
    """

    rgb: UInt8[np.ndarray, "height width 3"]
    depth: Float32[np.ndarray, "height width"]
    intrinsics: Float64[np.ndarray, "3 3"]
    camera_from_scene: Float64[np.ndarray, "4 4"]


def export_mesh(
    scene: Scene,
    file: StrPath,
    meshing: Meshing,
    *,
    query: Query | None = None,
    head: str | None = None,
    threshold: float | None = None,
    show_progress: bool = False,
) -> TriangleMesh:
    """Writes a mesh of the scene, or of a query's instances.

    Args:
        scene: The scene.
        file: A ``.ply``, ``.obj``, ``.glb`` or ``.stl`` file.
        meshing: Resolution and frame.
        query: The query; None for the whole scene.
        head: The feature head to query; None for the first that has a text tower.
        threshold: The least score of a matching point; None to choose it from the scene's scores.
        show_progress: Whether a bar counts views.

    Returns:
        The mesh, in the frame of the file.

    Raises:
        ExportError: If there is no instance or no surface, or the file cannot be written.
        Open3dError: If Open3D cannot be imported.
        F3rmError: If query, head or frame cannot be used.
    """
    path = check_file(as_path(file), MESH_SUFFIXES, what="a mesh")
    known = scene.frames.get(meshing.frame)
    _check(meshing)
    asked = [] if query is None else [scene.question(q, head=head) for q in questions_in(query)]
    answers: list[Found] = []
    instances: list[Instance] = []
    if asked:
        answers, instances = found_instances(
            scene, asked, head=head, threshold=threshold, compete=False, frame="nerfstudio"
        )
    if meshing.voxel is not None:
        voxel = meshing.voxel * known.scene_per_unit
    else:
        longest = (float(instance.extent.max()) for instance in instances)
        voxel = min([SPACING, *(side / _OBJECT_VOXELS for side in longest)])
    boxes = [instance.visible for instance in instances]
    mesh = fuse(_depth_views(scene, meshing, boxes, show_progress=show_progress), voxel)
    if instances:
        owners = nearest_instance(instances, torch.from_numpy(mesh.vertices), reach=_REACH)
        mesh = restricted(mesh, owners >= 0)
        mesh = restricted(mesh, _matches(scene, mesh, asked, answers))
    if not len(mesh.triangles):
        msg = "The mesh has no triangles. Give a smaller --voxel or more --views, or export points."
        raise ExportError(msg)
    vertices = known.from_scene(torch.from_numpy(mesh.vertices)).numpy()
    mesh = replace(mesh, vertices=vertices)
    write_mesh(path, mesh.vertices, mesh.triangles, mesh.colours)
    return mesh


def _matches(
    scene: Scene, mesh: TriangleMesh, asked: Sequence[Question], answers: Sequence[Found]
) -> Bool[np.ndarray, " vertices"]:
    """Tells which vertices match a question: what an object stands on is near it, and does not."""
    if not len(mesh.vertices):
        return np.zeros(0, dtype=bool)
    near = min(_SMOOTHED, len(mesh.vertices))
    _, around = KDTree(mesh.vertices).query(mesh.vertices, k=near)
    matching = np.zeros(len(mesh.vertices), dtype=bool)
    for question, found in zip(asked, answers, strict=True):
        scores = scene.similarity(mesh.vertices, question, frame="nerfstudio").numpy()
        matching |= scores[around.reshape(-1, near)].mean(axis=1) >= found.threshold
    return matching


def fuse(views: Iterator[DepthView], voxel: float) -> TriangleMesh:
    """Fuses depth pictures to a mesh, without pieces of less than 1 % of the triangles.

    Args:
        views: Colour and depth of each camera.
        voxel: Edge of a voxel, in units of the scene frame, > 0.

    Raises:
        Open3dError: If Open3D cannot be imported.
    """
    open3d = require_open3d("Open3D, which makes meshes")
    tensor, image = open3d.core.Tensor, open3d.t.geometry.Image
    number = open3d.core.float32
    grid = open3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"),
        (number,) * 3,
        ((1,), (1,), (3,)),
        voxel,
        _BLOCK,
        _INITIAL_BLOCKS,
    )
    limits = {"depth_scale": 1.0, "depth_max": _FARTHEST, "trunc_voxel_multiplier": _TRUNCATION}
    seen = 0
    for view in views:
        if not view.depth[::_DEPTH_STRIDE, ::_DEPTH_STRIDE].any():
            continue
        seen += 1
        depth = image(tensor(view.depth))
        colour = image(tensor(view.rgb.astype(np.float32) / 255))
        camera = tensor(view.intrinsics), tensor(view.camera_from_scene)
        blocks = grid.compute_unique_block_coordinates(depth, *camera, **limits)
        grid.integrate(blocks, depth, colour, *camera, **limits)
    if not seen:
        return TriangleMesh(np.empty((0, 3)), np.empty((0, 3), int), np.empty((0, 3), np.uint8))
    # Weights count views, in floats: half a view less than the least, so that none is rounded away.
    extracted = grid.extract_triangle_mesh(weight_threshold=min(_LEAST_VIEWS, seen) - 0.5)
    return _without_small_pieces(extracted.to_legacy())


def _without_small_pieces(mesh: Any) -> TriangleMesh:
    """Converts a mesh of Open3D's legacy class, which alone can cluster triangles."""
    piece, sizes, _ = mesh.cluster_connected_triangles()
    sizes = np.asarray(sizes, dtype=np.int64)
    # Of an empty mesh Open3D's arrays have the shape (0,).
    triangles = np.asarray(mesh.triangles, dtype=np.int64).reshape(-1, 3)
    if len(triangles):
        large = sizes >= _LEAST_SHARE * sizes.sum()
        triangles = triangles[large[np.asarray(piece)]]
    vertices = np.asarray(mesh.vertices).reshape(-1, 3)
    colours = (np.asarray(mesh.vertex_colors).reshape(-1, 3).clip(0, 1) * 255).round()
    whole = TriangleMesh(vertices, triangles, colours.astype(np.uint8))
    return restricted(whole, np.ones(len(vertices), dtype=bool))


def _check(meshing: Meshing) -> None:
    if meshing.views < 1 or meshing.height < 1 or not (meshing.voxel is None or meshing.voxel > 0):
        msg = (
            f"--voxel, --views and --height must be > 0, got {meshing.voxel}, {meshing.views} and "
            f"{meshing.height}. Leave them out for the defaults."
        )
        raise ExportError(msg)


def _depth_views(
    scene: Scene, meshing: Meshing, boxes: list[OrientedBox], *, show_progress: bool
) -> Iterator[DepthView]:
    """Renders training views; with boxes only the rays that meet one, in the views that do."""
    cameras = scene.cameras(frame="nerfstudio")
    count = min(meshing.views, len(cameras))
    chosen = np.linspace(0, len(cameras) - 1, count).round().astype(int)
    for index in track(chosen, total=count, label="views", show=show_progress):
        camera = pinhole(cameras[int(index) : int(index) + 1], meshing.height)
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        wanted = torch.ones(bundle.shape, dtype=torch.bool)
        if boxes:
            lines = bundle.origins.double().numpy(), bundle.directions.double().numpy()
            met = [meeting(box, *lines, margin=_MARGIN) for box in boxes]
            wanted = torch.from_numpy(np.any(met, axis=0))
        if wanted.any():
            yield _depth_view(scene, camera, bundle, wanted, boxes)


def pinhole(camera: Cameras, height: int) -> Cameras:
    """Returns a camera of the same pose without lens distortion and with at most ``height`` rows.

    Raises:
        ExportError: If it is no perspective camera.
    """
    if int(camera.camera_type[0]) != CameraType.PERSPECTIVE.value:
        kind = CameraType(int(camera.camera_type[0])).name
        msg = f"The cameras of a mesh must be perspective, got {kind}. Export points instead."
        raise ExportError(msg)
    scale = min(1.0, height / int(camera.height[0]))
    width, rows = round(int(camera.width[0]) * scale), round(int(camera.height[0]) * scale)
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx * scale,
        fy=camera.fy * scale,
        cx=camera.cx * scale,
        cy=camera.cy * scale,
        width=width,
        height=rows,
    )


def _depth_view(
    scene: Scene,
    camera: Cameras,
    bundle: RayBundle,
    wanted: Bool[Tensor, "height width"],
    boxes: list[OrientedBox],
) -> DepthView:
    """Renders the wanted pixels of a camera; with boxes only surfaces in one have a depth."""
    outputs = scene.source.at_pixels(camera, wanted.nonzero() + 0.5, hidden=False)
    rendered = (outputs[name].cpu()[:, 0] for name in ("depth", "expected_depth", "accumulation"))
    along, expected, accumulation = rendered  # each (pixels, 1)
    directions = bundle.directions[wanted]
    kept = accumulation >= LEAST_ACCUMULATION
    kept &= (along - expected).abs() <= DEPTH_AGREEMENT * along
    positions = (bundle.origins[wanted] + directions * along).double().numpy()
    if boxes:
        inside = np.any([box.contains(positions, margin=_MARGIN) for box in boxes], axis=0)
        kept &= torch.from_numpy(inside)[:, None]
    # Nerfacto's depth is along the ray, Open3D's along the optical axis.
    pose = camera.camera_to_worlds[0].double()
    depth, rgb = torch.zeros(wanted.shape), torch.zeros(*wanted.shape, 3, dtype=torch.uint8)
    depth[wanted] = torch.where(kept[:, 0], along[:, 0] * (directions @ -pose[:, 2].float()), 0.0)
    rgb[wanted] = (outputs["rgb"].cpu()[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)
    scene_from_camera = np.eye(4)
    scene_from_camera[:3] = (pose * torch.tensor([1.0, -1.0, -1.0, 1.0])).numpy()
    fx, fy, cx, cy = (float(v[0]) for v in (camera.fx, camera.fy, camera.cx, camera.cy))
    return DepthView(
        rgb=rgb.numpy(),
        depth=depth.numpy(),
        intrinsics=np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]),
        camera_from_scene=np.linalg.inv(scene_from_camera),
    )


def restricted(mesh: TriangleMesh, kept: Bool[np.ndarray, " vertices"]) -> TriangleMesh:
    """Drops triangles with a dropped corner, then vertices without a triangle."""
    triangles = mesh.triangles[kept[mesh.triangles].all(axis=1)]
    used, renumbered = np.unique(triangles, return_inverse=True)
    return TriangleMesh(mesh.vertices[used], renumbered.reshape(-1, 3), mesh.colours[used])
