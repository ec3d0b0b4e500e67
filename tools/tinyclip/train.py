"""Trains TINYCLIP: ``python -m tools.tinyclip.train --work FOLDER``, about an hour on two cores.

Pictures are rendered first, then the model is trained, published and measured. What an interrupted
call has done is used by the next one.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from f3rm._types import BackboneRef
from f3rm.backbones.base import Backbone
from f3rm.backbones.clip import ClipBackbone
from f3rm.features.progress import track
from tools.tinyclip.batches import Batch, draw_batch
from tools.tinyclip.measure import Encode, EncodeTexts, measure
from tools.tinyclip.model import (
    build_model,
    build_tutor,
    embed_pictures,
    embed_texts,
    loss_of,
    normalised,
    publish,
    tokenizer,
)
from tools.tinyclip.pictures import (
    HELD_OUT_FROM,
    ScenePictures,
    load_generated,
    load_scene,
    render_scenes,
)
from tools.tinyclip.words import UNSEEN_PAIRS

PUBLISHED = Path("f3rm/backbones/tinyclip")
RECORD = "training.json"

_GRIDS = (((2, 2), 96), ((3, 3), 48), ((4, 5), 22), ((5, 7), 12), ((7, 9), 7))
"""Cells (rows, columns) and pictures of the kinds of batches."""
_FALLS = ((0.0, 1.0), (8 / 14, 0.35), (11 / 14, 0.35), (1.0, 0.0))
"""The learning rate falls to zero three times: from which share of the training, and how high."""
_LARGE_FROM = 8 / 14
"""Share of the training from which cut-outs also show things that fill a photograph."""
_SHARES = (0.0, 1 / 7, 1 / 7 + 1e-4, _LARGE_FROM, _LARGE_FROM + 1e-4, 1.0)
_CHANCES = (
    (0.70, 0.5875, 0.05, 0.00, 0.00, 0.00),
    (0.30, 0.3375, 0.25, 0.15, 0.05, 0.05),
    (0.00, 0.0375, 0.30, 0.30, 0.20, 0.20),
    (0.00, 0.0375, 0.40, 0.55, 0.35, 0.35),
    (0.00, 0.0000, 0.00, 0.00, 0.40, 0.40),
)
"""How often each is drawn at these shares of the training; in between, interpolated.

