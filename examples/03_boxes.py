"""Boxes: writes the upright boxes of objects as JSON, in metres, for a robot to grasp.

    python examples/03_boxes.py --queries "orange cone" "pink bottle" --out boxes.json

Needs the run of 01_train.py. docs/export.md lists the keys of the file.
"""

from pathlib import Path

import tyro

import f3rm
from f3rm.scene.export import export_boxes


def main(
    run: Path = Path("outputs/tabletop/f3rm-lite/run"),
    out: Path = Path("boxes.json"),
    queries: tuple[str, ...] = ("orange cone", "pink bottle"),
    max_width: float = 0.4,
    rays: int = 20_000,
) -> None:
    """Writes all boxes, and prints those that fit between two fingers.

    Args:
        run: Folder of the run.
        out: The JSON file.
        queries: Names of the objects.
        max_width: Opening of the gripper in metres.
        rays: Rays that sample the surfaces; more find smaller objects.
    """
    scene = f3rm.load(run, surface_rays=rays)
    for found in export_boxes(scene, out, query=queries, frame="metres"):
        for instance in found:
            box = instance.box
            width = min(box.extent[:2])  # its last axis points up
            verdict = "graspable" if width <= max_width else "too wide"
            print(f"{found.question}: {verdict}, {width:.2f} m wide, yaw {box.yaw:.2f} rad")
        if found.certainty != "found":
            print(f"{found.question}: {found.certainty}, {found.reason}")
    print(f"Wrote {out}")


if __name__ == "__main__":
    tyro.cli(main)
