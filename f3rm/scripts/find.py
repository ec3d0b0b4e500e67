"""``f3rm find``: where things are in a trained run, as a table, as JSON, or as a picture."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

import f3rm
from f3rm.errors import F3rmError, printable
from f3rm.language.relevancy import Rule
from f3rm.scene import Found
from f3rm.scene.export.files import check_file
from f3rm.scene.export.objects import boxes_as_json, metres_per_unit
from f3rm.scene.export.sightings import PICTURE_SUFFIXES, write_sightings
from f3rm.scene.frames import FrameName
from f3rm.scripts.asking import Asked, how_asked
from f3rm.scripts.command import Command


@dataclass
class Find(Command):
    """Find things in a trained run by words or by examples: where they are, how large, how certain.

    Several questions are separated by semicolons: f3rm find RUN "red mug; bowl". docs/python.md
    explains questions and certainty.
    """

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder."""
    query: tyro.conf.Positional[str] = ""
    """What to look for."""
    like: str = ""
    """Examples in place of words: VIEW@X,Y is a pixel of a photograph, FILE an image,
    FILE@LEFT,TOP,RIGHT,BOTTOM a part of it, @X,Y,Z a point; "mug = 0001.jpg@300,200" names it."""
    json: bool = False
    """Print JSON in place of a table, with the keys of f3rm export RUN boxes."""
    picture: Path | None = None
    """A .png or .jpg file: boxes in the photographs that show the instances best."""
    compete: bool = True
    """Whether a place that matches several questions belongs to the best one only."""
    threshold: float | None = None
    """Least score of a match; without it chosen from the scene's scores."""
    negatives: str | None = None
    """Phrases with semicolons that words must beat; without it object, things, stuff, texture."""
    rule: Rule | None = None
    """lerf is relevancy to the negatives; scene, also without it, contrasts with the scene's mean
    feature, too; backbone counts deviations from what it gives anywhere, if calibrated."""
    head: str | None = None
    """The feature head; without it the first that has a text tower, or of --like the first."""
    language: str | None = None
    """Name or .safetensors file of a language, to ask a head that has no text tower, as RADIO's."""
    frame: FrameName | None = None
    """dataset, metres or nerfstudio; without it metres where the dataset gives its scale."""
    data: Path | None = None
    """The dataset, if it was moved since training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Asks, then prints the answers.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        asked = Asked.read(self.query, self.like)
        options = how_asked(self.head, self.rule, self.negatives)
        if not asked:
            msg = 'What to look for is missing: f3rm find RUN "red mug", or --like VIEW@X,Y.'
            raise F3rmError(msg)
        if self.picture is not None:
            check_file(self.picture, PICTURE_SUFFIXES, what="a picture")
        with contextlib.redirect_stdout(sys.stderr):  # Nerfstudio prints while it opens a run
            scene = f3rm.load(self.config, data=self.data, device=self.device, show_progress=True)
        scene.language = self.language
        frame = self.frame or ("metres" if "metres" in scene.frames.known else "dataset")
        answers = scene.find(
            list(asked.words) or asked.questions(scene, frame, **options),
            threshold=self.threshold,
            compete=self.compete,
            frame=frame,
            **options,
        )
        if self.json:
            print(boxes_as_json(scene, answers, frame), end="")
        else:
            print_table(answers, "m" if metres_per_unit(scene, frame) == 1 else f"{frame} units")
        if self.picture is not None:
            wrote = write_sightings(scene, answers, self.picture)
            note = f"Wrote {wrote}" if wrote else "No picture was written: nothing was found."
            Console(stderr=self.json).print(Text(printable(note)))


def print_table(answers: list[Found], unit: str) -> None:
    """Prints a row for each instance, and below the reason of each answer that is uncertain."""
    table = Table("instance", "certainty", "score", box=None, pad_edge=False)
    table.add_column(f"centre ({unit})", no_wrap=True)
    table.add_column(f"size ({unit})", no_wrap=True)
    for found in answers:
        for number, instance in enumerate(found, start=1):
            centre = " ".join(f"{value:5.2f}" for value in instance.centre)
            size = " x ".join(f"{value:.2f}" for value in instance.extent)
            name, score = f"{found.question} {number}", f"{instance.score:.2f}"
            table.add_row(Text(printable(name)), found.certainty, score, centre, size)
    if table.row_count:
        Console().print(table)
    for found in answers:
        if found.reason:
            print(printable(found.verdict))
