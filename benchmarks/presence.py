"""Which rule tells best whether a phrase is there, and how much of the scene it is.

``python benchmarks/presence.py RUN...`` asks trained runs of generated scenes for all their queries
and absent prompts, and prints a table per kind of scene with a row per rule: presence (AUROC of the
highest score over all phrases of all scenes, pooled and by kind of absence, with a bootstrap
interval over scenes), the share of best pixels that are on the thing, and mIoU of the answer in
held-out views. A second table has the boxes of ``Scene.find`` by each rule that it knows.
``--teacher`` asks the 2D features instead, which needs no rendering.

``--boxes FOLDER`` asks runs of that folder's photographs, which has ``boxes.json`` as
:mod:`tools.real` reads it: for the phrases of its boxes, and for phrases that are not there. An
answer is then the box around its largest piece, and presence is that in each photograph.

A rule sees the scene's own features; one that is calibrated with the backbone sees the features of
the *other* runs, of CONSE its 1,000 class names. Scores of a field are means over eight neighbours,
as in ``Scene.find``. What a run answered is kept in ``--out``.
"""

import argparse
import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from presence_rules import RULES, Evidence, Moments
from safetensors.torch import load_file
from scipy.spatial import KDTree
from torch import Tensor

import f3rm
from f3rm.camera_render import CameraOutputs
from f3rm.evaluation.finding import pair
from f3rm.evaluation.metrics import auroc, iou, is_localised
from f3rm.language.known_words import rivals_of
from f3rm.language.relevancy import (
    CANONICAL_NEGATIVES,
    Rule,
)
from f3rm.language.text_encoder import TextEncoder
from f3rm.language.threshold import RELEVANCY_FLOOR, otsu_threshold
from f3rm.scene.casting import hidden_of
from f3rm.scene.found import Found
from f3rm.scene.images import render_mask
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.scene import SPACING, Scene
from f3rm.store.items import dataset_root
from f3rm.synthetic.truth import SceneTruth, TruthObject
from tools.real.fox import Box, offer_conse, read_boxes
from tools.real.measure import box_around, box_mask, overlap
from tools.real.wheels import CLASS_NAMES

PIXEL_STEP = 4
"""Views are rendered at this part of their size."""
CELLS = 20_000
"""Cells of the training photographs' feature maps that stand for a scene with --teacher."""
LEAST_PIXELS = 6
BOX_IOU = 0.25
PRESENT = "present"
DRAWS = 2000
UNSEEN = {
    "unrelated": "banana; sports car; umbrella; laptop; pizza; airliner; mountain bike; teapot; "
    "grand piano; bathtub; king penguin; goldfish; snowplow; volcano; hourglass; tennis ball; "
    "sewing machine; lighthouse; zebra; hammer",
    "alike": "timber wolf; tabby cat; red panda; golden retriever; brown bear; wooden spoon; "
    "wooden chair; wall clock; television; bird cage",
}
"""Phrases by kind that photographs of a fox's head on a wall with flowers do not show."""


@dataclass(frozen=True)
class Wanted:
    """What a scene is asked for, the phrases that it has first, and what is true of those."""

    name: str
    texts: list[str]
    kinds: list[str]
    masks: np.ndarray  # (present texts, views, height, width)
    objects: list[list[TruthObject]]  # of each present text; none where boxes are annotated
    boxes: list[dict[int, Box]]  # of each present text, by view; none where objects are known


