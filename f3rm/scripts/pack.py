"""``f3rm pack``: a trained run as one file that stands alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

import f3rm
from f3rm.scene.export import export_packed
from f3rm.scripts.command import Command


@dataclass
class Pack(Command):
    """Pack a trained run into one file, which opens anywhere without the run and its photographs.

    f3rm pack RUN --out scene.f3rm; then f3rm find scene.f3rm "red mug", or f3rm.load in Python.
    """

    when_interrupted: ClassVar[str] = "Stopped. Nothing was written."

    config: tyro.conf.Positional[Path]
    """The run's config.yml, or its folder."""
    out: Path
    """The file, which ends in .f3rm."""
    data: Path | None = None
    """The dataset, if it was moved since training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Packs, then prints the file's size.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        scene = f3rm.load(self.config, data=self.data, device=self.device)
        without = export_packed(scene, self.out)
        print(f"Wrote {self.out}: {self.out.stat().st_size / 1e6:.1f} MB")
        if without:
            print(
                f"Weights that are not f3rm's own are not packed: elsewhere {', '.join(without)} "
                "answers points and pixels, not words and images."
            )
