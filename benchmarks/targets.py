"""What the targets of a field are worth, before any training: scales, and means over segments.

``python benchmarks/targets.py DATA...`` asks TINYCLIP's features of some views of generated scenes
for their queries and prints a row per kind of target, means over scenes: mIoU of relevancy above
0.5, localisation, and boundary IoU (LERF-Mask's: the mask less its erosion by 2 % of the diagonal).
Of several scales the best one answers each prompt in each view, as in LERF, or they are averaged.
Segments are the true masks of objects, or superpixels of the photograph.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor
from torch.nn import functional

from f3rm.evaluation.metrics import box_region, fixed_mask, iou, is_localised
from f3rm.evaluation.query_scores import MIN_PIXELS
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.extract.tables.live import FeatureExtractor
from f3rm.language.relevancy import CANONICAL_NEGATIVES, make_query, similarity
from f3rm.language.text_encoder import TextEncoder
from f3rm.store.images import read_image
from f3rm.store.items import read_items
from f3rm.store.spec import PRESETS, FeatureSpec
from f3rm.synthetic.truth import SceneTruth
from f3rm.training.segments import Segments

SCALES = (0.5, 1.0, 2.0)
SUPERPIXELS = 400
COLUMNS = ("mIoU", "localisation", "boundary IoU")


def boundary(mask: np.ndarray) -> np.ndarray:
    """Returns the inner edge of a mask, 2 % of the picture's diagonal wide."""
    steps = max(1, round(0.02 * float(np.hypot(mask.shape[0], mask.shape[1]))))
    padded = np.pad(mask.astype(np.uint8), 1)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
    return mask & (inside == 0)


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
    pixels = slic(photograph, n_segments=SUPERPIXELS, start_label=1)
    return {
        "plain": [plain],
        "scales averaged": [torch.stack(maps).mean(0)],
        "best scale of each prompt": maps,
        "mean of superpixels": [pooled(plain, pixels)],
        "mean of true masks": [pooled(plain, ids + 1)],
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--views", type=int, default=4, help="views of each scene")
    arguments = parser.parse_args()
    scenes = []
    for data in arguments.data:
        scenes.append(measure(data, arguments.views))
        print(data.name, {k: np.round(v, 3).tolist() for k, v in scenes[-1].items()}, flush=True)
    print(f"| target | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for kind in scenes[0]:
        mean = np.mean([scene[kind] for scene in scenes], axis=0)
        print(f"| {kind} | {' | '.join(f'{value:.3f}' for value in mean)} |")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
