"""Export: writes a point cloud, features of points and a mesh of a trained run.

    python examples/04_export.py --out export

Needs the run of 01_train.py. The point cloud and the mesh open in MeshLab, Blender and Open3D; the
features can be read without the run, as the last lines show.
"""

from pathlib import Path

import tyro

import f3rm
from f3rm.scene.export import (
    Look,
    Meshing,
    Sampling,
    export_features,
    export_mesh,
    export_points,
    read_features,
)


def main(
    run: Path = Path("outputs/tabletop/f3rm-lite/run"),
    out: Path = Path("export"),
    rays: int = 20_000,
    views: int = 20,
    height: int = 120,
) -> None:
    """Writes three files into a folder.

    Args:
        run: Folder of the run.
        out: The folder.
        rays: Rays that sample the surfaces for points and features.
        views: Training views whose depth is fused into the mesh.
        height: Rows of the depth maps.
    """
    out.mkdir(parents=True, exist_ok=True)
    scene = f3rm.load(run)
    sampling = Sampling(rays=rays, frame="metres")
    export_points(scene, out / "points.ply", sampling, Look("pca"))
    export_features(scene, out / "features.safetensors", sampling)
    try:
        export_mesh(scene, out / "mesh.ply", Meshing(views=views, height=height, frame="metres"))
    except f3rm.F3rmError as error:  # e.g. after few steps, when depths of views do not agree
        print(f"No mesh: {error}")

    points = read_features(out / "features.safetensors")
    features = points.features(slice(0, 100))  # (points, channels) of the first 100
    print(f"{len(points.positions)} points, {features.shape[1]} channels, in {points.frame}")
    print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir()))} to {out}")


if __name__ == "__main__":
    tyro.cli(main)
