"""``f3rm eval``: measures a trained run or a splat on its held-out views."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from f3rm.evaluation.evaluate import evaluate_run
from f3rm.evaluation.pictures import PAGE
from f3rm.language.relevancy import Rule
from f3rm.scripts.command import Command


@dataclass
class Eval(Command):
    """Measure a trained run or a splat on its held-out views, and its 2D teacher on the same ones.

    On a scene of f3rm make-scene queries are compared with the truth; on photographs of your own
    there is none, and PSNR and feature cosine are reported. docs/evaluation.md explains them.
    """

    config: tyro.conf.Positional[Path]
    """The config.yml of a run of f3rm or splatfacto, or the .ply of a splat."""
    json: Path | None = None
    """File for all numbers."""
    pictures: Path | None = None
    """Folder for index.html and pictures of every query in every held-out view."""
    queries: tuple[str, ...] = ()
    """Phrases that index.html asks; without them names of objects in the views that it shows."""
    nerfacto: Path | None = None
    """config.yml of a plain Nerfacto run on the same dataset, to report its PSNR too."""
    rule: Rule | None = None
    """How words are scored, of the teacher too; see f3rm find --help. Without it what is found by
    scene, and pictures and points by lerf, as others measure."""
    head: str | None = None
    """The feature head to ask; without it the first that has a text tower."""
    language: str | None = None
    """Name or .safetensors file of a language, to ask a head that has no text tower, as RADIO's."""
    data: Path | None = None
    """The dataset, where it was moved since training; of a .ply always."""
    seed: int = 0
    """Draws the surface points."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Measures, prints the tables and writes the files.

        Raises:
            F3rmError: If the run cannot be evaluated or a file cannot be written.
        """
        found = evaluate_run(
            self.config,
            data=self.data,
            nerfacto=self.nerfacto,
            head=self.head,
            language=self.language,
            rule=self.rule,
            pictures=self.pictures,
            queries=self.queries,
            seed=self.seed,
            device=self.device,
            show_progress=True,
        )
        console = Console()
        for table in found.tables():
            console.print(table)
        for note in found.notes:
            print(f"Note: {note}")
        if self.json is not None:
            found.write_json(self.json)
            print(f"Wrote {self.json}")
        if self.pictures is not None:
            print(f"Wrote the page {self.pictures / PAGE}")
        if self.pictures is not None and found.rows["queries"]:
            print(f"Wrote pictures to {self.pictures}; overview.png shows every query")
