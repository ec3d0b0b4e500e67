"""Small runs that the evaluation's tests share: trained once per session."""

import copy
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig

from f3rm.f3rm_config import f3rm_lite_method
from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.synthetic.scenes import SceneSettings, make_scene
from tests.backbones import random_clip as clip, random_dino as dino
from tests.nerf_fixtures import FEATURE_SIZES, NERFACTO_SIZES
from tests.run_fixtures import train
from tests.train_seed import TRAIN_SEED

STEPS = 6


@dataclass(frozen=True)
class Runs:
    """Paths of runs on one generated scene of 20 views, two of them held out.

    Attributes:
        root: Folder of everything.
        data: The dataset.
        config: A run with the heads dino and clip, both of random networks.
        silent: A run with the head dino only, which has no text tower.
        plain: A run of plain Nerfacto, configured with its parallel data manager.
    """

    root: Path
    data: Path
    config: Path
    silent: Path
    plain: Path


@pytest.fixture(scope="session")
def runs(train_seed, tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated")
    data = root / "scene"
    settings = SceneSettings(seed=train_seed, views=20, height=36, width=48)
    make_scene(data, "tabletop-distorted", settings)
    clip.write_random_checkpoint(root / "clip", layers=2, image_size=28)
    dino.write_random_checkpoint(root / "dino", width=16, layers=2)
    weights = {"DINO": f"DINO={root / 'dino'}", "CLIP": f"CLIP={root / 'clip'}"}
    both = _train(_field_config(root, data, "DINOCLIP", tuple(weights.values())), "both")
    silent = _train(_field_config(root, data, "DINO", (weights["DINO"],)), "silent")
    return Runs(root, data, both, silent, _train(_plain_config(root, data), "plain"))


def _field_config(root, data, feature_type, weights):
    config = copy.deepcopy(f3rm_lite_method.config)
    manager = config.pipeline.datamanager
    assert isinstance(manager, FeatureDataManagerConfig)
    manager.feature_type, manager.weights, manager.feature_device = feature_type, weights, "cpu"
    for name, value in {**NERFACTO_SIZES, **FEATURE_SIZES}.items():
        setattr(config.pipeline.model, name, value)
    return _shared_settings(config, root, data)


def _plain_config(root, data):
    config = copy.deepcopy(all_methods["nerfacto"])
    config.pipeline.datamanager = VanillaDataManagerConfig()
    config.pipeline.model = NerfactoModelConfig(**NERFACTO_SIZES)
    return _shared_settings(config, root, data)


def _shared_settings(config, root, data):
    config.pipeline.datamanager.data = data
    # Where it has to choose a factor, Nerfstudio opens a picture and never closes it.
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(downscale_factor=1)
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.model.eval_num_rays_per_chunk = 4096
    config.machine.device_type, config.machine.seed = "cpu", TRAIN_SEED
    config.mixed_precision = False
    config.max_num_iterations = STEPS
    config.vis = "tensorboard"
    config.steps_per_eval_image = config.steps_per_eval_batch = 1 << 30
    config.steps_per_eval_all_images = 1 << 30
    config.output_dir = root / "runs"
    return config


def _train(config, name):
    config.experiment_name, config.timestamp = name, "run"
    train(config)
    path = config.get_base_dir() / "config.yml"
    if name == "plain":
        manager = config.pipeline.datamanager
        names = {field.name for field in fields(manager)} - {"_target"}
        kept = {key: getattr(manager, key) for key in names}
        config.pipeline.datamanager = ParallelDataManagerConfig(**kept)
        config.save_config()
    return path


@pytest.fixture
def copied_scene(runs, tmp_path):
    """The dataset with its features, to be changed."""
    return Path(shutil.copytree(runs.data, tmp_path / "copy"))
