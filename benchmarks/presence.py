"""Which rule tells best whether a phrase is there, and how much of the scene it is.

``python benchmarks/presence.py RUN...`` asks trained runs of generated scenes for all their queries
and absent prompts, and prints a table per kind of scene with a row per rule: presence (AUROC of the
highest score over all phrases of all scenes, pooled and by kind of absence, with a bootstrap
interval over scenes) and mIoU of the answer in held-out views. ``--teacher`` asks the 2D features
instead, which needs no rendering.

A rule sees the scene's own features; one that is calibrated with the backbone sees the features of
the *other* runs. Scores of a field are means over eight neighbours, as in ``Scene.find``. What a
run answered is kept in ``--out``.
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

import f3rm
from f3rm.evaluation.metrics import auroc, iou
from f3rm.language.known_words import rivals_of
from f3rm.language.relevancy import CANONICAL_NEGATIVES, make_query, similarity
from f3rm.language.text_encoder import TextEncoder
from f3rm.language.threshold import RELEVANCY_FLOOR, otsu_threshold
from f3rm.scene.run_loading import LoadedRun
from f3rm.scene.scene import Scene
from f3rm.store.items import dataset_root
from f3rm.synthetic.truth import SceneTruth

PIXEL_STEP = 2
"""Views are rendered at this part of their size."""
CELLS = 20_000
"""Cells of the training photographs' feature maps that stand for a scene with --teacher."""
LEAST_PIXELS = 16
PRESENT = "present"
CLUSTERS = 32
DRAWS = 2000


@dataclass(frozen=True)
class Evidence:
    """What a scene shows a rule; saved as a dict of its fields."""

    name: str
    texts: list[str]
    kinds: list[str]
    ids: list[tuple[int, ...]]
    cells: Tensor  # (cells, hidden)
    near: Tensor  # (cells, neighbours): indices
    views: Tensor  # (views, height, width, hidden)
    truth: Tensor  # (views, height, width): ids
    weight: Tensor  # (channels, hidden)
    prompts: Tensor  # (texts, channels)
    negatives: Tensor  # (negatives, channels)
    rivals: list[Tensor]  # of each text, (rivals, channels)

    @cached_property
    def units(self) -> Tensor:
        """Unit features of the cells, (cells, channels)."""
        return functional.normalize(self.cells.float() @ self.weight.T, dim=-1)

    @cached_property
    def pixels(self) -> Tensor:
        """Unit features of all pixels, (pixels, channels)."""
        return functional.normalize(self.views.flatten(0, 2).float() @ self.weight.T, dim=-1)

    @cached_property
    def centres(self) -> Tensor:
        """Clusters of the unit features by spherical k-means, (clusters, channels)."""
        generator = torch.Generator().manual_seed(0)
        centres = self.units[torch.randperm(len(self.units), generator=generator)[:CLUSTERS]]
        for _ in range(15):
            nearest = (self.units @ centres.T).argmax(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, self.units)
            centres = functional.normalize(sums, dim=-1)
        return centres


Rule = Callable[[Evidence, int, Tensor, Tensor], Tensor]
"""From evidence, a prompt's index, unit features and the other scenes' mean to scores."""


def lerf(scene: Evidence, prompt: int, units: Tensor, _others: Tensor) -> Tensor:
    query = make_query(scene.prompts[prompt : prompt + 1], scene.negatives)
    return similarity(units, query)[:, 0]


def cosine(scene: Evidence, prompt: int, units: Tensor, _others: Tensor) -> Tensor:
    return similarity(units, make_query(scene.prompts[prompt : prompt + 1]))[:, 0]


def deviations(scene: Evidence, prompt: int, units: Tensor, others: Tensor) -> Tensor:
    everywhere = cosine(scene, prompt, scene.units, others)
    return (cosine(scene, prompt, units, others) - everywhere.mean()) / everywhere.std()


def clusters(scene: Evidence, prompt: int, units: Tensor, others: Tensor) -> Tensor:
    """Relevancy to the best-fitting cluster that is not like the prompt's own."""
    fits = cosine(scene, prompt, scene.centres, others)
    unlike = scene.centres @ scene.centres[fits.argmax()] < 0.8
    level = fits[unlike].max() if unlike.any() else fits.median()
    return torch.sigmoid((cosine(scene, prompt, units, others) - level) / 0.1)


