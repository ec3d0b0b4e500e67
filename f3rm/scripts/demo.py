"""The demo: a generated scene, or your own, is trained on, measured and pictured in one command.

It runs Nerfstudio's own commands, which it prints, so that it also shows how they are called.
Called as ``python -m f3rm.scripts.demo`` or by ``make demo``.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from f3rm._types import F3rmError
from f3rm.backbones import clip, dino
from f3rm.evaluation.scenes import make_tabletop, model_options
from f3rm.features.spec import FeatureSpec, resolve_feature_type
from f3rm.scripts.command import Command, run_command
from f3rm.scripts.demo_report import (
    RANDOM_WEIGHTS,
    RunFiles,
    assemble_picture,
    closing_words,
    read_numbers,
    shown,
)

METHOD = "f3rm-lite"
TABLETOP = Path("datasets/tabletop")

_FEW_CORES = 4

_RANDOM_WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "clip": clip.write_random_checkpoint,
    "dino": dino.write_random_checkpoint,
    "dinov2": lambda folder: dino.write_random_checkpoint(folder, family="dinov2", patch_size=14),
}
"""What makes a small random network, by adapter."""


@dataclass
class Demo(Command):
    """Train a small feature field, measure it, and show the result.

    What an earlier call finished is used again.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. The scene and the features that are finished are kept: run the same command "
        "again to go on from there."
    )

    data: Path | None = None
    """Your own dataset with transforms.json; without it a scene is generated."""
    out: Path = Path("outputs/demo")
    """Folder for everything that the demo makes."""
    steps: int = 1000
    """Training steps."""
    feature_type: str = "DINOCLIP"
    """CLIP, DINO, DINOV2, DINOCLIP, or several joined by +."""
    weights: tuple[str, ...] = ()
    """Weights by type: CLIP=PATH DINO=PATH; types not named take their published ones."""
    pretrained: bool = False
    """Use the published weights, from the hub, instead of small random ones."""
    downscale_factor: int | None = None
    """Train on images_2, images_4, ... that ns-process-data made."""
    dataparser: tuple[str, ...] = ()
    """More options of nerfstudio-data, as NAME=VALUE: eval-mode=interval eval-interval=8."""
    force: bool = False
    """Train anew even if a finished run is there."""

    def run(self) -> None:
        """Does all steps, then prints the numbers and what to do next.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """
        self._check()
        out = self.out.expanduser().absolute()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        data = self._dataset()
        weights = self._weights(out / "checkpoints")
        heads = [spec.name for spec in resolve_feature_type(self.feature_type, weights=weights)]
        run = RunFiles(out / data.name / METHOD / "run")
        command = train_command(self, data=data, out=out, weights=weights, device=device)
        environment = child_environment(device, small_networks=self.random)
        self._train(run, command, environment)
        if not run.metrics.is_file():
            call(eval_command(run), environment)
        numbers = read_numbers(run, heads)
        picture = out / "demo.png"
        assemble_picture(run, heads, picture)
        words = closing_words(run, heads, numbers, picture, random=self.random, device=device)
        print(words)

    @property
    def random(self) -> bool:
        """Whether the features come from random weights."""
        return not (self.weights or self.pretrained)

    def _check(self) -> None:
        dataparser_words(self)
        if self.steps < 2:
            msg = f"demo: --steps must be at least 2, got {self.steps}. Ask for more."
            raise F3rmError(msg)
        for spec in resolve_feature_type(self.feature_type, weights=self.weights):
            if self.random and spec.backbone.adapter not in _RANDOM_WRITERS:
                msg = (
                    f"demo: --feature-type must be made of {', '.join(_RANDOM_WRITERS)} where no "
                    f"weights are given, got {spec.name!r}. Pass --pretrained or --weights."
                )
                raise F3rmError(msg)

    def _dataset(self) -> Path:
        if self.data is not None:
            return self.data.expanduser().absolute()
        if make_tabletop(TABLETOP, show_progress=True):
            print(f"Wrote the generated scene to {TABLETOP}", flush=True)
        return TABLETOP.absolute()

    def _weights(self, folder: Path) -> tuple[str, ...]:
        if not self.random:
            return self.weights
        print(f"{RANDOM_WEIGHTS}\n", flush=True)
        return write_random_weights(resolve_feature_type(self.feature_type), folder)

    def _train(self, run: RunFiles, command: Sequence[str], environment: Mapping[str, str]) -> None:
        wanted = json.dumps({"command": list(command[1:])}, indent=2)
        if not self.force and _is_trained(run, wanted):
            print(f"Using the finished run in {shown(run.folder)}; --force trains anew.")
            return
        # What an interrupted run, or one with other settings, left would be mistaken for ours.
        shutil.rmtree(run.folder, ignore_errors=True)
        call(command, environment)
        run.record.write_text(wanted, encoding="utf-8")


