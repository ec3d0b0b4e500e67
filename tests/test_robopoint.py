"""RoboPoint's features, from a sharded checkpoint to a trained field of 5120 channels."""

from typing import Any

import pytest
import torch

from f3rm.compat import lazy_lpips
from f3rm.store.reader import FeatureStore
from tests.backbones.llava_checkpoint import LANGUAGE_SHARD, make_parts, write_llava
from tests.run_fixtures import small_config, train
from tests.scene_fixtures import write_dataset

CHANNELS, STEPS = 5120, 6


@pytest.mark.slow
def test_5120_channels_are_distilled(train_seed, tmp_path):
    sizes = {f"{number}.png": (48, 64) for number in range(6)}
    scene = write_dataset(tmp_path / "scene", sizes)
    weights = write_llava(tmp_path / "robopoint", channels=CHANNELS)
    (weights / f"{LANGUAGE_SHARD}.safetensors").unlink()
    config = small_config(scene, tmp_path / "runs", "ROBOPOINTproj+ROBOPOINTnoproj")
    manager: Any = config.pipeline.datamanager
    manager.weights = (f"ROBOPOINTproj={weights}", f"ROBOPOINTnoproj={weights}")
    manager.dataparser.train_split_fraction = 0.7
    config.max_num_iterations = STEPS
    trainer = train(config, steps=0)
    field = trainer.pipeline.model.feature_field
    before = {name: value.detach().clone() for name, value in field.named_parameters()}
    with lazy_lpips():
        trainer.train()

    store = FeatureStore.open(scene / "features" / "robopointproj")
    assert (store.channels, store.grid_size(0)) == (CHANNELS, (24, 24))
    assert FeatureStore.open(scene / "features" / "robopointnoproj").channels == 64
    cells = store.feature_map(0)
    projector: Any = make_parts(CHANNELS)[1]
    bias = projector[-1].bias
    assert (cells - bias).abs().max() > 1e-2  # features, not what the projector adds to anything
    after = dict(field.named_parameters())
    moved = [value for name, value in after.items() if not torch.equal(value, before[name])]
    assert any(value.shape[0] == CHANNELS for value in moved)
    _, batch = trainer.pipeline.datamanager.next_train(0)
    assert batch["feature_robopointproj"].shape == (512, CHANNELS)
    outputs, losses, _ = trainer.pipeline.get_train_loss_dict(STEPS)
    assert outputs["feature_robopointproj"].shape == (512, CHANNELS)
    assert all(torch.isfinite(loss) for loss in losses.values())
