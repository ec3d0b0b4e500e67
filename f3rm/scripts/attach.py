"""``f3rm attach``: adds feature heads to a trained run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from f3rm.scene.attach import AttachSettings, LiftSettings, attach, attach_to_splat
from f3rm.scene.splat.loading import is_splat
from f3rm.scripts.command import Command


@dataclass
class Attach(Command):
    """Add features to a trained run of nerfacto or f3rm, or to a splat, without training it again.

    Colours, density and the features of the run stay exactly as they are. The result is a new run,
    which ns-viewer, ns-eval and f3rm open; the old run is not modified. docs/attach.md shows it.
    Features of a splat, a splatfacto run or a .ply, are lifted from the photographs and written
    beside its file, which stays as it is; docs/splats.md shows that.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. The run or splat is as it was; lifting onto a splat goes on next time."
    )

    config: tyro.conf.Positional[Path]
    """The config.yml of a run of nerfacto, f3rm or splatfacto, or the .ply of a splat."""
    settings: tyro.conf.OmitArgPrefixes[AttachSettings] = field(default_factory=AttachSettings)
    lifting: tyro.conf.OmitArgPrefixes[LiftSettings] = field(default_factory=LiftSettings)
    data: Path | None = None
    """The dataset, if it was moved since training; of a .ply always."""
    out: Path = Path("outputs")
    """Of a run: folder of runs, as --output-dir of ns-train."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Trains or lifts the heads, then prints how good they are and where they are.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        if is_splat(self.config):
            self._lift()
            return
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

    def _lift(self) -> None:
        made = attach_to_splat(
            self.config,
            self.settings,
            self.lifting,
            data=self.data,
            device=self.device,
            show_progress=True,
        )
        found = made.agreement
        print(f"The splat shows the photographs with a PSNR of {found.psnr:.1f} dB")
        print(f"Lifted features of {made.views} photographs in {made.seconds:.0f} s")
        for name, reliability in made.reliability.items():
            print(f"{name}: mean reliability {reliability:.3f} of the Gaussians that they show")
        for file in made.files:
            print(f"Wrote {file}")
        data = "" if self.data is None else f", data={str(self.data)!r}"
        print(f"Ask it: f3rm.load({str(self.config)!r}{data}) in Python")
