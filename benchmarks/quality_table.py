"""The quality of the feature field on generated scenes, over several seeds, as tables.

``python benchmarks/quality_table.py --scenes tabletop room --seeds 0 1 2 --out outputs/quality``
makes each scene, trains f3rm-lite on it and plain Nerfacto with the same sizes, rays and seed, and
runs the evaluation of ``f3rm eval``. What is finished is kept: the same call goes on where it
stopped. ``--set pipeline.model.feat_max_res=128`` varies one thing.
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel
from quality import make_config

from f3rm.compat import lazy_lpips
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.evaluation.query_scores import mean_of
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.scenes import SceneSettings, make_scene, model_options

ROWS = {
    "localisation": "localisation",
    "teacher_localisation": "its 2D teacher's",
    "localisation_mask": "localisation on the object itself",
    "teacher_localisation_mask": "its 2D teacher's",
    "miou": "mIoU, relevancy > 0.5",
    "teacher_miou": "its 2D teacher's",
    "miou_ratio": "field's / teacher's",
    "miou_minmax": "mIoU by LangSplat's rule",
    "teacher_miou_minmax": "its 2D teacher's",
    "average_precision": "average precision",
    "teacher_average_precision": "its 2D teacher's",
    "present_max_relevancy": "highest relevancy of present phrases, mean",
    "absent_max_relevancy": "of absent ones",
    "presence_auroc": "present above absent (AUROC)",
    "feature_cosine": "cosine on held-out views",
    "feature_cosine_constant": "the best constant's",
    "feature_cosine_same_points": "cosine, points that other views see too",
    "feature_cosine_teacher_mean": "the multi-view mean's, same points",
    "feature_cosine_ratio": "field's / multi-view mean's",
    "consistency": "the same point from several views",
    "consistency_teacher": "its 2D teacher's",
    "point_accuracy": "point accuracy",
    "find_recall": "found: recall",
    "find_precision": "precision",
    "find_box_iou": "box IoU",
    "find_centre_error": "centre error, m",
    "not_here_recall": '"not here": recall',
    "not_here_precision": "precision",
    "psnr": "PSNR",
    "nerfacto_psnr": "plain Nerfacto's",
}
"""What a table shows, and what it is called."""


@dataclass(frozen=True)
class Job:
    """One scene and seed, and how it is trained on.

    Attributes:
        kind: The kind of scene.
        seed: Draws the scene; training has a seed of its own.
        views: Photographs.
        size: Height and width of a photograph.
        feature_type: What is distilled.
        weights: Weights by type.
        steps: Training steps.
        overrides: ``NAME=VALUE`` changes of the training configuration.
        nerfacto: Whether plain Nerfacto is trained too.
        device: ``cpu`` or ``cuda``.
    """

    kind: SceneKind
    seed: int
    views: int
    size: tuple[int, int]
    feature_type: str
    weights: tuple[str, ...]
    steps: int
    overrides: tuple[str, ...]
    nerfacto: bool
    device: str

    @property
    def name(self) -> str:
        """Names the job's folder."""
        return f"{self.kind}-{self.seed}"


def finished(job: Job, out: Path) -> dict[str, Any] | None:
    """Returns what an earlier call measured, or None.

    Raises:
        ValueError: If it was measured with other settings.
    """
    record, result = out / job.name / "job.json", out / job.name / "eval.json"
    if record.is_file() and json.loads(record.read_text()) != _plain(job):
        msg = f"{record.parent} holds the same scene with other settings; choose another --out."
        raise ValueError(msg)
    return json.loads(result.read_text()) if result.is_file() else None


def _plain(job: Job) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(job)))


def run_job(job: Job, out: Path, datasets: Path) -> dict[str, Any]:
    """Makes, trains and evaluates; a training that is finished is used again."""
    folder = out / job.name
    (folder / "job.json").write_text(json.dumps(_plain(job), indent=2))
    height, width = job.size
    data = datasets / f"{job.name}-{job.views}x{height}x{width}"
    make_scene(data, job.kind, SceneSettings(job.seed, job.views, height, width))
    field = train(job, data, folder, features=True)
    plain = train(job, data, folder, features=False) if job.nerfacto else None
    found = evaluate_run(field, nerfacto=plain, pictures=folder / "pictures", device=job.device)
    found.write_json(folder / "eval.json")
    return found.to_dict()


def train(job: Job, data: Path, folder: Path, *, features: bool) -> Path:
    """Trains f3rm-lite or plain Nerfacto unless that is done; returns its config.yml."""
    config = configure(job, data, folder, features=features)
    path = config.get_base_dir() / "config.yml"
    last = config.get_checkpoint_dir() / f"step-{job.steps - 1:09d}.ckpt"
    if path.is_file() and last.is_file():
        return path
    config.save_config()
    seed_everything(config.machine.seed)
    with lazy_lpips():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        use_fast_encodings(trainer.pipeline.model)  # plain Nerfacto too: the same results, sooner
        trainer.train()
    return path


