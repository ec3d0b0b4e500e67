"""Which rule tells best whether a phrase is there, and how much of the scene it is.

``python benchmarks/presence.py RUN...`` asks trained runs of generated scenes for all their
queries and absent prompts, and prints a table with a row per rule: presence (AUROC of the
certainty over all phrases of all scenes, and by kind of absence) and mIoU of the answer in held-out
views. A rule only sees the scene's own features and, for rules that are calibrated with a backbone,
those of the *other* runs. Runs are asked once; ``--out`` keeps what they answered.

Presence is judged on surface points, the mean over eight neighbours, as :meth:`Scene.find` does;
masks are cut in views, at every second pixel.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.spatial import KDTree
from torch import Tensor

import f3rm
from f3rm.language.known_words import rivals_of
from f3rm.language.relevancy import CANONICAL_NEGATIVES
from f3rm.language.text_encoder import TextEncoder
from f3rm.store.items import dataset_root
from f3rm.synthetic.truth import SceneTruth

PIXEL_STEP = 2
PRESENT = "present"


@dataclass(frozen=True)
class Evidence:
    """What a scene shows a rule."""

    name: str
    texts: list[str]
    kinds: list[str]
    ids: list[tuple[int, ...]]
    cells: Tensor  # (cells, channels reduced): unit features
    near: Tensor  # (cells, 8)
    views: Tensor  # (views, height, width, hidden)
    truth: Tensor  # (views, height, width)
    weight: Tensor  # (channels, hidden)
    prompts: Tensor  # (texts, channels)
    negatives: Tensor  # (4, channels)
    rivals: list[Tensor]  # of each text (rivals, channels)


def collect(run: Path) -> Evidence:
    scene = f3rm.load(run, device="cpu")
    truth = SceneTruth.read(dataset_root(scene.run.data))
    head = next(h for h in scene.model.heads.values() if h.spec.has_text)
    weight = head.weight.detach().float()
    encoder = TextEncoder(head.spec.backbone)
    known = encoder.known_words()
    asked = [(q.text, PRESENT, tuple(q.ids)) for q in truth.queries]
    asked += [(a.text, a.kind, ()) for a in truth.absent]
    texts = [a[0] for a in asked]
    views, ids = [], []
    cameras = scene.cameras("eval")
    cameras.rescale_output_resolution(1 / PIXEL_STEP)
    with torch.no_grad():
        for index, name in enumerate(scene.views("eval")):
            hidden = scene.render(cameras[index : index + 1], ("hidden",))["hidden"]
            views.append(hidden.half())
            ids.append(torch.from_numpy(truth.view(name).ids[1::PIXEL_STEP, 1::PIXEL_STEP].copy()))
    cells = scene.cells
    _, near = KDTree(cells.positions.numpy()).query(cells.positions.numpy(), k=8)
    others = [list(rivals_of(text, known)) for text in texts]
    return Evidence(
        f"{truth.kind}-{truth.seed}",
        texts,
        [a[1] for a in asked],
        [a[2] for a in asked],
        cells.hidden,
        torch.from_numpy(near),
        torch.stack(views),
        torch.stack(ids),
        weight,
        encoder.encode(texts).float(),
        encoder.encode(CANONICAL_NEGATIVES).float(),
        [encoder.encode(o).float() if o else torch.zeros(0, weight.shape[0]) for o in others],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/presence"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in arguments.runs:
        kept = arguments.out / f"{hashlib.sha1(str(run.absolute()).encode()).hexdigest()}.pt"
        if not kept.is_file():
            torch.save(vars(collect(run)), kept)
            print(run, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
