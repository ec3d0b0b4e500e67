"""Training with segments: targets are averaged over them, evaluation keeps the plain ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from f3rm.errors import DatasetError
from tests.scene_fixtures import write_dataset
from tests.training.test_left_out import NAMES, manager_of, weights

__all__ = ["weights"]


@pytest.fixture
def plain_data(tmp_path):
    return write_dataset(tmp_path / "scene", dict.fromkeys(NAMES, (45, 60)))


def test_training_targets_are_averaged_and_others_are_not(plain_data, weights, tmp_path):
    labels = np.zeros((9, 12), dtype=np.uint8)
    labels[2:6, 3:7], labels[6:, :] = 1, 2
    for number in range(4):
        Image.fromarray(labels).save(tmp_path / f"train_{number}.png")
    plain = manager_of(plain_data, weights)
    pooled = manager_of(plain_data, weights, feature_masks=tmp_path)
    height, width = (int(side) for side in plain._lookups["train"].sizes[0])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    indices = torch.stack((torch.zeros_like(y), y, x), dim=-1).reshape(-1, 3)
    own, averaged = (m._lookups["train"].features("dino", indices) for m in (plain, pooled))
    rows, cols = (torch.arange(n) * s // n for n, s in ((height, 9), (width, 12)))
    at = torch.from_numpy(labels)[rows][:, cols].flatten()
    assert torch.equal(own[at == 0], averaged[at == 0])
    for label in (1, 2):
        inside = averaged[at == label]
        assert torch.equal(inside, inside[:1].expand_as(inside))
        torch.testing.assert_close(inside[0], own[at == label].mean(0), rtol=0.1, atol=0.05)
    index = plain.eval_targets(0), pooled.eval_targets(0)
    assert torch.equal(*(targets.rows("dino", 0, 5) for targets in index))
    with pytest.raises(DatasetError, match=r"no segments of these photographs.*train_0"):
        manager_of(plain_data, weights, feature_masks=tmp_path / "nowhere")