def collect(run: Path, *, teacher: bool, boxes: Path | None) -> Evidence:
    """Asks a run, or its teacher."""
    if boxes is not None:
        offer_conse(Path(tempfile.mkdtemp()))
    scene = f3rm.load(run, device="cpu")
    wanted = of_truth(scene) if boxes is None else of_boxes(scene, boxes)
    head = next(head for head in scene.source.heads.values() if head.spec.has_text)
    encoder = TextEncoder(head.spec.backbone)
    weight = head.weight.detach().float()
    if teacher:
        cells, near, views = of_teacher(scene, head.spec.name)
        weight, bands = torch.eye(len(weight)), []
    else:
        cells, near, bands = of_field(scene)
        views = torch.stack([torch.cat([hidden_of(band).half() for _, band in b]) for b in bands])
    rows, cols = (
        ((np.arange(count) + 0.5) * pixels / count).astype(int)
        for count, pixels in zip(views.shape[1:3], wanted.masks.shape[2:], strict=True)
    )
    others = [list(rivals_of(text, encoder.known_words())) for text in wanted.texts]
    none = torch.zeros(0, len(weight))
    names = Path(head.spec.backbone.weights) / CLASS_NAMES
    return Evidence(
        *(wanted.name, wanted.texts, wanted.kinds),
        torch.from_numpy(wanted.masks[:, :, rows][..., cols]),
        is_boxed=boxes is not None,
        found={rule: find(scene, wanted, rule, bands) for rule in get_args(Rule) if bands},
        cells=cells,
        near=near,
        views=views,
        weight=weight,
        prompts=encoder.encode(wanted.texts).float(),
        negatives=encoder.encode(CANONICAL_NEGATIVES).float(),
        rivals=[encoder.encode(phrases).float() if phrases else none for phrases in others],
        names=load_file(names)["embeddings"] if names.is_file() else none,
    )


def of_truth(scene: Scene) -> Wanted:
    """Returns what a generated scene is asked for."""
    truth = SceneTruth.read(dataset_root(scene.run.data))
    seen = [truth.view(view).ids for view in scene.views("eval")]
    return Wanted(
        f"{truth.kind}-{truth.seed}",
        [query.text for query in truth.queries] + [prompt.text for prompt in truth.absent],
        [PRESENT] * len(truth.queries) + [str(prompt.kind) for prompt in truth.absent],
        np.array([[np.isin(ids, query.ids) for ids in seen] for query in truth.queries]),
        [[truth.objects[number] for number in query.ids] for query in truth.queries],
        [],
    )


def of_boxes(scene: Scene, folder: Path) -> Wanted:
    """Returns what annotated photographs are asked for."""
    marked, views, camera = read_boxes(folder), scene.views("eval"), scene.cameras("eval")[0]
    present = list(dict.fromkeys(phrase for boxes in marked.values() for phrase in boxes))
    unseen = [(text, kind) for kind, texts in UNSEEN.items() for text in texts.split("; ")]
    masks = np.zeros((len(present), len(views), int(camera.height), int(camera.width)), bool)
    boxes: list[dict[int, Box]] = [
        {v: marked[view][text] for v, view in enumerate(views) if text in marked.get(view, {})}
        for text in present
    ]
    for number, by_view in enumerate(boxes):
        for view, box in by_view.items():
            masks[number, view] = box_mask(box, masks.shape[2:])
    texts = [*present, *(text for text, _ in unseen)]
    kinds = [PRESENT] * len(present) + [kind for _, kind in unseen]
    return Wanted(folder.resolve().name, texts, kinds, masks, [], boxes)


Bands = list[tuple[RayBundle, CameraOutputs]]
"""A rendered view: rows from top to bottom."""


def of_field(scene: Scene) -> tuple[Tensor, Tensor, list[Bands]]:
    """Returns hidden vectors of surface cells, their neighbours, and rendered held-out views."""
    cameras = scene.cameras("eval")
    cameras.rescale_output_resolution(1 / PIXEL_STEP)
    cameras = scene.frames.get("dataset").cameras_to_scene(cameras)
    views = [list(scene.source.bands(cameras[i : i + 1])) for i in range(len(cameras))]
    positions = scene.cells.positions.numpy()
    _, near = KDTree(positions).query(positions, k=8)
    return scene.cells.hidden, torch.from_numpy(near), views


def find(scene: Scene, wanted: Wanted, rule: Rule, views: list[Bands]) -> dict[str, Any]:
    """Asks ``Scene.find``; returns IoUs of true boxes, numbers of instances, and certainties."""
    answers = [
        scene.find(text, rule=rule, frame="nerfstudio" if wanted.boxes else "metres")
        for text in wanted.texts
    ]
    ious: list[float] = []
    instances = 0
    for number, found in enumerate(answers[: len(wanted.masks)]):
        if wanted.boxes:
            boxes = wanted.boxes[number]
            ious += [projected(found, views[view], box) for view, box in boxes.items()]
            instances += len(found) * len(boxes)
        else:
            pairs = pair(found.instances, wanted.objects[number])
            ious += pairs.ious
            instances += pairs.found
    certainties = [found.certainty for found in answers]
    return {"ious": ious, "instances": instances, "certainties": certainties}


