"""One small run on a generated scene, for tests of whatever asks a trained field."""

import copy
import functools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from f3rm.backbones import registry
from f3rm.compat import lazy_lpips
from f3rm.f3rm_config import f3rm_lite_method
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.store import spec
from f3rm.synthetic.scenes import SceneSettings, make_tabletop
from f3rm.synthetic.truth import SceneTruth
from tests.scene_fixtures import need_raycaster
from tests.train_seed import TRAIN_SEED
from tests.viewer.colour_backbone import ADAPTERS, SPECS
from tests.viewer.shown import free_port

SCENE_SEED = 2932
"""One orange box, one red ring, two pink balls, and nothing yellow, green, wooden or black."""

STEPS = 800
"""With 400, one seed of five left floaters where things and their meshes should be."""


@dataclass(frozen=True)
class Run:
    config: Path
    truth: SceneTruth


@pytest.fixture(scope="session")
def colours():
    """Makes the backbones of colours known, for the session."""
    with pytest.MonkeyPatch.context() as patch:
        for name, feature_spec in SPECS.items():
            patch.setitem(spec.PRESETS, name, feature_spec)
        for name, adapter in ADAPTERS.items():
            patch.setitem(registry._SHIPPED, name, adapter)
        yield


@pytest.fixture(scope="session")
def run(colours, train_seed, tmp_path_factory):
    """A run with the heads ``colours`` (with text) and ``mute`` (without)."""
    need_raycaster()
    return _trained(tmp_path_factory.getbasetemp() / "viewed")


@functools.cache
def _trained(root):
    """Trains once, whichever room's tests come first."""
    make_tabletop(root / "scene", SceneSettings(seed=SCENE_SEED, views=24, height=120, width=160))
    config = small_config(root / "scene", root / "runs", "COLOURS+MUTE")
    train(config)
    return Run(config.get_base_dir() / "config.yml", SceneTruth.read(root / "scene"))


def small_config(data, output, feature_type):
    config = copy.deepcopy(f3rm_lite_method.config)
    manager, model = config.pipeline.datamanager, config.pipeline.model
    assert isinstance(manager, FeatureDataManagerConfig)
    assert isinstance(model, FeatureFieldModelConfig)
    manager.data, manager.feature_type, manager.feature_device = data, feature_type, "cpu"
    # Where it has to choose a factor, Nerfstudio opens a picture and never closes it.
    manager.dataparser = NerfstudioDataParserConfig(downscale_factor=1)
    manager.train_num_rays_per_batch = 512
    model.num_nerf_samples_per_ray, model.num_proposal_samples_per_ray = 16, (32, 24)
    model.near_plane, model.far_plane = 0.3, 4.5
    model.log2_hashmap_size, model.num_levels, model.max_res = 13, 6, 256
    config.machine.device_type, config.machine.seed = "cpu", TRAIN_SEED
    config.vis, config.max_num_iterations = "tensorboard", STEPS
    config.steps_per_eval_image = config.steps_per_eval_batch = 1 << 30
    config.output_dir, config.experiment_name, config.timestamp = output, "viewed", "run"
    config.viewer = ViewerConfig(
        websocket_host="127.0.0.1",
        websocket_port=free_port(),
        quit_on_train_completion=True,
        num_rays_per_chunk=1 << 12,
    )
    return config


def train(config, steps=STEPS):
    config.save_config()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(config.machine.seed)
    with lazy_lpips():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        if steps:
            trainer.train()
    return trainer