Small cut-outs teach shapes quickly, but from their borders a cell also learns where it is.
"""


@dataclass
class Train:
    """Train TINYCLIP, the small CLIP that ships with f3rm."""

    work: Path
    """Folder for pictures, checkpoint and record."""
    out: Path = PUBLISHED
    """Folder that the model is written to."""
    scenes: int = 900
    """Training scenes, of six pictures each."""
    held_out: int = 40
    """Scenes for measuring."""
    tabletops: int = 10
    """Scenes of f3rm make-scene tabletop for measuring."""
    views: int = 12
    """Photographs of each of them."""
    steps: int = 14000
    """Training steps."""
    rate: float = 3e-3
    """Highest learning rate."""
    seed: int = 0
    """Draws weights and batches."""
    save_every: int = 250
    """Steps between checkpoints."""
    stop_at: int | None = None
    """Step to stop at, for trying out; the next call goes on from there."""

    def run(self) -> None:
        """Renders, trains, publishes and measures."""
        pictures = self.work / "pictures"
        held_out = range(HELD_OUT_FROM, HELD_OUT_FROM + self.held_out)
        processes = os.cpu_count() or 1
        began = time.monotonic()
        render_scenes(pictures, [*held_out, *range(self.scenes)], processes=processes)
        rendering = time.monotonic() - began
        scenes = [load_scene(pictures, seed) for seed in range(self.scenes)]
        held = [load_scene(pictures, seed) for seed in held_out]
        state = _Training(self)
        state.run(scenes, held[: max(1, self.held_out // 5)])
        folder = publish(state.model, self.out, state.tokens)
        ref = BackboneRef("clip", "tinyclip", str(folder.absolute()))
        backbone = ClipBackbone.load(ref, towers=("image", "text"))
        record = {
            "settings": {**asdict(self), "work": None, "out": None},
            "seconds": {"rendering": rendering, "training": state.seconds},
            "threads": torch.get_num_threads(),
            "unseen_pairs": sorted(map(list, UNSEEN_PAIRS)),
            "curve": state.curve,
            "held_out": measure(*towers(backbone), held),
            "tabletops": measure(
                *towers(backbone),
                [
                    load_generated(self.work / "tabletops", "tabletop", seed, views=self.views)
                    for seed in range(self.tabletops)
                ],
            ),
        }
        (self.work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(json.dumps({name: record[name] for name in ("held_out", "tabletops")}, indent=2))


def towers(backbone: Backbone) -> tuple[Encode, EncodeTexts]:
    """Returns the two halves of a model as f3rm loads it, as :func:`measure` takes them."""
    return (
        lambda pixels: backbone.encode_image(normalised(pixels)).flatten(1, 2),
        backbone.encode_text,
    )


class _Batches(Dataset[Batch]):
    """The batch of every step; an interrupted run goes on with those it would have had."""

    def __init__(self, scenes: list[ScenePictures], settings: Train) -> None:
        self._scenes = scenes
        self._settings = settings

    def __getitem__(self, step: int) -> Batch:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self._settings.seed, step])
        share = step / self._settings.steps
        chances = np.array([np.interp(share, _SHARES, kind) for kind in _CHANCES])
        grid, size = _GRIDS[int(rng.choice(len(_GRIDS), p=chances / chances.sum()))]
        return draw_batch(self._scenes, rng, size=size, grid=grid, progress=share)


class _Training:
    """A model under training and all that a checkpoint has to bring back."""

    def __init__(self, settings: Train) -> None:
        self._settings = settings
        self._file = settings.work / "checkpoint.pt"
        self.model = build_model(settings.seed)
        self.tutor = build_tutor()
        parameters = [*self.model.parameters(), *self.tutor.parameters()]
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others}]
        self.optimiser = AdamW(groups, settings.rate, (0.9, 0.98), weight_decay=0.0, fused=True)
        self.schedule = LambdaLR(self.optimiser, self._rate)
        self.tokens: set[int] = set()
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.step = 0
        self._load()

    def run(self, scenes: list[ScenePictures], held: list[ScenePictures]) -> None:
        """Takes the steps that are left, measuring and saving now and then."""
        steps = range(self.step, self._settings.stop_at or self._settings.steps)
        batches = DataLoader(
            _Batches(scenes, self._settings), None, sampler=steps, num_workers=1, prefetch_factor=4
        )
        began = time.monotonic()
        bar = track(batches, total=len(steps), label="Training", show=True)
        for step, batch in zip(steps, bar, strict=True):
            terms = self._update(batch)
            self._remember_tokens(batch)
            self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
            self.step = step + 1
            if self.step % self._settings.save_every == 0 or self.step == self._settings.steps:
                self.model.eval()
                accuracies = measure(
                    lambda pixels: embed_pictures(self.model, pixels),
                    lambda texts: embed_texts(self.model, texts),
                    held,
                )
                point = {"step": self.step, "seconds": self.seconds, **terms, **accuracies}
                self.curve.append({name: round(value, 4) for name, value in point.items()})
                print(self.curve[-1], flush=True)
                self._save()

    def _update(self, batch: Batch) -> dict[str, float]:
        self.model.train()
        loss, terms = loss_of(self.model, self.tutor, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.item(), **terms}

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        share = min(1.0, step / self._settings.steps)
        for (began, height), (ends, _) in pairwise(_FALLS):
            if share < ends:
                done = (share - began) / (ends - began)
                return warm * height * 0.5 * (1 + math.cos(math.pi * done))
        return 0.0

    def _remember_tokens(self, batch: Batch) -> None:
        self.tokens |= set(tokenizer()(list(batch.texts + batch.captions)).unique().tolist())

    def _save(self) -> None:
        aside = self._file.with_suffix(".new")
        state = {
            "model": self.model.state_dict(),
            "tutor": self.tutor.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "tokens": sorted(self.tokens),
            "curve": self.curve,
            "seconds": self.seconds,
            "step": self.step,
        }
        torch.save(state, aside)
        aside.rename(self._file)

    def _load(self) -> None:
        if not self._file.is_file():
            return
        state = torch.load(self._file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.tutor.load_state_dict(state["tutor"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.tokens, self.curve = set(state["tokens"]), state["curve"]
        self.seconds, self.step = state["seconds"], state["step"]


if __name__ == "__main__":
    tyro.cli(Train).run()