def write_random_weights(specs: Sequence[FeatureSpec], folder: Path) -> tuple[str, ...]:
    """Writes a small random network per feature type, unless it is there.

    Args:
        specs: The feature types.
        folder: Where the networks go, each in a folder of its own.

    Returns:
        One ``TYPE=PATH`` per feature type, as ``--weights`` takes them.

    Raises:
        F3rmError: If the folder cannot be written to.
    """
    entries: list[str] = []
    for spec in specs:
        place = folder / spec.name
        try:
            if not place.is_dir():
                building = folder / f".{spec.name}"
                shutil.rmtree(building, ignore_errors=True)
                _RANDOM_WRITERS[spec.backbone.adapter](building).rename(place)
        except OSError as error:
            msg = (
                f"demo: {str(folder)!r} must be a place that can be written to, got: {error}. "
                "Choose another --out."
            )
            raise F3rmError(msg) from error
        entries.append(f"{spec.name.upper()}={place}")
    return tuple(entries)


def train_command(
    demo: Demo, *, data: Path, out: Path, weights: Sequence[str], device: str
) -> list[str]:
    """Returns the call of ns-train.

    Args:
        demo: The demo's arguments.
        data: The dataset.
        out: The demo's folder.
        weights: Weights by type.
        device: ``cpu`` or ``cuda``.
    """
    pipeline = "--pipeline.datamanager"
    words = [sys.executable, "-m", "nerfstudio.scripts.train", METHOD]
    words += ["--machine.device-type", device, "--vis", "tensorboard"]
    words += ["--data", str(data), f"{pipeline}.feature-type", demo.feature_type]
    if weights:
        words += [f"{pipeline}.weights", *weights]
    if demo.random:
        # Beside the run: features of random weights must not replace real ones in the dataset.
        words += [f"{pipeline}.feature-cache-dir", str(out / "features")]
    words += model_options(data)
    words += ["--max-num-iterations", str(demo.steps), "--output-dir", str(out)]
    words += ["--experiment-name", data.name, "--timestamp", "run"]
    options = dataparser_words(demo)
    return [*words, "nerfstudio-data", *options] if options else words


def dataparser_words(demo: Demo) -> list[str]:
    """Returns the options of nerfstudio-data.

    Raises:
        F3rmError: If one does not look like NAME=VALUE.
    """
    words: list[str] = []
    if demo.downscale_factor is not None:
        words += ["--downscale-factor", str(demo.downscale_factor)]
    for entry in demo.dataparser:
        name, _, value = entry.partition("=")
        if not (name and value):
            msg = (
                f"demo: --dataparser must look like NAME=VALUE, got {entry!r}. "
                "ns-train f3rm nerfstudio-data --help lists the names."
            )
            raise F3rmError(msg)
        words += [f"--{name}", *value.split()]
    return words


def eval_command(run: RunFiles) -> list[str]:
    """Returns the call of ns-eval, which writes numbers and pictures beside the run."""
    words = [sys.executable, "-m", "nerfstudio.scripts.eval", "--load-config", str(run.config)]
    words += ["--output-path", str(run.metrics), "--render-output-path", str(run.pictures)]
    return words


def call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a command of Nerfstudio's and lets its output through.

    Args:
        command: Its words.
        environment: All of its environment variables.

    Raises:
        F3rmError: If it fails.
    """
    print(f"\n$ {shlex.join(['python', *command[1:]])}\n", flush=True)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        how = f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}"
        msg = (
            f"demo: {command[2]} must end without an error, but {how}. Its last messages stand "
            "above; what they name is to be put right, then run the demo again."
        )
        raise F3rmError(msg)


def child_environment(device: str, *, small_networks: bool) -> dict[str, str]:
    """Returns the environment of Nerfstudio's commands; what the user has set stays.

    Their many warnings about coming versions of other packages are left out. On the CPU they see no
    GPU and have one thread: f3rm-lite's operations are so small that threads wait for each other
    (on two busy cores a step took 6 s with two threads, 0.3 s with one). Only the extraction of
    real features, on more than a few cores, is better off with all.

    Args:
        device: ``cpu`` or ``cuda``.
        small_networks: Whether the features come from the small random networks.
    """
    environment = {"PYTHONWARNINGS": "ignore", **os.environ}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if small_networks or (os.cpu_count() or 1) <= _FEW_CORES:
            environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def _is_trained(run: RunFiles, wanted: str) -> bool:
    try:
        found: Any = run.record.read_text(encoding="utf-8")
    except OSError:
        return False
    return found == wanted and run.config.is_file()


if __name__ == "__main__":
    sys.exit(run_command(Demo, prog="python -m f3rm.scripts.demo"))
