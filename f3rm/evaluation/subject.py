"""What an evaluation measures: a trained field or a splat, its photographs and its 2D teacher."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.errors import CacheError, F3rmError
from f3rm.evaluation.predictions import psnr
from f3rm.extract.cache import cache_roots
from f3rm.feature_datamanager import FeatureLookup
from f3rm.scene.run_loading import LoadedRun, Split
from f3rm.scene.scene import Scene
from f3rm.scene.source import Source
from f3rm.scene.splat.loading import LoadedSplat
from f3rm.store.images import read_image
from f3rm.store.reader import FeatureStore


@dataclass(frozen=True)
class Subject:
    """A scene under evaluation.

    Attributes:
        scene: The scene.
        run: What it was opened from.
        stores: The teacher's features by head; empty without a valid cache.
        train: The photographs that it was trained on, or that its features were lifted from.
        held_out: The others, on which it is measured.
    """

    scene: Scene
    run: LoadedRun | LoadedSplat
    stores: dict[str, FeatureStore]
    train: Split
    held_out: Split

    @classmethod
    def of(cls, scene: Scene) -> "Subject":
        """Finds a scene's teacher, where its features are still those that it has.

        Raises:
            CacheError: If a feature cache is damaged.
            F3rmError: If it is a packed scene.
        """
        run = scene.run
        if isinstance(run, LoadedRun):
            return cls(scene, run, run.stores, run.train, run.held_out)
        if not isinstance(run, LoadedSplat):
            raise F3rmError(
                f"A packed scene has no photographs, got {run.config_path}. Evaluate the run."
            )
        stores = _stores(run)
        return cls(
            scene, run, stores, _with_lookup(run.train, stores), _with_lookup(run.held_out, stores)
        )

    @property
    def source(self) -> Source:
        """Its answers."""
        return self.scene.source

    def picture(self, index: int) -> tuple[Cameras, Float[Tensor, "height width channels"]]:
        """Returns camera and photograph, in [0, 1], of a held-out view."""
        run = self.run
        if isinstance(run, LoadedRun):
            camera, batch = run.picture(index)
            return camera, batch["image"]
        photograph = torch.from_numpy(read_image(run.held_out_paths[index], (0.0, 0.0, 0.0)))
        return self.held_out.cameras[index : index + 1], photograph.float() / 255

    def psnr(self, outputs: CameraOutputs, photograph: Tensor) -> float:
        """Returns the PSNR of a rendered view, in dB."""
        run = self.run
        if isinstance(run, LoadedRun):
            return psnr(run.model, outputs, photograph)
        error = (outputs["rgb"] - photograph.to(outputs["rgb"])).square().mean()
        return float(-10 * torch.log10(error))

    def about(self) -> dict[str, Any]:
        """Returns which run it is, for the report."""
        run = self.run
        about: dict[str, Any] = {"config": str(run.config_path)}
        if isinstance(run, LoadedRun):
            seed = run.config.machine.seed
            return {
                **about,
                "method": run.config.method_name,
                "step": run.step,
                "training_seed": seed,
            }
        return {**about, "method": "splat", "step": None, "training_seed": None}


def _stores(splat: LoadedSplat) -> dict[str, FeatureStore]:
    """Opens the caches that a splat's features were lifted from."""
    found: dict[str, FeatureStore] = {}
    for name, provenance in splat.provenance.items():
        for root in cache_roots(splat.data, None):
            with contextlib.suppress(CacheError):
                store = FeatureStore.open(root / name)
                if store.manifest.key == provenance.get("features"):
                    found.setdefault(name, store)
    return found


def _with_lookup(split: Split, stores: dict[str, FeatureStore]) -> Split:
    if not stores:
        return split
    sizes = torch.cat((split.cameras.height, split.cameras.width), dim=-1).cpu()
    return replace(
        split, lookup=FeatureLookup(stores, names=split.names, sizes=sizes, mode="bilinear")
    )
