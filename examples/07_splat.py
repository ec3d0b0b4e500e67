"""A splat: opens Gaussians with their dataset, lifts features onto them and asks them.

    python examples/07_splat.py --splat scene.ply --data datasets/tabletop

--splat is a .ply or a splatfacto run. Without it the run of 01_train.py is written as a splat,
which has features already.
"""

from pathlib import Path

import tyro

import f3rm
from f3rm.scene.attach import AttachSettings, attach_to_splat
from f3rm.scene.export import Sampling, export_splat


def main(
    splat: Path = Path("splat.ply"),
    data: Path = Path("datasets/tabletop"),
    run: Path = Path("outputs/tabletop/f3rm-lite/run"),
    feature_type: str = "TINYCLIP",
    queries: tuple[str, ...] = ("orange cone", "pink bottle"),
    rays: int = 1 << 17,
) -> None:
    """Prints the instances of each query.

    Args:
        splat: The splat; it is made of the run if there is none.
        data: The dataset that it was trained on.
        run: Folder of the run.
        feature_type: What is lifted onto a splat without features.
        queries: What to look for.
        rays: Rays that make Gaussians of the run.
    """
    if not splat.exists():
        export_splat(f3rm.load(run), splat, Sampling(rays))
    scene = f3rm.load(splat, data=data)
    if not scene.heads:
        made = attach_to_splat(splat, AttachSettings(feature_type), data=data)
        print(f"Lifted features of {made.views} photographs in {made.seconds:.0f} s")
        scene = f3rm.load(splat, data=data)
    for query in queries:
        found = scene.find(query, frame="metres")
        print(f"{query}: {len(found)} found, {found.certainty}")
        for instance in found:
            print(f"  at {instance.centre.round(2)} m, {instance.extent.round(2)} m large")


if __name__ == "__main__":
    tyro.cli(main)
