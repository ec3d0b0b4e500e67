"""What the demo shows at its end: one picture, the measured numbers, and what to do next."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from f3rm._types import F3rmError

_VIEWS = 3
_WIDEST = 480
"""Widest column of the picture, in pixels; larger photographs are made smaller."""
_CAPTION = 16


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files are.

    Attributes:
        folder: Nerfstudio's folder of the run.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """What every ns-* command loads a run by."""
        return self.folder / "config.yml"

    @property
    def metrics(self) -> Path:
        """Numbers on the evaluation views, written by ns-eval."""
        return self.folder / "metrics.json"

    @property
    def pictures(self) -> Path:
        """Folder of pictures of the evaluation views, written by ns-eval."""
        return self.folder / "pictures"

    @property
    def record(self) -> Path:
        """What the run was trained with, written when its training has ended."""
        return self.folder / "demo.json"


def head_key(stem: str, name: str, heads: Sequence[str]) -> str:
    """Returns the name of a head's output or metric: with one head the head's name is left out."""
    return stem if len(heads) == 1 else f"{stem}_{name}"


def assemble_picture(run: RunFiles, heads: Sequence[str], path: Path) -> None:
    """Puts photograph, rendering, and extracted and rendered features of some views side by side.

    Args:
        run: A run with the pictures of ns-eval.
        heads: Names of its feature heads.
        path: Where the picture is written.

    Raises:
        F3rmError: If there are no pictures.
    """
    names = sorted(path.name for path in run.pictures.glob("eval_img_*.png"))
    if not names:
        msg = (
            f"assemble_picture: {str(run.pictures)!r} must hold the pictures of ns-eval, got none. "
            "Run the demo again with --force."
        )
        raise F3rmError(msg)
    captions = ["photograph", "rendered"]
    for head in heads:
        captions += [f"{head}: extracted (PCA)", f"{head}: rendered (PCA)"]
    rows = [_row(run, name, heads) for name in names[:_VIEWS]]
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, _CAPTION + height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(captions):
        draw.text((4 + index * width // len(captions), 2), caption, fill="black")
    top = _CAPTION
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _row(run: RunFiles, name: str, heads: Sequence[str]) -> Image.Image:
    """Returns one view; each of ns-eval's pictures is two columns already."""
    keys = ["img", *(head_key("feature_pca", head, heads) for head in heads)]
    pictures: list[Image.Image] = []
    for key in keys:
        with Image.open(run.pictures / name.replace("eval_img_", f"eval_{key}_")) as picture:
            pictures.append(picture.convert("RGB"))
    row = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    shrink = min(1.0, 2 * len(keys) * _WIDEST / row.width)
    return row.resize((round(row.width * shrink), round(row.height * shrink)))


def read_numbers(run: RunFiles, heads: Sequence[str]) -> dict[str, float]:
    """Returns PSNR and each head's mean cosine on the evaluation views.

    Args:
        run: A run with the metrics of ns-eval.
        heads: Names of its feature heads.

    Raises:
        F3rmError: If the metrics cannot be read.
    """
    keys = ["psnr", *(head_key("feature_cosine", head, heads) for head in heads)]
    try:
        results: dict[str, Any] = json.loads(run.metrics.read_text(encoding="utf-8"))["results"]
        return {key: float(results[key]) for key in keys}
    except (OSError, ValueError, KeyError) as error:
        msg = (
            f"read_numbers: {str(run.metrics)!r} must have {', '.join(keys)}, got: {error!r}. Run "
            "the demo again with --force."
        )
        raise F3rmError(msg) from error


def closing_words(
    run: RunFiles,
    heads: Sequence[str],
    numbers: dict[str, float],
    picture: Path,
    *,
    random: bool,
    device: str,
) -> str:
    """Returns what the demo prints last.

    Args:
        run: The trained run.
        heads: Names of its feature heads.
        numbers: What :func:`read_numbers` returns.
        picture: The assembled picture.
        random: Whether the features came from random weights.
        device: ``cpu`` or ``cuda``; for a CPU the video is made shorter and smaller.
    """
    config = shown(run.config)
    output = head_key("feature_pca", heads[0], heads)
    video = shown(picture.parent / "pca.mp4")
    render = f"ns-render interpolate --load-config {config} --pose-source train"
    if device == "cpu":
        render += " --interpolation-steps 3 --downscale-factor 2"
    measured = [f"  {key.ljust(22)} {value:.3f}" for key, value in numbers.items()]
    return "\n".join(
        [
            "",
            f"The run:     {config}",
            f"Its picture: {shown(picture)}",
            "On the evaluation views (psnr in dB; cosine of rendered and extracted features):",
            *measured,
            "",
            *activation(),
            "Open it in the viewer:",
            f"  ns-viewer --load-config {config}",
            "Render a video of its features (needs ffmpeg):",
            f"  {render} --rendered-output-names {output} --output-path {video}",
            "Do the same with your own photographs (ns-process-data needs COLMAP):",
            "  ns-process-data images --data PHOTOS --output-dir datasets/mine",
            "  python -m f3rm.scripts.demo --data datasets/mine --pretrained",
            "  ns-train f3rm --data datasets/mine",
            *(["", RANDOM_WEIGHTS] if random else []),
        ]
    )


RANDOM_WEIGHTS = (
    "These features come from small networks with RANDOM weights, so that the demo needs no\n"
    "download: they carry no meaning, and a text query finds nothing in them. With --pretrained\n"
    "(from the hub) or --weights CLIP=PATH DINO=PATH they are the real ones, and queries work."
)
"""What is said whenever random weights are used."""


def activation() -> list[str]:
    """Returns how to put the commands on the path, where the shell has not done so."""
    if os.environ.get("VIRTUAL_ENV") or sys.prefix == sys.base_prefix:
        return []
    script = shown(Path(sys.prefix) / "bin" / "activate")
    return ["Once in this shell, so that it finds the commands below:", f"  source {script}"]


def shown(path: Path) -> str:
    """Returns a path as one would type it: relative where it lies in the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
