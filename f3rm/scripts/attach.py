"""``f3rm attach``: adds feature heads to a trained run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from f3rm.scene.attach import AttachSettings, attach
from f3rm.scripts.command import Command


@dataclass
class Attach(Command):
    """Add features to a trained run of nerfacto or f3rm, without training the scene again.

    Colours, density and the features of the run stay exactly as they are. The result is a new run,
    which ns-viewer, ns-eval and f3rm open; the old run is not modified. docs/attach.md shows it.
    """

    when_interrupted: ClassVar[str] = "Stopped. Nothing was written; the run is as it was."

    config: tyro.conf.Positional[Path]
    """The run's config.yml."""
    settings: tyro.conf.OmitArgPrefixes[AttachSettings] = field(default_factory=AttachSettings)
    data: Path | None = None
    """The dataset, if it was moved since training."""
    out: Path = Path("outputs")
    """Folder of runs, as --output-dir of ns-train."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Trains the heads, then prints their cosines and the path of the new run.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        made = attach(
            self.config,
            self.settings,
            data=self.data,
            out=self.out,
            device=self.device,
            show_progress=True,
        )
        print(f"Trained {made.steps} steps in {made.seconds:.0f} s")
        for name, cosine in made.cosines.items():
            print(f"{name}: mean cosine {cosine:.3f} with the 2D features at held-out pixels")
        print(f"Heads of the new run: {', '.join(made.heads)}")
        print(f"Look at it: ns-viewer --load-config {made.config_path}")
        print(f"Measure it: f3rm eval {made.config_path}")
