"""``f3rm make-scene``: writes a generated scene as a dataset to train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from f3rm.evaluation.scenes import SceneSettings, make_tabletop, model_options
from f3rm.scripts.command import Command


@dataclass
class MakeScene(Command):
    """Render a small generated scene, with camera poses, as a dataset for ns-train.

    The same seed and sizes give the same files; what is there already is used as it is.
    """

    when_interrupted: ClassVar[str] = "Stopped. Nothing was written."

    scene: tyro.conf.Positional[Literal["tabletop"]]
    """Which scene: tabletop is a table with coloured objects in a room."""
    out: Path
    """Folder of the dataset, new or empty."""
    seed: int = 0
    """Draws the objects, their colours and their places."""
    views: int = 40
    """Number of photographs."""
    height: int = 180
    """Rows of a photograph."""
    width: int = 240
    """Columns of a photograph."""

    def run(self) -> None:
        """Writes the dataset, then prints how to train on it.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        settings = SceneSettings(
            seed=self.seed, views=self.views, height=self.height, width=self.width
        )
        written = make_tabletop(self.out, settings, show_progress=True)
        state = "Wrote" if written else "Already there:"
        print(f"{state} {self.views} views of {self.height} x {self.width} in {self.out}")
        options = " ".join(["--data", str(self.out), *model_options(self.out)])
        print(f"Train on it: ns-train f3rm {options}")
        print(f"Without a GPU: ns-train f3rm-lite --machine.device-type cpu {options}")