def rivals(scene: Evidence, prompt: int, units: Tensor, others: Tensor) -> Tensor:
    """LERF's, and relevancy to phrases that contradict the prompt in one word."""
    plain = lerf(scene, prompt, units, others)
    if not len(scene.rivals[prompt]):
        return plain
    query = make_query(scene.prompts[prompt : prompt + 1], scene.rivals[prompt])
    return torch.minimum(plain, similarity(units, query)[:, 0])


def centred(scene: Evidence, prompt: int, units: Tensor, _others: Tensor) -> Tensor:
    query = make_query(scene.prompts[prompt : prompt + 1], mean=scene.units.mean(0))
    return similarity(units, query)[:, 0]


def centred_elsewhere(scene: Evidence, prompt: int, units: Tensor, others: Tensor) -> Tensor:
    return similarity(units, make_query(scene.prompts[prompt : prompt + 1], mean=others))[:, 0]


def scene_rule(scene: Evidence, prompt: int, units: Tensor, _others: Tensor) -> Tensor:
    query = make_query(
        scene.prompts[prompt : prompt + 1], scene.negatives, mean=scene.units.mean(0)
    )
    return similarity(units, query)[:, 0]


RULES: dict[str, Rule] = {
    "`lerf`: relevancy to four canonical phrases": lerf,
    "plain cosine": cosine,
    "cosine in the scene's standard deviations": deviations,
    "relevancy to clusters of the scene": clusters,
    "`lerf`, and to phrases that contradict": rivals,
    "cosine from the scene's mean": centred,
    "cosine from the backbone's mean (other scenes)": centred_elsewhere,
    "`scene`: geometric mean of `lerf` and the cosine from the scene's mean": scene_rule,
}


def collect(run: Path, *, teacher: bool) -> Evidence:
    """Asks a run, or its teacher."""
    scene = f3rm.load(run, device="cpu")
    truth = SceneTruth.read(dataset_root(scene.run.data))
    head = next(head for head in scene.source.heads.values() if head.spec.has_text)
    encoder = TextEncoder(head.spec.backbone)
    asked = [(query.text, PRESENT, tuple(query.ids)) for query in truth.queries]
    asked += [(prompt.text, prompt.kind, ()) for prompt in truth.absent]
    texts, kinds, ids = (list(column) for column in zip(*asked, strict=True))
    weight = head.weight.detach().float()
    if teacher:
        cells, near, views, seen = of_teacher(scene, truth, head.spec.name)
        weight = torch.eye(len(weight))
    else:
        cells, near, views, seen = of_field(scene, truth)
    others = [list(rivals_of(text, encoder.known_words())) for text in texts]
    none = torch.zeros(0, len(weight))
    return Evidence(
        f"{truth.kind}-{truth.seed}",
        *(texts, kinds, ids, cells, near, views, seen, weight),
        encoder.encode(texts).float(),
        encoder.encode(CANONICAL_NEGATIVES).float(),
        [encoder.encode(phrases).float() if phrases else none for phrases in others],
    )


def of_field(scene: Scene, truth: SceneTruth) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns hidden vectors of surface cells, their neighbours, those of views, and true ids."""
    views, ids, cameras = [], [], scene.cameras("eval")
    cameras.rescale_output_resolution(1 / PIXEL_STEP)
    for index, name in enumerate(scene.views("eval")):
        views.append(scene.render(cameras[index : index + 1], ("hidden",))["hidden"].half())
        ids.append(torch.from_numpy(truth.view(name).ids[1::PIXEL_STEP, 1::PIXEL_STEP].copy()))
    positions = scene.cells.positions.numpy()
    _, near = KDTree(positions).query(positions, k=8)
    return scene.cells.hidden, torch.from_numpy(near), torch.stack(views), torch.stack(ids)


def of_teacher(scene: Scene, truth: SceneTruth, head: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the same of the 2D features: cells of feature maps, each its own neighbour."""
    assert isinstance(scene.run, LoadedRun)  # noqa: S101 - narrows the type
    store = scene.run.stores[head]
    maps = [store.feature_map(store.index(name)).flatten(0, 1) for name in scene.views("train")]
    cells, generator = torch.cat(maps), torch.Generator().manual_seed(0)
    cells = cells[torch.randperm(len(cells), generator=generator)[:CELLS]]
    views, ids = [], []
    for name in scene.views("eval"):
        views.append(store.feature_map(store.index(name)).half())
        seen = truth.view(name).ids
        rows, cols = (
            ((np.arange(cells_) + 0.5) * pixels / cells_).astype(int)
            for cells_, pixels in zip(views[-1].shape, seen.shape, strict=False)
        )
        ids.append(torch.from_numpy(seen[np.ix_(rows, cols)]))
    return cells, torch.arange(len(cells))[:, None], torch.stack(views), torch.stack(ids)


