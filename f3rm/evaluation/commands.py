"""Shell commands that continue with a run or a splat, as the page and the demo show them."""

import os
import sys
from pathlib import Path

from f3rm.scene.splat.loading import LoadedSplat


def next_commands(config: Path, *, pictures: Path, video: Path, device: str) -> list[str]:
    """Returns the lines of a shell session that continues with a run.

    Args:
        config: The run's ``config.yml``.
        pictures: Folder for the pictures of an evaluation.
        video: File for a video.
        device: ``cpu`` or ``cuda``; for a CPU the video is shorter and smaller.
    """
    run = shown_path(config)
    render = f"ns-render interpolate --load-config {run} --pose-source train"
    if device == "cpu":
        render += " --interpolation-steps 3 --downscale-factor 4"
    return [
        *activation(),
        "# Open it in the viewer, type something and choose the output 'similarity':",
        f"ns-viewer --load-config {run}",
        "# Measure it, with pictures of every query:",
        f"f3rm eval {run} --pictures {shown_path(pictures)}",
        "# Render a video of its features (needs ffmpeg):",
        f"{render} --rendered-output-names feature_pca --output-path {shown_path(video)}",
    ]


def splat_commands(splat: LoadedSplat, *, pictures: Path) -> list[str]:
    """Returns the lines of a shell session that continues with a splat.

    Args:
        splat: The splat.
        pictures: Folder for the pictures of an evaluation.
    """
    named = f"{shown_path(splat.config_path)} --data {shown_path(splat.data)}"
    return [
        *activation(),
        "# Measure it, with pictures of every query:",
        f"f3rm eval {named} --pictures {shown_path(pictures)}",
        "# Render pictures of its features:",
        f"f3rm render {named} --outputs pca --out {shown_path(pictures / 'pca')}",
    ]


def activation() -> list[str]:
    """Returns the lines that activate this virtual environment; none if it is active.

    Python started by its path, as ``make demo`` does, runs without its environment being active.
    """
    if os.environ.get("VIRTUAL_ENV") or sys.prefix == sys.base_prefix:
        return []
    script = shown_path(Path(sys.prefix) / "bin" / "activate")
    return ["# Once in this shell, so that it finds the commands below:", f"source {script}"]


def shown_path(path: Path) -> str:
    """Returns a path as one would type it: relative if it is inside the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
