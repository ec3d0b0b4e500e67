"""Evaluates a trained run on its held-out views: everything that ``f3rm eval`` reports.

What each number means stands in ``docs/evaluation.md``. A dataset without ground truth, a field
without language and a run without its feature cache still give what can be measured; the rest is
None, and a note says why.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from f3rm import __version__
from f3rm.errors import DatasetError, StrPath, as_path
from f3rm.evaluation.finding import FOUND_IOU, score_finding
from f3rm.evaluation.held_out import HeldOutScores, score_views
from f3rm.evaluation.metrics import RELEVANCY_THRESHOLD
from f3rm.evaluation.multiview import DEPTH_TOLERANCE
from f3rm.evaluation.pictures import PictureFolder
from f3rm.evaluation.predictions import psnr
from f3rm.evaluation.query_scores import MIN_PIXELS, mean_of
from f3rm.evaluation.report import Evaluation
from f3rm.evaluation.summary import (
    find_summary,
    head_numbers,
    head_summary,
    query_rows,
    query_summary,
)
from f3rm.evaluation.surfaces import NUM_POINTS, SurfaceScores, score_surfaces
from f3rm.evaluation.vocabulary import Language, open_language
from f3rm.language.questions import choose_head
from f3rm.language.relevancy import CANONICAL_NEGATIVES, TEMPERATURE
from f3rm.model import FeatureFieldModel
from f3rm.scene.run_loading import LoadedRun, RunError, check_same_views, field_model, load_run
from f3rm.scene.scene import Scene
from f3rm.store.device import resolve_device
from f3rm.store.items import dataset_root
from f3rm.store.progress import track
from f3rm.synthetic.truth import SceneTruth


def evaluate_run(
    config: StrPath,
    *,
    data: StrPath | None = None,
    nerfacto: StrPath | None = None,
    head: str | None = None,
    pictures: StrPath | None = None,
    seed: int = 0,
    device: str = "auto",
    show_progress: bool = False,
) -> Evaluation:
    """Evaluates a run of f3rm on its held-out views.

    Args:
        config: The run's ``config.yml``.
        data: The dataset's place, if not the one that the run was trained from.
        nerfacto: ``config.yml`` of a plain Nerfacto run on the same dataset, for its PSNR.
        head: The head that is asked the queries; None takes the first with a text tower.
        pictures: Folder for pictures; None draws none.
        seed: Seed of all random draws.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        show_progress: Whether bars count views.

    Raises:
        F3rmError: If the run, its dataset, the head or the device cannot be used.
    """
    config = as_path(config)
    data = None if data is None else as_path(data)
    nerfacto = None if nerfacto is None else as_path(nerfacto)
    pictures = None if pictures is None else as_path(pictures)
    started = time.perf_counter()
    place = resolve_device(device)
    run = load_run(config, data=data, device=place)
    _check_held_out(run)
    model = field_model(run)
    notes = [] if run.stores else ["No valid feature cache: nothing about the teacher."]
    truth = _read_truth(run, notes)
    language = _open_language(model, truth, head, notes)
    shown = {"seed": seed, "show_progress": show_progress}
    scores = _look(run, model, language, pictures, **shown)
    surfaces, finding = SurfaceScores(), None
    if truth is not None:
        surfaces = score_surfaces(run, model, truth, language, **shown)
    if truth is not None and language is not None:
        finding = score_finding(Scene(run), truth, language.head)
    heads = head_numbers(scores, surfaces, list(model.heads))
    plain = None
    if nerfacto is not None:
        plain = nerfacto_psnr(run, nerfacto, device=place, show_progress=show_progress)
    numbers = {
        **query_summary(scores, surfaces),
        **find_summary(finding),
        **head_summary(heads),
        "psnr": mean_of(scores.psnr),
        "nerfacto_psnr": plain,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return Evaluation(
        numbers=numbers,
        queries=query_rows(scores, surfaces),
        heads=heads,
        context=_context(run, truth, language, seed=seed, device=place),
        notes=tuple(notes),
    )


def _check_held_out(run: LoadedRun) -> None:
    if not run.held_out.names:
        msg = (
            f"evaluate_run: {str(run.config_path)!r} must hold out at least one photograph, but "
            f"all {len(run.train.names)} were trained on. Train with a smaller "
            "--train-split-fraction."
        )
        raise RunError(msg)


def _look(
    run: LoadedRun,
    model: FeatureFieldModel,
    language: Language | None,
    pictures: Path | None,
    **shown: Any,
) -> HeldOutScores:
    folder = PictureFolder(pictures, language.vocabulary) if pictures and language else None
    see = folder.add if folder else None
    scores = score_views(run, model, language=language, see=see, **shown)
    if folder:
        folder.write_overview()
    return scores


def _read_truth(run: LoadedRun, notes: list[str]) -> SceneTruth | None:
    try:
        return SceneTruth.read(dataset_root(run.data))
    except DatasetError as error:
        notes.append(f"No ground truth, so no queries are scored. {error}")
        return None


def _open_language(
    model: FeatureFieldModel, truth: SceneTruth | None, head: str | None, notes: list[str]
) -> Language | None:
    spec = choose_head(model.heads, head)
    if spec is None:
        notes.append("The field has no language: train with CLIP to ask it in words.")
    if spec is None or truth is None or not truth.queries:
        return None
    return open_language(model.heads[spec.name], truth)


def nerfacto_psnr(
    run: LoadedRun, config: StrPath, *, device: torch.device, show_progress: bool = False
) -> float | None:
    """Returns the mean PSNR of another run on the views that a run holds out, in dB.

    Args:
        run: The run.
        config: The other run's ``config.yml``; its dataset is taken to be the same.
        device: Where the other model goes.
        show_progress: Whether a bar counts views.

    Raises:
        RunError: If the other run cannot be opened or holds out other photographs.
    """
    config = as_path(config)
    other = load_run(config, data=run.data, device=device)
    check_same_views(run, other)
    values: list[float] = []
    views = range(len(other.held_out.names))
    for index in track(views, total=len(views), label="Nerfacto's views", show=show_progress):
        camera, batch = other.picture(index)
        rendered = other.model.get_outputs_for_camera(camera.to(device))
        values.append(psnr(other.model, rendered, batch["image"]))
    return mean_of(values)


def _context(
    run: LoadedRun,
    truth: SceneTruth | None,
    language: Language | None,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "versions": {
            "f3rm": __version__,
            "torch": torch.__version__,
            "nerfstudio": version("nerfstudio"),
        },
        "settings": {
            "seed": seed,
            "device": str(device),
            "queries_head": language.head if language else None,
            "temperature": TEMPERATURE,
            "canonical_phrases": list(CANONICAL_NEGATIVES),
            "mask_rule": f"relevancy > {RELEVANCY_THRESHOLD}",
            "min_pixels": MIN_PIXELS,
            "found_box_iou": FOUND_IOU,
            "surface_points": NUM_POINTS,
            "depth_tolerance": DEPTH_TOLERANCE,
            "teacher_sampling": "bilinear",
        },
        "run": {
            "config": str(run.config_path),
            "method": run.config.method_name,
            "step": run.step,
            "training_seed": run.config.machine.seed,
        },
        "dataset": {
            "folder": str(run.data),
            "kind": truth.kind if truth else None,
            "seed": truth.seed if truth else None,
            "training_views": len(run.train.names),
            "held_out_views": list(run.held_out.names),
        },
    }
