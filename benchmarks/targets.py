"""What the targets of a field are worth: scales, and means over segments.

``python benchmarks/targets.py DATA...`` asks TINYCLIP's features of some views of generated scenes
for their queries and prints a row per kind of target, means over scenes: mIoU of relevancy above
0.5, localisation, and boundary IoU (LERF-Mask's: the mask less its erosion by 2 % of the diagonal).
Of several scales the best one answers each prompt in each view, as in LERF, or they are averaged.
Segments are the true masks of objects, or superpixels of the photograph.

``--fields OUT`` trains f3rm-lite on each kind of target instead, and evaluates it as ``f3rm eval``
does. Its table pools all scenes, with bootstrap intervals, and pairs each kind with the plain one,
query by query. What is finished in OUT is kept.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from quality_table import Job, begun, finished, train
from skimage.segmentation import slic
from torch import Tensor
from torch.nn import functional

from f3rm.evaluation.evaluate import evaluate_run
from f3rm.evaluation.means import Mean, mean_over
from f3rm.evaluation.metrics import boundary, box_region, fixed_mask, iou, is_localised
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.language.relevancy import CANONICAL_NEGATIVES, make_query, similarity
from f3rm.language.text_encoder import TextEncoder
from f3rm.store.images import read_image
from f3rm.store.items import read_items
from f3rm.store.spec import PRESETS, FeatureSpec
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.truth import SceneTruth
from f3rm.training.segments import Segments

SCALES = (0.5, 1.0, 2.0)
SUPERPIXELS = 400
COLUMNS = ("mIoU", "localisation", "boundary IoU")


Result = Mapping[str, Any]
"""An evaluation, as its JSON has it."""


def superpixels(photograph: np.ndarray) -> np.ndarray:
    """Returns labels (height, width), from 1 on."""
    return slic(photograph, n_segments=SUPERPIXELS, start_label=1)


_SCALES = ",".join(f"{scale:g}" for scale in SCALES)
FIELDS: Mapping[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray] | None]] = {
    "plain": ("TINYCLIP", None),
    "mean of true masks": ("TINYCLIP", lambda _, ids: ids + 1),
    "mean of superpixels": ("TINYCLIP", lambda photograph, _: superpixels(photograph)),
    "scales averaged": (f"TINYCLIP[scales={_SCALES}]", None),
    "best scale of each prompt": (f"TINYCLIP[pyramid={_SCALES}]", None),
}
"""By kind of target: the feature type, and from a photograph and its object ids to segments."""

MEASURES = {
    "miou": "mIoU",
    "miou_boundary": "boundary IoU",
    "localisation_mask": "best pixel on the mask",
    "average_precision": "average precision",
    "presence_auroc": "present above absent",
}
"""Columns of the fields' table."""


def pooled(features: Tensor, labels: np.ndarray) -> Tensor:
    """Returns features (height, width, channels) averaged over labels from 1 on."""
    height, width = labels.shape
    segments = Segments.of([labels.astype(np.uint16)])

    def at(_: int, places: Tensor) -> Tensor:
        rows, cols = (places * torch.tensor([height, width])).long().T
        return features[rows, cols]

    means = segments.means(at)
    known = torch.from_numpy(labels.astype(np.int64))
    found = means[(known - 1).clamp_min(0)]
    return torch.where((known > 0)[..., None] & ~found[..., :1].isnan(), found, features)


def targets(
    extractors: Sequence[FeatureExtractor], photograph: np.ndarray, ids: np.ndarray
) -> dict[str, list[Tensor]]:
    """Returns maps (height, width, channels) by kind of target; several are scales."""
    size = ids.shape
    maps: list[Tensor] = []
    for extractor in extractors:
        (cells,) = extractor(photograph).values()
        shown = functional.interpolate(cells.permute(0, 3, 1, 2), size, mode="bilinear")
        maps.append(shown[0].permute(1, 2, 0))
    plain = maps[SCALES.index(1.0)]
    return {
        "plain": [plain],
        "scales averaged": [torch.stack(maps).mean(0)],
        "best scale of each prompt": maps,
        "mean of superpixels": [pooled(plain, superpixels(photograph))],
        "mean of true masks": [pooled(plain, ids + 1)],
    }


