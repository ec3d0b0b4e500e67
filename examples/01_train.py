"""Train: makes a generated scene and trains a feature field on it, on the CPU.

    python examples/01_train.py --steps 1000

Writes the scene to datasets/tabletop and the run to outputs/tabletop/f3rm-lite/run. The other
examples open this run; start them in the same folder. The backbone, TINYCLIP, ships with f3rm, so
that nothing is downloaded. With photographs of your own, call ns-train as below with their folder.
"""

import subprocess
import sys
from pathlib import Path

import tyro

from f3rm.synthetic import SceneSettings, make_scene

DATA = Path("datasets/tabletop")


def main(
    steps: int = 1000, seed: int = 0, views: int = 48, height: int = 360, width: int = 480
) -> None:
    """Makes the scene unless it is there, then trains.

    Args:
        steps: Training steps; 1,000 take a few minutes.
        seed: Draws the objects of the scene.
        views: Number of photographs.
        height: Rows of a photograph.
        width: Columns of it.
    """
    settings = SceneSettings(seed=seed, views=views, height=height, width=width)
    make_scene(DATA, "tabletop", settings, show_progress=True)
    command = [sys.executable, "-m", "nerfstudio.scripts.train", "f3rm-lite"]  # ns-train f3rm-lite
    command += ["--data", str(DATA), "--pipeline.datamanager.feature-type", "TINYCLIP"]
    command += ["--pipeline.model.near-plane", "0.25"]  # keeps floaters away from the cameras
    command += ["--machine.device-type", "cpu", "--vis", "tensorboard"]  # no viewer
    command += ["--max-num-iterations", str(steps), "--timestamp", "run"]
    subprocess.run(command, check=True)
    print("Trained outputs/tabletop/f3rm-lite/run")


if __name__ == "__main__":
    tyro.cli(main)
