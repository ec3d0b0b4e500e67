"""Where the demo's files are, and what it says at its end: the numbers, and what to do next."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f3rm.errors import F3rmError

_SHOWN = (
    ("localisation", "queries whose best pixel lies in the box of their object"),
    ("miou", "mIoU of the answers with the truth"),
    ("teacher_miou", "the same of the 2D teacher"),
    ("feature_cosine", "cosine of rendered and extracted features"),
    ("psnr", "PSNR of the colours in dB"),
)


@dataclass(frozen=True)
class RunFiles:
    """Where the demo's files are.

    Attributes:
        out: The demo's folder.
        folder: Nerfstudio's folder of the run.
    """

    out: Path
    folder: Path

    @property
    def config(self) -> Path:
        """What every command loads the run by: a link to the file that Nerfstudio wrote."""
        return self.out / "config.yml"

    @property
    def metrics(self) -> Path:
        """Numbers on the evaluation views, written by ``f3rm eval``."""
        return self.out / "metrics.json"

    @property
    def page(self) -> Path:
        """What there is to look at."""
        return self.out / "index.html"

    @property
    def page_record(self) -> Path:
        """What the page was asked, written when it is complete."""
        return self.folder / "page.json"

    @property
    def record(self) -> Path:
        """What the run was trained with, written when its training has ended."""
        return self.folder / "demo.json"

    def link_config(self) -> None:
        """Links :attr:`config` to the run's file.

        Raises:
            F3rmError: If it cannot be done.
        """
        target = Path(os.path.relpath(self.folder / "config.yml", self.out))
        try:
            self.config.unlink(missing_ok=True)
            self.config.symlink_to(target)
        except OSError as error:
            msg = (
                f"demo: {str(self.out)!r} must be a folder that can hold links, got: {error}. "
                "Choose another --out."
            )
            raise F3rmError(msg) from error


def read_metrics(run: RunFiles) -> dict[str, Any]:
    """Returns what ``f3rm eval`` measured.

    Args:
        run: A run that was evaluated.

    Raises:
        F3rmError: If the file cannot be read.
    """
    try:
        found = json.loads(run.metrics.read_text(encoding="utf-8"))
        return {**found, "psnr": float(found["psnr"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"read_metrics: {str(run.metrics)!r} must be what f3rm eval wrote, got: {error!r}. Run "
            "the demo again with --force."
        )
        raise F3rmError(msg) from error


def commands(run: RunFiles, *, device: str) -> str:
    """Returns what to type next.

    Args:
        run: The trained run.
        device: ``cpu`` or ``cuda``; for a CPU the video is made shorter and smaller.
    """
    config, video = shown(run.config), shown(run.out / "pca.mp4")
    render = f"ns-render interpolate --load-config {config} --pose-source train"
    if device == "cpu":
        render += " --interpolation-steps 3 --downscale-factor 4"
    return "\n".join(
        [
            *activation(),
            "# Open it in the viewer, type something and choose the output 'similarity':",
            f"ns-viewer --load-config {config}",
            "# Measure it, with pictures of every query:",
            f"f3rm eval {config} --pictures {shown(run.out / 'pictures')}",
            "# Render a video of its features (needs ffmpeg):",
            f"{render} --rendered-output-names feature_pca --output-path {video}",
            "# Do the same with your own photographs (ns-process-data needs COLMAP):",
            "ns-process-data images --data PHOTOS --output-dir datasets/mine",
            "python -m f3rm.scripts.demo --data datasets/mine --feature-type CLIP --queries plant",
            "ns-train f3rm --data datasets/mine --pipeline.datamanager.feature-type DINOCLIP",
        ]
    )


def closing_words(run: RunFiles, metrics: Mapping[str, Any], *, device: str) -> str:
    """Returns what the demo prints last.

    Args:
        run: The trained run.
        metrics: What ``f3rm eval`` measured.
        device: ``cpu`` or ``cuda``.
    """
    measured = [
        f"  {label.ljust(46)} {metrics[key]:.3f}"
        for key, label in _SHOWN
        if isinstance(metrics.get(key), int | float)
    ]
    return "\n".join(
        [
            "",
            f"Look at:  {shown(run.page)}",
            f"The run:  {shown(run.config)}",
            f"Numbers:  {shown(run.metrics)}, on views that it was not trained on:",
            *measured,
            "",
            commands(run, device=device),
        ]
    )


def activation() -> list[str]:
    """Returns how to put the commands on the path, where the shell has not done so."""
    if os.environ.get("VIRTUAL_ENV") or sys.prefix == sys.base_prefix:
        return []
    script = shown(Path(sys.prefix) / "bin" / "activate")
    return ["# Once in this shell, so that it finds the commands below:", f"source {script}"]


def shown(path: Path) -> str:
    """Returns a path as one would type it: relative where it lies in the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
