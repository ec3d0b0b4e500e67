"""What half precision does to features: cosine to float32, and whether prompts keep their order.

``python benchmarks/precision.py DATA --feature-type CLIP --prompts "a red mug" "a table"`` takes
photographs of a dataset, and weights of your own by ``--weights CLIP=PATH``. Every image goes
through the extractor once per precision; texts are embedded in float32. Prints JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from f3rm.backbones.base import Backbone
from f3rm.backbones.registry import load_backbone
from f3rm.extract.encoder import Encoder
from f3rm.extract.job import Job
from f3rm.extract.plan import ChunkPlan
from f3rm.extract.worker import ModelWorker
from f3rm.store.device import resolve_device
from f3rm.store.images import inspect_images
from f3rm.store.items import read_items
from f3rm.store.spec import FeatureSpec, Precision, resolve_feature_type

HALF: tuple[Precision, ...] = ("bfloat16", "float16")

Maps = list[Float[Tensor, "cells channels"]]


def features_of(
    spec: FeatureSpec, backbone: Backbone, plans: Sequence[ChunkPlan], precision: Precision
) -> tuple[Maps, float]:
    """Extracts every image in a precision, one at a time; returns unit features and seconds."""
    images = [info for plan in plans for info in plan.images]
    encoder = Encoder(backbone, replace(spec, precision=precision), images, batch_size=1)
    maps: Maps = []
    start = time.perf_counter()
    for plan in plans:
        for info in plan.images:
            (features,) = encoder.features([encoder.read(plan, info)], plan)
            maps.append(functional.normalize(features.cpu().flatten(0, 2), dim=-1))
    return maps, time.perf_counter() - start


def order_of(maps: Maps, texts: Float[Tensor, "prompts channels"]) -> Int[Tensor, "cells prompts"]:
    """Ranks prompts in every cell, the best first."""
    return torch.cat([features @ texts.T for features in maps]).argsort(dim=-1, descending=True)


def best_cells(maps: Maps, texts: Float[Tensor, "prompts channels"]) -> Int[Tensor, "images num"]:
    """Ranks prompts in every image by their best cell, the best first."""
    best = torch.stack([(features @ texts.T).amax(dim=0) for features in maps])
    return best.argsort(dim=-1, descending=True)


def compare(exact: Maps, half: Maps, texts: Float[Tensor, "prompts channels"] | None) -> dict:
    """Returns one minus the cosine, and shares of cells and images that rank prompts alike."""
    loss = 1 - torch.cat([(a * b).sum(dim=-1) for a, b in zip(exact, half, strict=True)]).double()
    found = {
        "mean_loss": loss.mean().item(),
        "p99_loss": loss.kthvalue(max(1, round(0.99 * len(loss)))).values.item(),
        "worst_loss": loss.max().item(),
    }
    if texts is None:
        return found
    for name, rank in (("cells", order_of), ("images", best_cells)):
        same: Bool[Tensor, "ranked prompts"] = rank(exact, texts) == rank(half, texts)
        found[f"{name}_same_first"] = same[:, 0].float().mean().item()
        found[f"{name}_same_order"] = same.all(dim=-1).float().mean().item()
    return found


def measure(arguments: argparse.Namespace) -> dict:
    """Extracts in float32 and in both half types, and compares."""
    (spec,) = resolve_feature_type(arguments.feature_type, weights=arguments.weights)
    spec = replace(spec, prep=replace(spec.prep, size=arguments.side or spec.prep.size))
    device = resolve_device(arguments.device)
    backbone = load_backbone(spec.backbone, device=device, towers=("image",))
    items = read_items(arguments.data)
    images = inspect_images(items[:: max(1, len(items) // arguments.images)][: arguments.images])
    job = Job([info.item for info in images], spec, arguments.data, shard_size=1)
    plans = ModelWorker.of(job, images, {}, backbone).plan(())
    texts = None
    if arguments.prompts and backbone.has_text:
        tower = load_backbone(spec.backbone, device=device, towers=("text",))
        texts = functional.normalize(tower.encode_text(arguments.prompts).cpu().float(), dim=-1)
    exact, seconds = features_of(spec, backbone, plans, "float32")
    found = {"float32": {"seconds": seconds}}
    for precision in HALF:
        half, seconds = features_of(spec, backbone, plans, precision)
        found[precision] = {"seconds": seconds, **compare(exact, half, texts)}
    return {
        "feature_type": spec.name,
        "device": str(device),
        "short_side": spec.prep.size,
        "images": len(images),
        "cells": sum(len(features) for features in exact),
        "prompts": len(arguments.prompts) if texts is not None else 0,
        "precisions": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="dataset folder with transforms.json")
    parser.add_argument("--feature-type", default="TINYCLIP", help="one type, as of f3rm extract")
    parser.add_argument("--weights", nargs="*", default=(), help="e.g. CLIP=PATH")
    parser.add_argument("--prompts", nargs="*", default=(), help="phrases; the type must have text")
    parser.add_argument("--images", type=int, default=10, help="how many, evenly spaced")
    parser.add_argument("--side", type=int, default=None, help="short side in pixels")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
