"""How long training takes to be good: the main knobs of f3rm-lite, one at a time.

``python benchmarks/time_to_quality.py --out outputs/time_to_quality`` trains on a tabletop, once
per variant. Now and then the clock stops, and the held-out views are rendered at a sixth of their
size and scored: mean cosine to the teacher's features, and mIoU of all queries under the fixed rule
of ``f3rm eval``. The time of a variant is that of its first measurement from which on it stays at
95 % of what the defaults reach in the end; on a CPU the process's own time with one thread, on a
GPU the wall's. What is finished is kept: the same call goes on where it stopped.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from judge import Judge
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from quality_table import Job, configure, seed_everything

from f3rm.compat import lazy_lpips
from f3rm.feature_datamanager import FeatureDataManager
from f3rm.model import FeatureFieldModel
from f3rm.networks import fast
from f3rm.store.progress import track
from f3rm.synthetic.scenes import SceneSettings, make_scene

DEFAULTS = "defaults"
_MODEL, _MANAGER = "pipeline.model", "pipeline.datamanager"
_FIELD = "optimizers.feature_field"
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULTS: (),
    "512 rays": (f"{_MANAGER}.train_num_rays_per_batch=512",),
    "2048 rays": (f"{_MANAGER}.train_num_rays_per_batch=2048",),
    "12 samples": (f"{_MODEL}.num_nerf_samples_per_ray=12",),
    "24 samples": (f"{_MODEL}.num_nerf_samples_per_ray=24",),
    "48 samples": (f"{_MODEL}.num_nerf_samples_per_ray=48",),
    "4 feature levels": (f"{_MODEL}.feat_num_levels=4",),
    "10 feature levels": (f"{_MODEL}.feat_num_levels=10",),
    "finest level 64": (f"{_MODEL}.feat_max_res=64",),
    "finest level 192": (f"{_MODEL}.feat_max_res=192",),
    "no positional encoding": (f"{_MODEL}.feat_use_pe=False",),
    "feature rate 2e-2": (f"{_FIELD}.optimizer.lr=0.02",),
    "feature rate 5e-3": (f"{_FIELD}.optimizer.lr=0.005",),
    "24 samples and feature rate 5e-3": (
        f"{_MODEL}.num_nerf_samples_per_ray=24",
        f"{_FIELD}.optimizer.lr=0.005",
    ),
    "all rates fall by the last step": (
        *(
            f"optimizers.{group}.scheduler.max_steps={{steps}}"
            for group in ("proposal_networks", "fields", "feature_field")
        ),
    ),
    "feature loss 1e-2": (f"{_MODEL}.feat_loss_weight=0.01",),
    "features move geometry": (f"{_MODEL}.feat_geometry_grad=full",),
}
"""What is changed in f3rm-lite's configuration, by name."""
SHARE = 0.95


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        step: After so many steps.
        seconds: Training time so far.
        cosine: To the teacher's features on held-out views.
        miou: Of the queries on held-out views.
        psnr: Of held-out views in dB.
    """

    step: int
    seconds: float
    cosine: float
    miou: float
    psnr: float


def train(job: Job, data: Path, folder: Path, every: int) -> list[Point]:
    """Trains and measures every so many steps."""
    config = configure(job, data, folder, features=True)
    config.steps_per_save = job.steps + 1
    seed_everything(config.machine.seed)
    with lazy_lpips():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        manager, model = trainer.pipeline.datamanager, trainer.pipeline.model
        if not (isinstance(manager, FeatureDataManager) and isinstance(model, FeatureFieldModel)):
            raise TypeError(type(model))
        judge = Judge(data, manager, model)
        clock = _clock(job.device)
        points: list[Point] = []
        seconds = 0.0
        for first in range(0, job.steps, every):
            began = clock()
            _take_steps(trainer, range(first, min(first + every, job.steps)))
            seconds += clock() - began
            step = min(first + every, job.steps)
            points.append(Point(step, seconds, *judge.measure()))
            print(points[-1], flush=True)
    return points


def _take_steps(trainer: Trainer, steps: range) -> None:
    """Does what Nerfstudio's training loop does in these steps, without saving and logging."""
    trainer.pipeline.train()
    for step in steps:
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def seconds_to(points: Sequence[Point], value: Callable[[Point], float], goal: float) -> float:
    """Returns the time of the first point from which on all reach a goal; NaN if the last fails."""
    reached = math.nan
    for point in reversed(points):
        if value(point) < goal:
            break
        reached = point.seconds
    return reached


