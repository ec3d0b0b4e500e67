"""``f3rm label``: a few clicks or words, and every photograph and the surfaces are labelled."""

from dataclasses import dataclass
from pathlib import Path

import tyro

import f3rm
from f3rm.errors import F3rmError, check_number
from f3rm.language.relevancy import Rule
from f3rm.scene.export.labels import export_labels
from f3rm.scene.export.points import Sampling
from f3rm.scene.frames import FrameName
from f3rm.scene.paths import check_views
from f3rm.scripts.asking import Asked, how_asked
from f3rm.scripts.command import Command


@dataclass
class Label(Command):
    """Label every photograph and the surfaces of a trained run, from a few examples or words.

    f3rm label RUN --like "fox = 0001.jpg@300,200; shield = 0001.jpg@150,500" carries two clicks to
    all views. Writes a picture of each view, points.ply and labels.json. docs/export.md shows it.
    """

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder."""
    query: str = ""
    """The labels as words, with semicolons between them."""
    like: str = ""
    """The labels as examples: NAME = VIEW@X,Y; a label may have several. See f3rm find --help."""
    out: Path = Path("labels")
    """The folder of the files."""
    views: str = "train,eval"
    """With commas: train and eval for the photographs, interpolate, or a camera path (.json)."""
    threshold: float | None = None
    """Least score of every label; without it 0.5 of several examples, else chosen by the scene."""
    rule: Rule | None = None
    """How words are scored; see f3rm find --help."""
    head: str | None = None
    """The feature head; without it the first that has a text tower, or of --like the first."""
    language: str | None = None
    """Name or .safetensors file of a language, to ask a head that has no text tower, as RADIO's."""
    frame: FrameName = "dataset"
    """Frame of the points: dataset (of transforms.json), metres, or nerfstudio (the run's own)."""
    rays: int = Sampling.rays
    """Pixels to render for the points; most give a point."""
    downscale: float = 1.0
    """Factor by which the pictures are smaller than the photographs."""
    data: Path | None = None
    """The dataset, if it was moved since training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Labels, then prints how many points each label has.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        asked = Asked.read(self.query, self.like)
        if not asked:
            msg = "Labels are missing: --like 'fox = VIEW@X,Y; shield = VIEW@X,Y', or --query."
            raise F3rmError(msg)
        views = [view.strip() for view in self.views.split(",") if view.strip()]
        for each in views:
            check_views(each, downscale=self.downscale)
        check_number("--rays", self.rays, above=0)
        scene = f3rm.load(self.config, data=self.data, device=self.device, show_progress=True)
        scene.language = self.language
        counts = export_labels(
            scene,
            self.out,
            asked.questions(scene, self.frame, **how_asked(self.head, self.rule)),
            views=views,
            sampling=Sampling(self.rays, frame=self.frame),
            threshold=self.threshold,
            downscale=self.downscale,
            show_progress=True,
        )
        for label, count in counts.items():
            print(f"{label}: {count} points")
        print(f"Wrote {self.out}")
