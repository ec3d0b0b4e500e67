"""Evaluates a run or a splat on its held-out views: everything that ``f3rm eval`` reports.

``docs/evaluation.md`` defines each number. Without ground truth, language or feature cache the
numbers that need them are None, and a note says why.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from f3rm import __version__
from f3rm.errors import DatasetError, F3rmError, StrPath
from f3rm.evaluation.drawing import Drawing
from f3rm.evaluation.finding import ROUND_SHAPES, score_finding
from f3rm.evaluation.held_out import score_views
from f3rm.evaluation.means import FOUND_IOU
from f3rm.evaluation.metrics import RELEVANCY_THRESHOLD
from f3rm.evaluation.multiview import DEPTH_TOLERANCE
from f3rm.evaluation.predictions import psnr
from f3rm.evaluation.query_scores import MIN_PIXELS, mean_of
from f3rm.evaluation.report import Evaluation, collect_rows, head_numbers, summarise
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.surface_scores import NUM_POINTS, SurfaceScores, score_surfaces
from f3rm.evaluation.vocabulary import Language, Speaker, open_language
from f3rm.language.heads import choose_head, scales_of, translated
from f3rm.language.relevancy import CANONICAL_NEGATIVES, TEMPERATURE, Rule
from f3rm.language.text_map import TextMap
from f3rm.scene.opening import load
from f3rm.scene.run_loading import LoadedRun, RunError, check_same_views, load_run
from f3rm.scene.scene import Scene
from f3rm.scene.splat.loading import LoadedSplat
from f3rm.store.device import resolve_device
from f3rm.store.items import dataset_root
from f3rm.store.progress import track
from f3rm.synthetic.truth import SceneTruth


def evaluate_run(  # noqa: PLR0913 - one call with every choice, by keyword
    config: StrPath,
    *,
    data: StrPath | None = None,
    nerfacto: StrPath | None = None,
    head: str | None = None,
    language: StrPath | None = None,
    rule: Rule | None = None,
    pictures: StrPath | None = None,
    queries: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    show_progress: bool = False,
) -> Evaluation:
    """Evaluates a run of f3rm, or a splat, on its held-out views.

    Args:
        config: The run's ``config.yml``; or a splat, as a ``.ply`` or a splatfacto run.
        data: The dataset's folder, if it was moved since training; of a ``.ply`` always.
        nerfacto: ``config.yml`` of a plain Nerfacto run on the same dataset, for its PSNR.
        head: The head to ask; None takes the first with a text tower.
        language: Name or file of the language that it is asked in; None for the head's own.
        rule: How phrases are scored, of the teacher too; None for LERF's rule, which others measure
            by, in pictures and at points, and for that of :meth:`Scene.find` where it finds.
        pictures: Folder for pictures and a page; None draws none.
        queries: Phrases that the page asks; if empty, names of objects in the views that it shows.
        seed: Seed of all random draws.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        show_progress: Whether bars count views.

    Raises:
        F3rmError: If the run, its dataset, the head, the device or the folder cannot be used.
    """
    started = time.perf_counter()
    place = resolve_device(device)
    scene = load(os.fspath(config), data=None if data is None else os.fspath(data), device=device)
    subject = Subject.of(scene)
    run = subject.run
    _check_held_out(subject)
    if nerfacto is not None and isinstance(run, LoadedSplat):
        raise F3rmError("--nerfacto is compared with runs of f3rm, got a splat. Leave it out.")
    notes = [] if subject.stores else ["No valid feature cache: nothing about the teacher."]
    truth = _read_truth(subject.run, notes)
    scene.language = language
    speaker = _speaker(scene, head, rule or "lerf")
    asked = _open_language(speaker, truth, notes)
    drawing = None
    if pictures is not None:
        vocabulary = asked.vocabulary if asked else None
        drawing = Drawing.open(
            pictures, subject, truth=truth, vocabulary=vocabulary, speaker=speaker, queries=queries
        )
    watch = drawing.add if drawing else None
    scores = score_views(
        subject, language=asked, seed=seed, show_progress=show_progress, watch=watch
    )
    surfaces, finding = SurfaceScores(), None
    if truth is not None:
        surfaces = score_surfaces(subject, truth, asked, seed=seed, show_progress=show_progress)
    if truth is not None and asked is not None:
        finding = score_finding(scene, truth, head, rule)
    heads = head_numbers(scores, surfaces, list(subject.source.heads))
    rows = collect_rows(scores, surfaces, finding, subject.held_out.names)
    plain = None
    if nerfacto is not None and not isinstance(run, LoadedSplat):
        plain = nerfacto_psnr(run, nerfacto, device=place, show_progress=show_progress)
    numbers = {**summarise(rows, surfaces, heads), "nerfacto_psnr": plain}
    numbers["seconds"] = round(time.perf_counter() - started, 1)
    context = _context(subject, truth, asked, scene.language)
    context["settings"] |= {"rule": rule or "lerf", "seed": seed, "device": str(place)}
    found = Evaluation(numbers, rows, heads, context, tuple(notes))
    if drawing:
        drawing.finish(subject, found, device=place.type)
    return found


def _check_held_out(subject: Subject) -> None:
    if not subject.held_out.names:
        msg = (
            f"{str(subject.run.config_path)!r} must hold out at least one photograph, but "
            f"all {len(subject.train.names)} were trained on. Train with a smaller "
            "--train-split-fraction."
        )
        raise RunError(msg)


def _read_truth(run: LoadedRun | LoadedSplat, notes: list[str]) -> SceneTruth | None:
    try:
        return SceneTruth.read(dataset_root(run.data))
    except DatasetError as error:
        notes.append(f"No ground truth, so no queries are scored. {error}")
        return None


def _speaker(scene: Scene, head: str | None, rule: Rule) -> Speaker | None:
    known = translated(scene.source.heads, scene.language)
    spec = choose_head(known, head)
    if spec is None:
        return None
    against = partial(scene.questioner.against, rule)
    return Speaker(scales_of(known, spec, head), lambda: scene.cells.hidden, against)


def _open_language(
    speaker: Speaker | None, truth: SceneTruth | None, notes: list[str]
) -> Language | None:
    if speaker is None:
        notes.append("The field has no language: train with CLIP to ask it in words.")
    if speaker is None or truth is None or not truth.queries:
        return None
    asked = open_language(speaker, truth)
    if len(speaker.heads) > 1:
        counts = Counter(asked.heads[: len(asked.vocabulary.queries)])
        shown = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        notes.append(f"Queries answered by each scale: {shown}.")
    return asked


def nerfacto_psnr(
    run: LoadedRun, config: StrPath, *, device: torch.device, show_progress: bool = False
) -> float | None:
    """Returns the mean PSNR in dB of another run on the views that a run holds out.

    Args:
        run: The run.
        config: The other run's ``config.yml``; it is opened with the first run's dataset.
        device: Device of the other model.
        show_progress: Whether a bar counts views.

    Raises:
        RunError: If the other run cannot be opened or holds out other photographs.
    """
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
    subject: Subject,
    truth: SceneTruth | None,
    asked: Language | None,
    language: TextMap | None,
) -> dict[str, Any]:
    return {
        "versions": {
            "f3rm": __version__,
            "torch": torch.__version__,
            "nerfstudio": version("nerfstudio"),
        },
        "settings": {
            "queries_head": asked.heads[0] if asked else None,
            "queries_language": language.name if language else "",
            "temperature": TEMPERATURE,
            "canonical_phrases": list(CANONICAL_NEGATIVES),
            "mask_rule": f"relevancy > {RELEVANCY_THRESHOLD}",
            "min_pixels": MIN_PIXELS,
            "found_box_iou": FOUND_IOU,
            "best_yaw_shapes": list(ROUND_SHAPES),
            "surface_points": NUM_POINTS,
            "depth_tolerance": DEPTH_TOLERANCE,
            "teacher_sampling": "bilinear",
        },
        "run": subject.about(),
        "dataset": {
            "folder": str(subject.run.data),
            "kind": truth.kind if truth else None,
            "seed": truth.seed if truth else None,
            "training_views": len(subject.train.names),
            "held_out_views": list(subject.held_out.names),
        },
    }