@torch.inference_mode()
def measure(data: Path, views: int) -> dict[str, list[float]]:
    """Returns the columns of each kind of target in one scene."""
    truth, items = SceneTruth.read(data), read_items(data)
    vocabulary = Vocabulary.of(truth)
    texts = [query.text for query in vocabulary.queries]
    spec = replace(PRESETS["TINYCLIP"], precision="float32")
    vectors = TextEncoder(spec.backbone).encode([*texts, *CANONICAL_NEGATIVES])
    query = make_query(*vectors.split((len(texts), len(CANONICAL_NEGATIVES))))
    extractors = [
        FeatureExtractor(replace(spec, prep=replace(spec.prep, scales=(scale,))), device="cpu")
        for scale in SCALES
    ]
    found: dict[str, list[list[float]]] = {}
    for item in items[len(items) // (2 * views) :: len(items) // views][:views]:
        ids = truth.view(item.name).ids
        photograph = read_image(item.path, FeatureSpec.background)
        for kind, maps in targets(extractors, photograph, ids).items():
            scores = torch.stack([similarity(each, query) for each in maps])
            best = scores.amax((1, 2)).argmax(0)  # (texts): the scale of each
            for number, label in enumerate(vocabulary.queries):
                mask = np.isin(ids, label.ids)
                if mask.sum() >= MIN_PIXELS:
                    score = scores[best[number], ..., number].numpy()
                    found.setdefault(kind, []).append(row(score, ids, label.ids))
    return {kind: list(np.mean(rows, axis=0)) for kind, rows in found.items()}


def row(score: np.ndarray, ids: np.ndarray, wanted: tuple[int, ...]) -> list[float]:
    """Returns the columns of one query in one view."""
    answer, mask = fixed_mask(score), np.isin(ids, wanted)
    localised = float(is_localised(score, box_region(ids, wanted)))
    return [iou(answer, mask), localised, iou(boundary(answer), boundary(mask))]


def targets_table(scenes: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Returns a row per kind of target, means over scenes."""
    lines = [f"| target | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for kind in scenes[0]:
        mean = np.mean([scene[kind] for scene in scenes], axis=0)
        lines.append(f"| {kind} | {' | '.join(f'{value:.3f}' for value in mean)} |")
    return "\n".join(lines)


def write_segments(
    data: Path, folder: Path, segments: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Writes the segments of every photograph, unless that is done."""
    truth, items = SceneTruth.read(data), read_items(data)
    folder.mkdir(parents=True, exist_ok=True)
    for item in items[len(list(folder.iterdir())) :]:
        photograph = read_image(item.path, FeatureSpec.background)
        labels = segments(photograph, truth.view(item.name).ids)
        np.savez_compressed(folder / Path(item.name).with_suffix(".npz").name, labels)


def distil(kind: str, data: Path, out: Path, steps: int) -> Result:
    """Trains f3rm-lite on a kind of target and evaluates it; what is finished is used again."""
    feature_type, segments = FIELDS[kind]
    truth, items = SceneTruth.read(data), read_items(data)
    height, width = truth.view(items[0].name).ids.shape
    place = out / kind.replace(" ", "_")
    cache = out / "features" / feature_type.translate(str.maketrans("[=,]", "____"))
    changes = [f"pipeline.datamanager.feature_cache_dir={cache}"]
    if segments is not None:
        masks = place / "segments" / data.name
        write_segments(data, masks, segments)
        changes.append(f"pipeline.datamanager.feature_masks={masks}")
    job = Job(
        kind=cast("SceneKind", truth.kind),
        seed=truth.seed,
        views=len(items),
        size=(height, width),
        feature_type=feature_type,
        weights=(),
        steps=steps,
        overrides=tuple(changes),
        nerfacto=False,
        device="cpu",
    )
    known = finished(job, place)
    if known is not None:
        return known
    folder = begun(job, place)
    found = evaluate_run(train(job, data, folder, features=True), device="cpu")
    found.write_json(folder / "eval.json")
    return found.to_dict()


def against_plain(name: str, found: Sequence[Result], plain: Sequence[Result]) -> str:
    """Returns what a kind of target adds to a measure of the plain one, the mean over queries."""
    differences = [
        [
            mine[name] - other[name]
            for mine, other in zip(one["queries"], before["queries"], strict=True)
            if mine[name] is not None and other[name] is not None
        ]
        for one, before in zip(found, plain, strict=True)
    ]
    mean = mean_over(name, [{"queries": [{name: each} for each in one]} for one in differences])
    every = np.concatenate(differences)
    return f"{_shown(mean)}; more in {(every > 0).sum()} of {len(every)}"


def fields_table(results: Mapping[str, Sequence[Result]]) -> str:
    """Returns a row per kind of target and one of its 2D teacher, all scenes pooled.

    Args:
        results: The evaluations of each kind, in the same order of scenes.
    """
    differ = ("miou", "miou_boundary")
    heads = [*MEASURES.values(), *(f"{MEASURES[name]} - plain's" for name in differ)]
    lines = [f"| target | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for kind, found in results.items():
        gains = ["", ""]
        if kind != "plain":
            gains = [against_plain(name, found, results["plain"]) for name in differ]
        means = [_shown(mean_over(name, found)) for name in MEASURES]
        teachers = [_shown(mean_over(f"teacher_{name}", found)) for name in MEASURES]
        for label, cells in ((kind, [*means, *gains]), ("its 2D teacher", [*teachers, "", ""])):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    over = {name: mean_over(name, results["plain"]) for name in MEASURES}
    counts = [f"{MEASURES[n]} {mean.count} {mean.unit}" for n, mean in over.items() if mean]
    return "\n".join([*lines, "", f"Over {len(results['plain'])} scenes: {', '.join(counts)}."])


def _shown(mean: Mean | None) -> str:
    return "" if mean is None else f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def main() -> None:
    """Parses the command line, measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--views", type=int, default=4, help="views of each scene; of fields all")
    parser.add_argument("--fields", type=Path, help="folder of the fields to train")
    parser.add_argument("--steps", type=int, default=600, help="training steps of a field")
    arguments = parser.parse_args()
    if arguments.fields is None:
        print(targets_table([measure(data, arguments.views) for data in arguments.data]))
        return
    results: dict[str, list[Result]] = {}
    for kind in FIELDS:
        for data in arguments.data:
            found = distil(kind, data, arguments.fields.absolute(), arguments.steps)
            results.setdefault(kind, []).append(found)
            print(f"{data.name}, {kind}: mIoU {found['miou']}", file=sys.stderr, flush=True)
    print(fields_table(results))


if __name__ == "__main__":
    main()