def seed_everything(seed: int) -> None:
    """Seeds all random numbers of training, as ns-train does."""
    for start in (random.seed, np.random.seed, torch.manual_seed):
        start(seed)


def configure(job: Job, data: Path, folder: Path, *, features: bool) -> TrainerConfig:
    """Returns the configuration of f3rm-lite, or of plain Nerfacto with the same sizes."""
    arguments = argparse.Namespace(
        data=data,
        downscale_factor=1,
        feature_type=job.feature_type,
        weights=job.weights,
        device=job.device,
        steps=job.steps,
        output=folder,
    )
    config = make_config(arguments, features=features)
    config.timestamp = "run"
    if not features:
        config.pipeline.model._target = NerfactoModel  # noqa: SLF001 - a class that any run can name
    planes = dict(zip(*[iter(model_options(data))] * 2, strict=True))
    for name, value in planes.items():
        _change(config, f"{name.removeprefix('--').replace('-', '_')}={value}")
    for override in job.overrides:
        _change(config, override, must_exist=features)
    return config


def _change(config: TrainerConfig, override: str, *, must_exist: bool = True) -> None:
    """Sets a field of a configuration by its path; plain Nerfacto lacks the field's own ones."""
    path, _, value = override.partition("=")
    *parents, name = path.split(".")
    part = functools.reduce(_part, parents, config)
    if hasattr(part, name):
        setattr(part, name, yaml.safe_load(value))
    elif must_exist:
        msg = f"--set must name a field of the configuration, got {path!r}."
        raise ValueError(msg)


def _part(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)


def _worker(job: Job, out: Path, datasets: Path) -> dict[str, Any]:
    """Runs a job with everything that it prints in its folder's log."""
    (out / job.name).mkdir(parents=True, exist_ok=True)
    log = os.open(out / job.name / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    return run_job(job, out, datasets)


def run_all(jobs: Sequence[Job], arguments: argparse.Namespace) -> dict[Job, dict[str, Any]]:
    """Runs several jobs at once, each with one thread; reports each that is done."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when a worker starts
    out = Path(arguments.out).absolute()
    datasets = Path(arguments.datasets).absolute() if arguments.datasets else out / "datasets"
    found = {job: finished(job, out) for job in jobs}
    results = {job: numbers for job, numbers in found.items() if numbers is not None}
    missing = [job for job in jobs if job not in results]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        arguments.jobs, mp_context=context, initializer=_start_worker, initargs=(1,)
    ) as pool:
        futures = {pool.submit(_worker, job, out, datasets): job for job in missing}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            done = f"{len(results)}/{len(jobs)} {job.name}"
            print(f"{done}: mIoU {_shown(results[job]['miou'])}", file=sys.stderr, flush=True)
    return {job: results[job] for job in jobs}


def markdown(results: dict[Job, dict[str, Any]]) -> str:
    """Returns a table per kind of scene: a column per seed, and the mean."""
    tables: list[str] = []
    for kind in dict.fromkeys(job.kind for job in results):
        found = {job.seed: numbers for job, numbers in results.items() if job.kind == kind}
        lines = [
            f"| {kind} | {' | '.join(f'seed {seed}' for seed in found)} | mean |",
            f"|---{'|---' * len(found)}|---|",
        ]
        for name, label in ROWS.items():
            values = [_value(numbers[name]) for numbers in found.values()]
            cells = map(_shown, [*values, mean_of(values)])
            lines.append(f"| {label} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _value(found: float | dict[str, float | None] | None) -> float | None:
    """Returns a number, or the mean of a distribution."""
    return found["mean"] if isinstance(found, dict) else found


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Parses the command line, runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = get_args(SceneKind)
    parser.add_argument("--scenes", nargs="+", default=["tabletop", "room"], choices=kinds)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default="outputs/quality_table", help="folder for everything")
    parser.add_argument("--datasets", help="folder of the scenes, to share them between calls")
    parser.add_argument("--feature-type", default="TINYCLIP")
    parser.add_argument("--weights", nargs="*", default=[], help="CLIP=PATH")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--size", nargs=2, type=int, default=[360, 480], help="height width")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE of the configuration")
    parser.add_argument("--no-nerfacto", action="store_true", help="leave plain Nerfacto out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    template = Job(
        kind="tabletop",
        seed=0,
        views=arguments.views,
        size=(arguments.size[0], arguments.size[1]),
        feature_type=arguments.feature_type,
        weights=tuple(arguments.weights),
        steps=arguments.steps,
        overrides=tuple(arguments.set),
        nerfacto=not arguments.no_nerfacto,
        device=arguments.device,
    )
    jobs = [
        Job(**{**asdict(template), "kind": kind, "seed": seed})
        for kind in arguments.scenes
        for seed in arguments.seeds
    ]
    results = run_all(jobs, arguments)
    print(markdown(results))
    if arguments.json:
        print(json.dumps({job.name: found for job, found in results.items()}))


if __name__ == "__main__":
    main()
