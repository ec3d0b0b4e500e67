"""The demo: a scene is made, trained on, asked, measured and shown, in one command.

It runs Nerfstudio's and f3rm's own commands, which it prints, so that it also shows how they are
called. Called as ``python -m f3rm.scripts.demo`` or by ``make demo``.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from f3rm.errors import F3rmError
from f3rm.scripts.command import Command, run_command
from f3rm.scripts.demo_page import collect_views, write_page
from f3rm.scripts.demo_report import RunFiles, closing_words, commands, read_metrics, shown
from f3rm.store.spec import resolve_feature_type
from f3rm.synthetic.scenes import make_tabletop, model_options

METHOD = "f3rm-lite"
TABLETOP = Path("datasets/tabletop")

_FEW_CORES = 4


@dataclass
class Demo(Command):
    """Train a small feature field, ask it, measure it, and show all that on a page.

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
    feature_type: str = "TINYCLIP"
    """TINYCLIP ships with f3rm; CLIP, DINO, DINOCLIP, ... download their weights."""
    weights: tuple[str, ...] = ()
    """Weights by type, e.g. CLIP=PATH; types not named take their published ones."""
    queries: tuple[str, ...] = ()
    """What the page asks; without it names of things in the generated scene."""
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
        run = RunFiles(out, out / data.name / METHOD / "run")
        environment = child_environment(device)
        command = train_command(self, data=data, out=out, device=device)
        trained = self._train(run, command, environment)
        if trained or not run.metrics.is_file():
            call(eval_command(run), environment)
        metrics = read_metrics(run)
        if trained or not self._page_is_valid(run):
            views = collect_views(run.config, self.queries, device=device)
            write_page(run.page, views, metrics, commands(run, device=device))
            run.page_record.write_text(json.dumps(self.queries), encoding="utf-8")
        print(closing_words(run, metrics, device=device))

    def _check(self) -> None:
        dataparser_words(self)
        if self.steps < 2:
            msg = f"demo: --steps must be at least 2, got {self.steps}. Ask for more."
            raise F3rmError(msg)
        resolve_feature_type(self.feature_type, weights=self.weights)

    def _dataset(self) -> Path:
        if self.data is not None:
            return self.data.expanduser().absolute()
        if make_tabletop(TABLETOP, show_progress=True):
            print(f"Wrote the generated scene to {TABLETOP}", flush=True)
        return TABLETOP.absolute()

    def _train(self, run: RunFiles, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Trains unless a finished run is there; returns whether it did."""
        wanted = json.dumps({"command": list(command[1:])}, indent=2)
        if not self.force and _is_trained(run, wanted):
            print(f"Using the finished run in {shown(run.folder)}; --force trains anew.")
            return False
        # What an interrupted run, or one with other settings, left would be mistaken for ours.
        shutil.rmtree(run.folder, ignore_errors=True)
        for old in (run.metrics, run.page, run.page_record):
            old.unlink(missing_ok=True)
        call(command, environment)
        run.link_config()
        run.record.write_text(wanted, encoding="utf-8")
        return True

    def _page_is_valid(self, run: RunFiles) -> bool:
        try:
            asked: Any = run.page_record.read_text(encoding="utf-8")
        except OSError:
            return False
        return asked == json.dumps(self.queries) and run.page.is_file()


def train_command(demo: Demo, *, data: Path, out: Path, device: str) -> list[str]:
    """Returns the call of ns-train.

    Args:
        demo: The demo's arguments.
        data: The dataset.
        out: The demo's folder.
        device: ``cpu`` or ``cuda``.
    """
    pipeline = "--pipeline.datamanager"
    words = [sys.executable, "-m", "nerfstudio.scripts.train", METHOD]
    words += ["--machine.device-type", device, "--vis", "tensorboard"]
    words += ["--data", str(data), f"{pipeline}.feature-type", demo.feature_type]
    if demo.weights:
        words += [f"{pipeline}.weights", *demo.weights]
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
    """Returns the call of ``f3rm eval``, which writes its numbers beside the page."""
    words = [sys.executable, "-m", "f3rm.scripts.cli", "eval", str(run.config)]
    return [*words, "--json", str(run.metrics)]


def call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a command and lets its output through.

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


def child_environment(device: str) -> dict[str, str]:
    """Returns the environment of the commands; what the user has set stays.

    Their many warnings about coming versions of other packages are left out. On the CPU they see no
    GPU and, where there are few cores, have one thread: f3rm-lite's operations are so small that
    threads wait for each other (on two busy cores a step took 6 s with two threads, 0.3 s with
    one).

    Args:
        device: ``cpu`` or ``cuda``.
    """
    environment = {"PYTHONWARNINGS": "ignore", **os.environ}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if (os.cpu_count() or 1) <= _FEW_CORES:
            environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def _is_trained(run: RunFiles, wanted: str) -> bool:
    try:
        found: Any = run.record.read_text(encoding="utf-8")
    except OSError:
        return False
    return found == wanted and run.config.is_file()


if __name__ == "__main__":
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # as in the commands that it calls
    sys.exit(run_command(Demo, prog="python -m f3rm.scripts.demo"))
