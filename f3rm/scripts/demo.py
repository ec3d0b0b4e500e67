"""``f3rm demo``: makes a scene, trains on it, evaluates the run, and shows a page of it.

It runs Nerfstudio's and f3rm's own commands and prints them, so that it also shows their use.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from f3rm.errors import F3rmError
from f3rm.evaluation.commands import next_commands, shown_path
from f3rm.evaluation.page import with_times
from f3rm.evaluation.pictures import PAGE
from f3rm.scripts.command import Command
from f3rm.store.spec import resolve_feature_type
from f3rm.synthetic.scenes import make_tabletop, model_options

METHOD = "f3rm-lite"
TABLETOP = Path("datasets/tabletop")

_FEW_CORES = 4
_MAKING = "Making the scene, or checking that it is there"
_SHOWN = (
    ("localisation", "queries whose best pixel is in the box of their object"),
    ("localisation_mask", "the same, on the object itself"),
    ("miou", "mIoU of the answers with the truth"),
    ("teacher_miou", "the same of the 2D teacher"),
    ("feature_cosine_bilinear", "cosine of rendered and extracted features"),
    ("psnr", "PSNR of the colours in dB"),
)


@dataclass(frozen=True)
class RunFiles:
    """Paths of the demo's files.

    Attributes:
        out: The demo's folder.
        folder: Nerfstudio's folder of the run.
    """

    out: Path
    folder: Path

    @property
    def config(self) -> Path:
        """A link to the ``config.yml`` that Nerfstudio wrote, with a path short enough to type."""
        return self.out / "config.yml"

    @property
    def metrics(self) -> Path:
        """The numbers, written by ``f3rm eval``."""
        return self.out / "metrics.json"

    @property
    def page(self) -> Path:
        """The page, which can be opened in a browser."""
        return self.out / PAGE

    @property
    def pictures(self) -> Path:
        """Folder of the evaluation's pictures."""
        return self.out / "pictures"

    @property
    def page_record(self) -> Path:
        """The queries that the page asks; written when the page is complete."""
        return self.folder / "page.json"

    @property
    def record(self) -> Path:
        """The command that trained the run; written when it has ended without an error."""
        return self.folder / "demo.json"

    @property
    def times(self) -> Path:
        """Seconds that the scene and the training took, by what was done."""
        return self.folder / "times.json"

    def is_evaluated(self, asked: str) -> bool:
        """Tells whether numbers and a page with these queries are there."""
        complete = self.metrics.is_file() and self.page.is_file()
        return complete and _read(self.page_record) == asked

    def link_config(self) -> None:
        """Links :attr:`config` to the run's file.

        Raises:
            F3rmError: If the link cannot be made.
        """
        target = Path(os.path.relpath(self.folder / "config.yml", self.out))
        try:
            self.config.unlink(missing_ok=True)
            self.config.symlink_to(target)
        except OSError as error:
            msg = f"--out: {str(self.out)!r} cannot hold a link: {error}. Choose another --out."
            raise F3rmError(msg) from error


@dataclass
class Demo(Command):
    """Train a small feature field, ask it, measure it, and show the results on a page.

    Finished steps of an earlier call are used again.
    """

    when_interrupted: ClassVar[str] = (
        "Stopped. Finished scenes and features are kept: run the same command again to continue."
    )

    data: Path | None = None
    """Your own dataset with transforms.json; without it a scene is generated."""
    out: Path = Path("outputs/demo")
    """Folder for the run, its numbers and its page."""
    steps: int = 1000
    """Training steps."""
    feature_type: str = "TINYCLIP"
    """TINYCLIP ships with f3rm; CLIP, DINO, DINOCLIP, ... download their weights."""
    weights: tuple[str, ...] = ()
    """Weights by type, e.g. CLIP=PATH; types not named take their published ones."""
    queries: tuple[str, ...] = ()
    """Phrases that the page asks; without them names of objects in the generated scene."""
    downscale_factor: int | None = None
    """Train on images_2, images_4, ... that ns-process-data made."""
    dataparser: tuple[str, ...] = ()
    """More options of nerfstudio-data, as NAME=VALUE: eval-mode=interval eval-interval=8."""
    force: bool = False
    """Train again even if there is a finished run."""

    def run(self) -> None:
        """Runs all steps, then prints the numbers and commands to continue with.

        Raises:
            F3rmError: If an option is wrong or a step fails.
        """
        self._check()
        out = self.out.expanduser().absolute()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        data = self._dataset()
        seconds = {_MAKING: time.perf_counter() - started} if self.data is None else {}
        run = RunFiles(out, out / data.name / METHOD / "run")
        environment = child_environment(device)
        command = train_command(self, data=data, out=out, device=device)
        asked = json.dumps(self.queries)
        if self._train(run, command, environment, seconds) or not run.is_evaluated(asked):
            call(eval_command(run, self.queries), environment)
            took = json.loads(_read(run.times) or "{}")
            page = (run.pictures / PAGE).read_text(encoding="utf-8")
            run.page.write_text(with_times(page, took), encoding="utf-8")
            (run.pictures / PAGE).unlink()
            run.page_record.write_text(asked, encoding="utf-8")
        print(closing_words(run, read_metrics(run), device=device))

    def _check(self) -> None:
        dataparser_words(self)
        if self.steps < 2:
            msg = f"--steps must be at least 2, got {self.steps}."
            raise F3rmError(msg)
        resolve_feature_type(self.feature_type, weights=self.weights)

    def _dataset(self) -> Path:
        if self.data is not None:
            return self.data.expanduser().absolute()
        if make_tabletop(TABLETOP, show_progress=True):
            print(f"Wrote the generated scene to {TABLETOP}", flush=True)
        return TABLETOP.absolute()

    def _train(
        self,
        run: RunFiles,
        command: Sequence[str],
        environment: Mapping[str, str],
        seconds: Mapping[str, float],
    ) -> bool:
        """Trains, unless there is a finished run of the same command; returns whether it did."""
        wanted = json.dumps({"command": list(command[1:])}, indent=2)
        if not self.force and _read(run.record) == wanted and run.config.is_file():
            print(f"Using the finished run in {shown_path(run.folder)}; --force trains anew.")
            return False
        # Checkpoints of an interrupted run, or of other settings, would be loaded as this run's.
        shutil.rmtree(run.folder, ignore_errors=True)
        for old in (run.metrics, run.page, run.page_record):
            old.unlink(missing_ok=True)
        started = time.perf_counter()
        call(command, environment)
        training = {f"Features, and {self.steps} training steps": time.perf_counter() - started}
        run.times.write_text(json.dumps({**seconds, **training}), encoding="utf-8")
        run.link_config()
        run.record.write_text(wanted, encoding="utf-8")
        return True


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
                f"--dataparser must look like NAME=VALUE, got {entry!r}. "
                "ns-train f3rm nerfstudio-data --help lists the names."
            )
            raise F3rmError(msg)
        words += [f"--{name}", *value.split()]
    return words


