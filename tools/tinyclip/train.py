"""Trains TINYCLIP: ``python -m tools.tinyclip.train --work FOLDER``, about an hour on two cores.

Pictures are rendered first, then the model is trained, published and measured. What an interrupted
call has done is used by the next one.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from f3rm.backbones.base import Backbone
from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.errors import BackboneRef
from f3rm.store.progress import track
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
)
from tools.tinyclip.pictures import (
    HELD_OUT_FROM,
    ScenePictures,
    load_generated,
    load_scene,
    render_scenes,
)
from tools.tinyclip.schedule import Schedule, rate_at
from tools.tinyclip.together import average_gradients, helped
from tools.tinyclip.words import UNSEEN_PAIRS

PUBLISHED = Path("f3rm/backbones/tinyclip")
RECORD = "training.json"


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
    steps: int = 7000
    """Training steps."""
    rate: float = 4e-3
    """Highest learning rate."""
    seed: int = 0
    """Draws weights and batches."""
    processes: int = 2
    """Processes that share every batch; another number trains another model."""
    save_every: int = 500
    """Steps between checkpoints."""
    stop_at: int | None = None
    """Step to stop at, for trying out; the next call goes on from there."""
    schedule: Annotated[Schedule, tyro.conf.Suppress] = field(default_factory=Schedule)

    def run(self) -> None:
        """Renders, trains, publishes and measures."""
        pictures = self.work / "pictures"
        held_out = range(HELD_OUT_FROM, HELD_OUT_FROM + self.held_out)
        torch.set_num_threads(1)
        began = time.monotonic()
        render_scenes(pictures, [*held_out, *range(self.scenes)], processes=os.cpu_count() or 1)
        rendering = time.monotonic() - began
        held = [load_scene(pictures, seed) for seed in held_out]
        with helped(self.work, self.processes, partial(_take_part, self)):
            state = _Training(self)
            state.run(held[: max(1, self.held_out // 5)])
        folder = publish(state.model, self.out, state.used_tokens)
        ref = BackboneRef("clip", "tinyclip", str(folder.absolute()))
        backbone = ClipBackbone.load(ref, towers=("image", "text"))
        record = {
            "settings": {**asdict(self), "work": None, "out": None},
            "seconds": {"rendering": rendering, "training": state.seconds},
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


def _take_part(settings: Train, rank: int) -> None:
    _Training(settings, rank).run([])


class _Batches(Dataset[Batch]):
    """One process's part of every step's batch; an interrupted run goes on with what is left."""

    def __init__(self, scenes: list[ScenePictures], settings: Train, rank: int) -> None:
        self._scenes = scenes
        self._settings = settings
        self._rank = rank

    def __getitem__(self, step: int) -> Batch:
        torch.set_num_threads(1)
        seed, processes = self._settings.seed, self._settings.processes
        share = step / self._settings.steps
        grid, size = self._settings.schedule.draw(share, np.random.default_rng([seed, step]))
        size = size // processes + (self._rank < size % processes)
        rng = np.random.default_rng([seed, step, self._rank])
        return draw_batch(self._scenes, rng, size=size, grid=grid, progress=share)


class _Training:
    """A model under training and all that a checkpoint has to bring back."""

    def __init__(self, settings: Train, rank: int = 0) -> None:
        self._settings = settings
        self._rank = rank
        self._file = settings.work / "checkpoint.pt"
        self.model = build_model(settings.seed)
        self.tutor = build_tutor()
        self._parameters = [*self.model.parameters(), *self.tutor.parameters()]
        matrices = [p for p in self._parameters if p.ndim > 1]
        others = [p for p in self._parameters if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others}]
        self.optimiser = AdamW(groups, settings.rate, (0.9, 0.98), weight_decay=0.0, fused=True)
        self.schedule = LambdaLR(self.optimiser, partial(rate_at, steps=settings.steps))
        self.used_tokens = torch.zeros(self._token_embedding.shape[0], dtype=torch.bool)
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.step = 0
        self._load()

    @property
    def _token_embedding(self) -> nn.Parameter:
        return cast("nn.Parameter", cast("nn.Embedding", self.model.token_embedding).weight)

    def run(self, held: list[ScenePictures]) -> None:
        """Takes the steps that are left; the first process measures and saves now and then."""
        settings = self._settings
        scenes = [load_scene(settings.work / "pictures", seed) for seed in range(settings.scenes)]
        steps = range(self.step, settings.stop_at or settings.steps)
        drawn = _Batches(scenes, settings, self._rank)
        batches = DataLoader(
            drawn,
            None,
            sampler=steps,
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="fork",  # what is spawned would be sent all pictures
        )
        is_first = self._rank == 0
        began = time.monotonic()
        bar = track(batches, total=len(steps), label="Training", show=is_first, unit="steps")
        for step, batch in zip(steps, bar, strict=True):
            terms = self._update(batch)
            self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
            self.step = step + 1
            is_due = self.step % settings.save_every == 0 or self.step == settings.steps
            if is_first and is_due:
                self._measure(terms, held)
                self._save()

    def _update(self, batch: Batch) -> dict[str, float]:
        self.model.train()
        loss, terms = loss_of(self.model, self.tutor, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self._parameters)
        gradient = cast("Tensor", self._token_embedding.grad)
        self.used_tokens |= (gradient != 0).any(dim=1)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.item(), **terms}

    def _measure(self, terms: dict[str, float], held: list[ScenePictures]) -> None:
        self.model.eval()
        accuracies = measure(
            lambda pixels: embed_pictures(self.model, pixels),
            lambda texts: embed_texts(self.model, texts),
            held,
        )
        point = {"step": self.step, "seconds": self.seconds, **terms, **accuracies}
        self.curve.append({name: round(value, 4) for name, value in point.items()})
        print(self.curve[-1], flush=True)

    def _save(self) -> None:
        aside = self._file.with_suffix(".new")
        state = {
            "model": self.model.state_dict(),
            "tutor": self.tutor.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "used_tokens": self.used_tokens,
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
        self.used_tokens, self.curve = state["used_tokens"], state["curve"]
        self.seconds, self.step = state["seconds"], state["step"]


if __name__ == "__main__":
    tyro.cli(Train).run()
