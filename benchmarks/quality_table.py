"""The quality of the feature field on generated scenes, over several seeds, as tables.

``python benchmarks/quality_table.py --scenes tabletop room --seeds 0 1 2 --out outputs/quality``
makes each scene, trains f3rm-lite on it and plain Nerfacto with the same sizes, rays and seed, and
runs the evaluation of ``f3rm eval``. Means are pooled over seeds, with the number of values that
each is over and a bootstrap interval. What is finished is kept: the same call goes on where it
stopped. ``--set pipeline.model.feat_max_res=128`` varies one thing; ``--find`` asks the trained
runs again for every object and absent prompt, and times the questions.
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import sys
import time
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

from f3rm import load
from f3rm.compat import lazy_lpips
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.evaluation.finding import score_finding
from f3rm.evaluation.means import ANSWERS, MEANS, mean_over
from f3rm.evaluation.prompts import absent_table, confusion
from f3rm.language.threshold import Certainty
from f3rm.networks.nerfacto_fast import use_fast_encodings
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.scenes import SceneSettings, make_scene, model_options
from f3rm.synthetic.truth import SceneTruth

ROWS = {
    "localisation": "localisation: best pixel in the object's box",
    "teacher_localisation": "its 2D teacher's",
    "localisation_mask": "localisation: best pixel on the object's mask",
    "teacher_localisation_mask": "its 2D teacher's",
    "miou": "mIoU, relevancy > 0.5",
    "teacher_miou": "its 2D teacher's",
    "miou_ratio": "field's / teacher's",
    "miou_minmax": "mIoU by LangSplat's rule",
    "teacher_miou_minmax": "its 2D teacher's",
    "average_precision": "average precision",
    "teacher_average_precision": "its 2D teacher's",
    "present_max_relevancy": "highest relevancy of a present prompt in a view",
    "absent_max_relevancy": "of an absent one",
    "presence_auroc": "present above absent (AUROC), in a view",
    "teacher_presence_auroc": "its 2D teacher's",
    "feature_cosine_bilinear": "cosine of rendered and extracted features, all pixels",
    "feature_cosine_constant": "the best constant's",
    "feature_cosine_same_points": "the same cosine, points that other views see too",
    "feature_cosine_teacher_mean": "the multi-view mean's, same points",
    "feature_cosine_ratio": "field's / multi-view mean's",
    "consistency": "rendered features of one point in several views (cosine)",
    "consistency_teacher": "its 2D teacher's",
    "point_accuracy": "surface points whose best label is true",
    "find_recall": "find: true objects with a box of IoU 0.25",
    "find_precision": "find: instances that are such a box",
    "find_box_iou": "find: box IoU, round shapes at their best yaw",
    "find_box_iou_ceiling": "of boxes around the true visible points",
    "find_centre_error": "find: centre error, m",
    "find_matched_iou": "find: box IoU of the objects that are found",
    "find_visible_iou": "find: box IoU of what views see",
    "first_seconds": "find: first question, s",
    "later_seconds": "find: a later one, s",
    "not_found_recall": "absent prompts without an instance",
    "not_found_precision": "absent prompts of those without an instance",
    "psnr": "PSNR of the colours, dB",
    "nerfacto_psnr": "of plain Nerfacto, same sizes, rays and seed",
}
"""What a table shows, and what it is called."""

POOLED = (
    "Pooled: all rows of all seeds, with 95 % of 2,000 draws of scenes and of their rows "
    "(queries with all their views, absent prompts, views)."
)


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


def begun(job: Job, out: Path) -> Path:
    """Returns a job's folder, with its settings in it."""
    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(_plain(job), indent=2))
    return folder


def _plain(job: Job) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(job)))


def run_job(job: Job, out: Path, datasets: Path) -> dict[str, Any]:
    """Makes, trains and evaluates; a training that is finished is used again."""
    folder = out / job.name
    height, width = job.size
    data = datasets / f"{job.name}-{job.views}x{height}x{width}"
    make_scene(data, job.kind, SceneSettings(job.seed, job.views, height, width))
    field = train(job, data, folder, features=True)
    plain = train(job, data, folder, features=False) if job.nerfacto else None
    found = evaluate_run(field, nerfacto=plain, pictures=folder / "pictures", device=job.device)
    found.write_json(folder / "eval.json")
    return found.to_dict()


