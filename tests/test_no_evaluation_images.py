"""Runs that hold out no image: they train, and evaluation says that there is nothing to do."""

import logging

import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.eval_utils import eval_setup

from f3rm.errors import DatasetError
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.feature_datamanager import FeatureDataManager, FeatureDataManagerConfig
from f3rm.scene.run_loading import RunError
from tests.run_fixtures import colours, small_config, train
from tests.scene_fixtures import write_dataset

__all__ = ["colours"]


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("fraction", [None, 1.0], ids=["nerfstudios-default", "all"])
def test_six_photographs_train_without_evaluation(tmp_path, caplog, fraction):
    data = write_dataset(tmp_path / "scene", {f"{i}.png": (48, 64) for i in range(6)})
    config = small_config(data, tmp_path / "runs", "COLOURS")
    manager = config.pipeline.datamanager
    assert isinstance(manager, FeatureDataManagerConfig)
    if fraction is not None:
        manager.dataparser = NerfstudioDataParserConfig(
            downscale_factor=1, train_split_fraction=fraction
        )
    manager.train_num_rays_per_batch = 64
    config.max_num_iterations = 3
    config.steps_per_eval_batch = config.steps_per_eval_image = 1
    config.steps_per_eval_all_images = 1
    with caplog.at_level(logging.WARNING, "f3rm"):
        trainer = train(config, steps=3)
    assert [r.message for r in caplog.records if "evaluation is skipped" in r.message] != []
    manager = trainer.pipeline.datamanager
    assert isinstance(manager, FeatureDataManager)
    assert (len(manager.train_dataset), len(manager.eval_dataset)) == (6, 0)
    for ask in (manager.next_eval, manager.next_eval_image):
        with pytest.raises(DatasetError, match="nothing to evaluate"):
            ask(0)
    run = config.get_base_dir() / "config.yml"
    with pytest.raises(RunError, match="must hold out at least one photograph"):
        evaluate_run(run, device="cpu")
    pipeline = eval_setup(run)[1]
    with pytest.raises(DatasetError, match=r"nothing to evaluate.*--train-split-fraction"):
        pipeline.get_average_eval_image_metrics(get_std=True)  # what ns-eval calls
