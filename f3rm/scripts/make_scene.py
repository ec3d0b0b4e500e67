"""``f3rm make-scene``: writes a generated scene as a dataset to train on."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from f3rm.scripts.command import Command
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.preview import write_preview
from f3rm.synthetic.scenes import SceneSettings, make_scene, model_options
from f3rm.synthetic.splat import write_splat
from f3rm.synthetic.truth import SceneTruth

_SHIPPED = ("--pipeline.datamanager.feature-type", "TINYCLIP")
"""The feature type whose weights are part of f3rm."""


@dataclass
class MakeScene(Command):
    """Render a small generated scene, with camera poses, as a dataset for ns-train.

    The same seed and sizes give the same files; a scene that is there already is kept.
    """

    when_interrupted: ClassVar[str] = "Stopped. Nothing was written."

    scene: tyro.conf.Positional[SceneKind]
    """Which scene: objects on a table, objects along the walls of a room seen from inside, or the
    tabletop with a distorting lens or with mixed sizes of photographs."""
    out: Path
    """Folder of the dataset, new or empty."""
    seed: int = 0
    """Draws the objects, their colours and their places."""
    views: int = 48
    """Number of photographs."""
    height: int = 360
    """Rows of a photograph."""
    width: int = 480
    """Columns of a photograph."""
    preview: bool = False
    """Also draw preview.png: a few photographs with the objects' names, masks and depths."""

    splat: bool = False
    """Also write splat.ply: flat Gaussians on the scene's surfaces, for f3rm attach."""

    def run(self) -> None:
        """Writes the dataset, then prints the commands that train on it.

        Raises:
            F3rmError: If the dataset cannot be rendered or written.
        """
        settings = SceneSettings(
            seed=self.seed, views=self.views, height=self.height, width=self.width
        )
        written = make_scene(self.out, self.scene, settings, show_progress=True)
        state = "Wrote" if written else "Already there:"
        print(f"{state} {self.views} views of {self.height} x {self.width} in {self.out}")
        truth = SceneTruth.read(self.out)
        names = [f"{len(query.ids)} x {query.text}" for query in truth.queries]
        print(f"What is in it: {', '.join(names)}")
        if self.preview:
            print(f"See {write_preview(self.out)}")
        if self.splat:
            print(f"A splat of it: {write_splat(self.out, self.scene, settings)}")
        options = shlex.join([*_SHIPPED, "--data", str(self.out), *model_options(self.out)])
        print(f"Train on it: ns-train f3rm {options}")
        print(f"Without a GPU: ns-train f3rm-lite --machine.device-type cpu {options}")
        print("Then measure it against the scene's truth: f3rm eval CONFIG, the run's config.yml")