def markdown(found: dict[str, list[Point]]) -> str:
    """Returns the table: times in units of what the defaults need, and what is reached."""
    last = found[DEFAULTS][-1]
    goals = ((lambda p: p.cosine, SHARE * last.cosine), (lambda p: p.miou, SHARE * last.miou))
    units = [seconds_to(found[DEFAULTS], value, goal) for value, goal in goals]
    lines = [
        "| | a step | time to cosine | time to mIoU | cosine | mIoU | PSNR |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in found.items():
        end = points[-1]
        step = end.seconds / end.step / (last.seconds / last.step)
        times = [
            seconds_to(points, value, goal) / unit
            for (value, goal), unit in zip(goals, units, strict=True)
        ]
        ends = f"{end.cosine:.3f} | {end.miou:.3f} | {end.psnr:.2f}"
        lines.append(f"| {name} | {step:.2f} | {_times(times[0])} | {_times(times[1])} | {ends} |")
    first, second = (
        next(point.step for point in found[DEFAULTS] if point.seconds == unit) for unit in units
    )
    lines += ["", f"The defaults need {first} steps for the cosine and {second} for mIoU."]
    return "\n".join(lines)


def _times(value: float) -> str:
    return "never" if math.isnan(value) else f"{value:.2f}"


def _compile_kernels() -> None:
    """Has machine code made before a clock runs; once per process."""
    one = np.ones(1, np.float32)
    levels = fast.Levels(one, one, np.ones((1, 3), np.int64), np.full(1, 7), np.zeros(1, np.int64))
    for features in (2, 4, 8):
        table = torch.zeros(8, features, requires_grad=True)
        if fast.is_fast(table, table):
            fast.interpolate(torch.rand(4, 3), table, levels).sum().backward()


def _worker(job: Job, every: int, data: Path, folder: Path) -> list[dict[str, float]]:
    """Trains one variant with everything that it prints in its folder's log."""
    torch.set_num_threads(1)
    _compile_kernels()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    points = [asdict(point) for point in train(job, data, folder, every)]
    aside = folder / "points.new"
    aside.write_text(json.dumps(points, indent=1))
    aside.rename(folder / "points.json")
    return points


def run_all(arguments: argparse.Namespace) -> dict[str, list[Point]]:
    """Trains the variants that are not finished, and returns the points of all."""
    out = Path(arguments.out).absolute()
    data = out / f"tabletop-{arguments.seed}"
    make_scene(data, "tabletop", SceneSettings(arguments.seed, arguments.views))
    jobs = {name: _job(name, arguments) for name in (DEFAULTS, *arguments.variants)}
    folders = {name: out / name.replace(" ", "-") for name in jobs}
    missing = [name for name, folder in folders.items() if not (folder / "points.json").is_file()]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when a worker starts
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        futures = {
            pool.submit(_worker, jobs[name], arguments.every, data, folders[name]): name
            for name in missing
        }
        done = as_completed(futures)
        for future in track(done, total=len(missing), label="Training", show=True, unit="variants"):
            future.result()
    return {
        name: [Point(**point) for point in json.loads((folder / "points.json").read_text())]
        for name, folder in folders.items()
    }


def _job(name: str, arguments: argparse.Namespace) -> Job:
    return Job(
        kind="tabletop",
        seed=arguments.seed,
        views=arguments.views,
        size=(360, 480),
        feature_type=arguments.feature_type,
        weights=(),
        steps=arguments.steps,
        overrides=tuple(each.format(steps=arguments.steps) for each in VARIANTS[name]),
        nerfacto=False,
        device=arguments.device,
    )


def main() -> None:
    """Parses the command line, runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [name for name in VARIANTS if name != DEFAULTS]
    parser.add_argument("--variants", nargs="*", default=names, choices=names)
    parser.add_argument("--out", default="outputs/time_to_quality", help="folder for everything")
    parser.add_argument("--feature-type", default="TINYCLIP")
    parser.add_argument("--seed", type=int, default=0, help="draws the scene")
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    found = run_all(arguments)
    print(markdown(found))
    if arguments.json:
        print(json.dumps({name: [asdict(p) for p in points] for name, points in found.items()}))


if __name__ == "__main__":
    main()