def find_again(job: Job, out: Path, datasets: Path) -> dict[str, Any]:
    """Asks a trained run for everything and times it, without the rest of an evaluation."""
    height, width = job.size
    data = datasets / f"{job.name}-{job.views}x{height}x{width}"
    run = configure(job, data, out / job.name, features=True).get_base_dir()
    scene, truth = load(run, data=data, device=job.device), SceneTruth.read(data)
    seconds: list[float] = []
    for query in truth.queries:
        start = time.perf_counter()
        scene.find(query.text)
        seconds.append(time.perf_counter() - start)
    finding = score_finding(scene, truth, None)
    pairs = zip(truth.absent, finding.absent, strict=True)
    absent = [{"kind": prompt.kind, **row} for prompt, row in pairs]
    rows = {"queries": list(finding.queries), "absent": absent}
    means = {name: mean_over(name, [rows]) for name in ROWS if name in MEANS}
    numbers = {name: None if mean is None else mean.value for name, mean in means.items()}
    first, *later = seconds
    return {**rows, **numbers, "first_seconds": first, "later_seconds": float(np.median(later))}


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
        kind = type(part).__dataclass_fields__[name].type
        setattr(part, name, Path(value) if Path in get_args(kind) else yaml.safe_load(value))
    elif must_exist:
        msg = f"--set must name a field of the configuration, got {path!r}."
        raise ValueError(msg)


def _part(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)


def _worker(job: Job, out: Path, datasets: Path) -> dict[str, Any]:
    """Runs a job with everything that it prints in its folder's log."""
    log = os.open(begun(job, out) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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


def markdown(results: dict[Job, dict[str, Any]], *, only_means: bool = False) -> str:
    """Returns tables per kind of scene: means by seed and pooled, certainty, absent prompts."""
    tables: list[str] = []
    for kind in dict.fromkeys(job.kind for job in results):
        found = {job.seed: numbers for job, numbers in results.items() if job.kind == kind}
        tables += [means_table(kind, found), POOLED]
        if not only_means:
            tables += prompt_tables(kind, list(found.values()))
    return "\n\n".join(tables)


def means_table(kind: str, found: dict[int, dict[str, Any]]) -> str:
    """Returns a column per seed, the pooled mean, its interval, and what it is over."""
    lines = [*_heading([kind, *(f"seed {seed}" for seed in found), "pooled", "95 %", "over"])]
    for name, label in ROWS.items():
        if not any(name in numbers for numbers in found.values()):
            continue
        cells = [_shown(_value(numbers.get(name))) for numbers in found.values()]
        mean = mean_over(name, list(found.values()))
        if mean is None:
            cells += ["-", "", ""]
        else:
            cells += [_shown(mean.value), f"{_shown(mean.low)} to {_shown(mean.high)}"]
            cells.append(f"{mean.count} {mean.unit}")
        lines.append(_line([label, *cells]))
    return "\n".join(lines)


def prompt_tables(kind: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns certainty by truth, and absent prompts by kind and shared words, of all seeds."""
    queries, absent = ([row for one in found for row in one[key]] for key in ("queries", "absent"))
    tables: list[str] = []
    if certainty := confusion(queries, absent):
        lines = _heading([f"{kind}: certainty of find", *get_args(Certainty)])
        lines += [_line([truth, *counts.values()]) for truth, counts in certainty.items()]
        tables.append("\n".join(lines))
    if rows := absent_table(queries, absent):
        columns = [f"{who}{name}" for name in ABSENT_COLUMNS for who in ANSWERS]
        lines = _heading([f"{kind}: absent prompts", *ABSENT_HEADS])
        for row in rows:
            cells = [row["shared_words"], row["prompts"], *(_shown(row[name]) for name in columns)]
            lines.append(_line([row["kind"], *cells]))
        tables.append("\n".join(lines))
    return tables


ABSENT_COLUMNS = ("accepted", "max_relevancy", "auroc")
ABSENT_HEADS = (
    *("shared words", "prompts", "above 0.5 in a view", "teacher's"),
    *("highest relevancy", "teacher's", "AUROC to present", "teacher's"),
)


def _heading(cells: Sequence[object]) -> list[str]:
    return [_line(cells), f"|{'---|' * len(cells)}"]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


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
    parser.add_argument(
        "--find", action="store_true", help="only ask for things, in runs that are trained already"
    )
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
    if arguments.find:
        datasets = Path(arguments.datasets or Path(arguments.out) / "datasets")
        results = {job: find_again(job, Path(arguments.out), datasets) for job in jobs}
    else:
        results = run_all(jobs, arguments)
    print(markdown(results, only_means=arguments.find))
    if arguments.json:
        print(json.dumps({job.name: found for job, found in results.items()}))


if __name__ == "__main__":
    main()