def eval_command(run: RunFiles, queries: Sequence[str]) -> list[str]:
    """Returns the call of ``f3rm eval``, which writes numbers, pictures and page."""
    words = [sys.executable, "-m", "f3rm.scripts.cli", "eval", str(run.config)]
    words += ["--json", str(run.metrics), "--pictures", str(run.pictures)]
    return [*words, "--queries", *queries] if queries else words


def call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a command, whose output goes where the demo's goes.

    Args:
        command: Its words; the first is this Python.
        environment: All of its environment variables.

    Raises:
        F3rmError: If it ends with an error.
    """
    print(f"\n$ {shlex.join(['python', *command[1:]])}\n", flush=True)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        msg = f"{command[2]} {how}. Correct what its messages above name, then run the demo again."
        raise F3rmError(msg)


def child_environment(device: str) -> dict[str, str]:
    """Returns the environment of the commands; variables that the user has set keep their values.

    It silences the many warnings about coming versions of other packages. On the CPU it hides all
    GPUs.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    environment = {"PYTHONWARNINGS": "ignore", **os.environ}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if (os.cpu_count() or 1) <= _FEW_CORES:
            # f3rm-lite's operations are so small that threads wait for each other: on two busy
            # cores a step took 6 s with two threads and 0.3 s with one.
            environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def read_metrics(run: RunFiles) -> dict[str, Any]:
    """Returns the numbers that ``f3rm eval`` measured.

    Args:
        run: An evaluated run.

    Raises:
        F3rmError: If the file cannot be read.
    """
    try:
        found = json.loads(run.metrics.read_text(encoding="utf-8"))
        return {**found, "psnr": float(found["psnr"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = (
            f"{str(run.metrics)!r} is not as f3rm eval wrote it: {error!r}. "
            "Run the demo again with --force."
        )
        raise F3rmError(msg) from error


def closing_words(run: RunFiles, metrics: Mapping[str, Any], *, device: str) -> str:
    """Returns the text that the demo prints last: files, numbers, and commands to continue with.

    Args:
        run: The trained run.
        metrics: The evaluation's numbers.
        device: ``cpu`` or ``cuda``.
    """
    measured = [
        f"  {label.ljust(46)} {metrics[key]:.3f}"
        for key, label in _SHOWN
        if isinstance(metrics.get(key), int | float)
    ]
    video = run.out / "pca.mp4"
    poses = "ns-process-data images --matching-method exhaustive --data PHOTOS --output-dir"
    train = "ns-train f3rm"
    if device == "cpu":
        poses = poses.replace("images", "images --no-gpu")
        train = f"ns-train {METHOD} --machine.device-type cpu"
    return "\n".join(
        [
            "",
            f"Look at:  {shown_path(run.page)}",
            f"The run:  {shown_path(run.config)}",
            f"Numbers:  {shown_path(run.metrics)}, on views that it was not trained on:",
            *measured,
            "",
            *next_commands(run.config, pictures=run.pictures, video=video, device=device),
            "# Do the same with your own photographs (ns-process-data needs COLMAP):",
            f"{poses} datasets/mine",
            "f3rm demo --data datasets/mine --feature-type CLIP --queries plant",
            f"{train} --data datasets/mine --pipeline.datamanager.feature-type DINOCLIP",
        ]
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
