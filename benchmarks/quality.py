"""What a feature field costs and reaches on a dataset, next to plain Nerfacto of the same budget.

``python benchmarks/quality.py --data DIR --feature-type DINOCLIP --weights CLIP=...`` trains
f3rm-lite, and plain Nerfacto with the same sizes, rays and seed, one after the other in a process
of its own each. Its last line
is a JSON object with held-out PSNR of both, the cosine of rendered and extracted features per
head beside that of the best constant (the training features' mean), seconds per step and peak
resident memory.
"""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch.nn import functional

from f3rm.compat import lazy_lpips
from f3rm.f3rm_config import f3rm_lite_method
from f3rm.feature_datamanager import FeatureDataManager, FeatureDataManagerConfig


class _PlainNerfacto(NerfactoModel):
    """Nerfacto without its download of LPIPS weights; nothing else differs."""

    def populate_modules(self) -> None:
        with lazy_lpips():
            super().populate_modules()


def _shared(config: Any, target: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(target)} - {"_target"}
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def make_config(arguments: argparse.Namespace, *, features: bool) -> TrainerConfig:
    """Builds f3rm-lite's configuration, or plain Nerfacto's of the same sizes."""
    config = copy.deepcopy(f3rm_lite_method.config)
    manager, model = config.pipeline.datamanager, config.pipeline.model
    if not isinstance(manager, FeatureDataManagerConfig):
        raise TypeError(manager)
    manager.data = Path(arguments.data)
    manager.dataparser = NerfstudioDataParserConfig(downscale_factor=arguments.downscale_factor)
    manager.feature_type, manager.weights = arguments.feature_type, tuple(arguments.weights)
    if not features:
        plain = VanillaDataManagerConfig(**_shared(manager, VanillaDataManagerConfig))
        config.pipeline.datamanager = plain
        nerfacto = NerfactoModelConfig(**_shared(model, NerfactoModelConfig))
        nerfacto._target = _PlainNerfacto  # noqa: SLF001 - how Nerfstudio names a class
        config.pipeline.model = nerfacto
        del config.optimizers["feature_field"]
    config.machine.device_type = arguments.device
    config.max_num_iterations = arguments.steps
    config.vis = "tensorboard"
    config.steps_per_eval_image = config.steps_per_eval_batch = 1 << 30
    config.output_dir = Path(arguments.output)
    config.experiment_name = "f3rm" if features else "nerfacto"
    config.set_timestamp()
    return config


def train(arguments: argparse.Namespace, *, features: bool) -> dict[str, Any]:
    """Trains and evaluates one of the two; returns its figures."""
    config = make_config(arguments, features=features)
    config.print_to_terminal()
    config.save_config()
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # as ns-train does
        seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    result = {
        "seconds_per_step": round(seconds / arguments.steps, 4),
        "peak_rss_gb": round(peak / 1e6, 3),
        "config": str(config.get_base_dir() / "config.yml"),
        **{name: round(value, 4) for name, value in metrics.items() if "num_rays" not in name},
    }
    manager = trainer.pipeline.datamanager
    if isinstance(manager, FeatureDataManager):
        result |= constant_cosine(manager)
    return result


def constant_cosine(manager: FeatureDataManager) -> dict[str, float]:
    """Mean cosine of held-out features to the mean training feature, per head."""
    cosines: dict[str, list[float]] = {name: [] for name in manager.stores}
    for camera, batch in manager.fixed_indices_eval_dataloader:
        for name, values in cosines.items():
            mean = manager.train_dataset.metadata["feature_stats"][name].pca.mean
            target = batch["feature_targets"].rows(name, 0, int(camera.height))
            values.append(float(functional.cosine_similarity(target, mean, dim=-1).mean()))
    return {f"constant_cosine_{k}": round(sum(v) / len(v), 4) for k, v in cosines.items()}


def _worker(
    arguments: argparse.Namespace, results: "multiprocessing.Queue[Any]", *, features: bool
) -> None:
    results.put(train(arguments, features=features))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains both, each in a fresh process so that peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"steps": arguments.steps, "threads": torch.get_num_threads()}
    for name, features in (("f3rm", True), ("nerfacto", False)):
        queue: multiprocessing.Queue[Any] = context.Queue()
        process = context.Process(
            target=_worker, args=(arguments, queue), kwargs={"features": features}
        )
        process.start()
        result[name] = queue.get()
        process.join()
    return result


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dataset with transforms.json")
    parser.add_argument("--feature-type", default="DINOCLIP")
    parser.add_argument("--weights", nargs="*", default=[], help="CLIP=PATH DINO=PATH")
    parser.add_argument("--downscale-factor", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", default="outputs/quality")
    result = measure(parser.parse_args())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