@dataclass(frozen=True)
class Asked:
    """A rule's answer to one phrase: best score, and mIoU over the views that show it."""

    scene: str
    kind: str
    best: float
    miou: float | None


def ask(rule: Rule, scene: Evidence, others: Tensor) -> list[Asked]:
    """Asks a scene for all its phrases, by the threshold that ``Scene.find`` chooses."""
    answers: list[Asked] = []
    for prompt, kind in enumerate(scene.kinds):
        scores = rule(scene, prompt, scene.units, others)[scene.near].mean(1)
        miou = None
        if kind == PRESENT:
            least = max(RELEVANCY_FLOOR, otsu_threshold(scores))
            found = rule(scene, prompt, scene.pixels, others).view(scene.truth.shape) >= least
            true = torch.isin(scene.truth, torch.tensor(scene.ids[prompt]))
            pairs = zip(found.numpy(), true.numpy(), strict=True)
            ious = [iou(own, mask) for own, mask in pairs if mask.sum() >= LEAST_PIXELS]
            miou = float(np.mean(ious)) if ious else None
        answers.append(Asked(scene.name, kind, float(scores.max()), miou))
    return answers


def presence(answers: Sequence[Asked], kinds: Sequence[str]) -> float:
    """Returns the AUROC of present phrases above absent ones of some kinds."""
    present = np.array([answer.best for answer in answers if answer.kind == PRESENT])
    absent = np.array([answer.best for answer in answers if answer.kind in kinds])
    return auroc(present, absent) or 0.0


def interval(answers: Sequence[Asked], kinds: Sequence[str]) -> tuple[float, float]:
    """Returns 95 % of the AUROC over draws of scenes."""
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
    """Returns one row per rule."""
    absent = [k for k in dict.fromkeys(k for s in scenes for k in s.kinds) if k != PRESENT]
    asked = sum(k == PRESENT for s in scenes for k in s.kinds)
    refused = sum(len(s.kinds) for s in scenes) - asked
    lines = [
        f"{kind}: {len(scenes)} scenes, {asked} present and {refused} absent phrases",
        "",
        f"| rule | presence | 95 % | {' | '.join(absent)} | mIoU | phrases |",
        "|---" * (5 + len(absent)) + "|",
    ]
    for label, rule in RULES.items():
        answers: list[Asked] = []
        for scene in scenes:
            rest = [other.units.mean(0) for other in scenes if other is not scene]
            others = torch.stack(rest or [scene.units.mean(0)]).mean(0)
            answers += ask(rule, scene, others)
        low, high = interval(answers, absent)
        by_kind = " | ".join(f"{presence(answers, [k]):.3f}" for k in absent)
        mious = [answer.miou for answer in answers if answer.miou is not None]
        lines.append(
            f"| {label} | {presence(answers, absent):.3f} | {low:.3f} to {high:.3f} | {by_kind} "
            f"| {np.mean(mious):.3f} | {len(mious)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Asks the runs that were not asked yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--teacher", action="store_true", help="ask the 2D features")
    parser.add_argument("--out", type=Path, default=Path("outputs/presence"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes: list[Evidence] = []
    for run in arguments.runs:
        name = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
        kept = arguments.out / f"{name}{'-teacher' if arguments.teacher else ''}.pt"
        if not kept.is_file():
            torch.save(vars(collect(run, teacher=arguments.teacher)), kept)
        scenes.append(Evidence(**torch.load(kept, weights_only=True)))
    for kind in dict.fromkeys(scene.name.partition("-")[0] for scene in scenes):
        print(table(kind, [scene for scene in scenes if scene.name.startswith(kind)]), "\n")


if __name__ == "__main__":
    main()