def projected(found: Found, bands: Bands, box: Box) -> float:
    """Returns the IoU of the box around the best instance in a view with the annotated one."""
    if not found:
        return 0.0
    around = box_around(render_mask(bands, found[0].points.double(), 1.5 * SPACING).numpy())
    x0, y0, x1, y1 = (round(side / PIXEL_STEP) for side in box)
    return overlap(around, (x0, y0, x1, y1))


def of_teacher(scene: Scene, head: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same of the 2D features: cells of feature maps, each its own neighbour."""
    assert isinstance(scene.run, LoadedRun)  # noqa: S101 - narrows the type
    store = scene.run.stores[head]
    maps = [store.feature_map(store.index(name)).flatten(0, 1) for name in scene.views("train")]
    cells, generator = torch.cat(maps), torch.Generator().manual_seed(0)
    cells = cells[torch.randperm(len(cells), generator=generator)[:CELLS]]
    views = [store.feature_map(store.index(name)).half() for name in scene.views("eval")]
    return cells, torch.arange(len(cells))[:, None], torch.stack(views)


@dataclass(frozen=True)
class Asked:
    """A rule's answer to one phrase, in a scene or a photograph of it.

    Without pixels to compare it with, ``hits`` and ``ious`` are empty.
    """

    scene: str
    kind: str
    best: float
    hits: tuple[bool, ...] = ()
    ious: tuple[float, ...] = ()


def ask(scene: Evidence, others: Moments) -> dict[str, list[Asked]]:
    """Asks a scene for all its phrases by each rule, with the threshold of ``Scene.find``."""
    answers: dict[str, list[Asked]] = {}
    for label, rule in RULES.items():
        scores = rule(scene, scene.units, others)[scene.near].mean(1)
        least = [max(RELEVANCY_FLOOR, otsu_threshold(column)) for column in scores.T]
        best = scores.amax(0).tolist()
        own = [Asked(scene.name, *row) for row in zip(scene.kinds, best, strict=True)]
        of_views: list[Asked] = []
        for view, hidden in enumerate(scene.views):
            maps = rule(scene, scene.features(hidden), others)
            maps = maps.T.unflatten(1, hidden.shape[:2]).numpy()
            for text, kind in enumerate(scene.kinds):
                answer = Asked(f"{scene.name} {view}", kind, float(maps[text].max()))
                if kind != PRESENT:
                    of_views.append(answer)
                elif (mask := scene.masks[text, view].numpy()).sum() >= LEAST_PIXELS:
                    hit = is_localised(maps[text], mask)
                    shared = extent(maps[text] >= least[text], mask, is_boxed=scene.is_boxed)
                    of_views.append(replace(answer, hits=(hit,), ious=(shared,)))
                    hits, ious = (*own[text].hits, hit), (*own[text].ious, shared)
                    own[text] = replace(own[text], hits=hits, ious=ious)
        answers[label] = of_views if scene.is_boxed else own
    return answers


def extent(found: np.ndarray, mask: np.ndarray, *, is_boxed: bool) -> float:
    """Returns the IoU of an answer with its mask; of boxes with the box around the answer."""
    if is_boxed:
        around = box_around(found)
        found = np.zeros_like(found) if around is None else box_mask(around, found.shape)
    return iou(found, mask)


def presence(answers: Sequence[Asked], kinds: Sequence[str]) -> float:
    """Returns the AUROC of present phrases above absent ones of some kinds."""
    present = np.array([answer.best for answer in answers if answer.kind == PRESENT])
    absent = np.array([answer.best for answer in answers if answer.kind in kinds])
    return auroc(present, absent) or 0.0


def interval(answers: Sequence[Asked], kinds: Sequence[str]) -> tuple[float, float]:
    """Returns 95 % of the AUROC over draws of scenes, or of photographs."""
    rng = np.random.default_rng(0)
    names = sorted({answer.scene for answer in answers})
    by_name = {name: [a for a in answers if a.scene == name] for name in names}
    drawn = [
        presence([a for name in rng.choice(names, len(names)) for a in by_name[name]], kinds)
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def table(kind: str, scenes: Sequence[Evidence]) -> str:
    """Returns one row per rule, then one per rule of ``Scene.find``."""
    absent = [k for k in dict.fromkeys(k for s in scenes for k in s.kinds) if k != PRESENT]
    asked = sum(k == PRESENT for s in scenes for k in s.kinds)
    refused = sum(len(s.kinds) for s in scenes) - asked
    lines = [
        f"{kind}: {len(scenes)} scenes, {asked} present and {refused} absent phrases",
        "",
        f"| rule | presence | 95 % | {' | '.join(absent)} | best pixel | mIoU |",
        "|---" * (5 + len(absent)) + "|",
    ]
    answers: dict[str, list[Asked]] = defaultdict(list)
    for scene in scenes:
        rest = [other.moments for other in scenes if other is not scene] or [scene.moments]
        mean, second = (
            torch.stack([getattr(other, name) for other in rest]).mean(0)
            for name in ("mean", "second")
        )
        for label, own in ask(scene, Moments(mean, second)).items():
            answers[label] += own
    for label, own in answers.items():
        low, high = interval(own, absent)
        by_kind = " | ".join(f"{presence(own, [k]):.3f}" for k in absent)
        hits = np.mean([hit for answer in own for hit in answer.hits])
        miou = np.mean([np.mean(answer.ious) for answer in own if answer.ious])
        lines.append(
            f"| {label} | {presence(own, absent):.3f} | {low:.3f} to {high:.3f} | {by_kind} "
            f"| {hits:.3f} | {miou:.3f} |"
        )
    lines += ["", "| find | recall | precision | box IoU | present: found, uncertain, absent "]
    lines[-1] += "| absent: found, uncertain, absent, unknown word |"
    lines.append("|---" * 6 + "|")
    for rule in dict.fromkeys(rule for scene in scenes for rule in scene.found):
        lines.append(f"| `{rule}` | {boxes_row(scenes, rule)} |")
    return "\n".join(lines)


def boxes_row(scenes: Sequence[Evidence], rule: str) -> str:
    """Returns recall, precision, mean IoU and certainties of the boxes by a rule of find."""
    ious = np.concatenate([scene.found[rule]["ious"] for scene in scenes])
    right = int((ious >= BOX_IOU).sum())
    instances = sum(scene.found[rule]["instances"] for scene in scenes)
    kinds = [kind == PRESENT for scene in scenes for kind in scene.kinds]
    certainties = [own for scene in scenes for own in scene.found[rule]["certainties"]]
    counts = [
        ", ".join(
            str(sum(c == name for c, k in zip(certainties, kinds, strict=True) if k == is_present))
            for name in names
        )
        for is_present, names in (
            (True, ("found", "uncertain", "absent")),
            (False, ("found", "uncertain", "absent", "unknown word")),
        )
    ]
    shares = right / len(ious), right / max(instances, 1), ious.mean()
    return " | ".join([*(f"{share:.3f}" for share in shares), *counts])


def main() -> None:
    """Asks the runs that were not asked yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--teacher", action="store_true", help="ask the 2D features")
    parser.add_argument("--boxes", type=Path, help="photographs of the runs, with boxes.json")
    parser.add_argument("--out", type=Path, default=Path("outputs/presence"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes: list[Evidence] = []
    for run in arguments.runs:
        name = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
        kept = arguments.out / f"{name}{'-teacher' if arguments.teacher else ''}.pt"
        if not kept.is_file():
            evidence = collect(run, teacher=arguments.teacher, boxes=arguments.boxes)
            torch.save({key: getattr(evidence, key) for key in Evidence.__dataclass_fields__}, kept)
        scenes.append(Evidence(**torch.load(kept, weights_only=True)))
    for kind in dict.fromkeys(scene.name.partition("-")[0] for scene in scenes):
        print(table(kind, [scene for scene in scenes if scene.name.startswith(kind)]), "\n")


if __name__ == "__main__":
    main()
