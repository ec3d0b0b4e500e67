"""Dense features of CLIP's ResNets: what the network gives for the picture moved to each cell."""

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.clip.resnet import RESNET_STRIDE, project_cells, resnet_features, resnet_maps


@pytest.fixture(scope="module")
def visual():
    torch.manual_seed(0)
    tower = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=8, image_size=64, width=8).eval()
    for name, buffer in tower.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return tower


@torch.no_grad()
def test_every_cell_is_the_network_s_own_for_the_picture_moved_there(visual):
    images = torch.randn(1, 3, 192, 224)
    rows, cols = 192 // RESNET_STRIDE, 224 // RESNET_STRIDE
    dense = resnet_features(visual, images).unflatten(1, (rows, cols))
    for row, col in ((8, 9), (9, 14), (10, 11), (15, 16)):
        # The network's own cell number 3 of each direction is centred on pixel 112.
        down, right = (112 - (n * RESNET_STRIDE + RESNET_STRIDE // 2) for n in (row, col))
        moved = torch.roll(F.pad(images, (128,) * 4, mode="replicate"), (down, right), (-2, -1))
        moved = moved[..., 128:-128, 128:-128]
        own = project_cells(visual, resnet_maps(visual, moved)).unflatten(1, (6, 7))[0, 3, 3]
        torch.testing.assert_close(dense[0, row, col], own, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 3), (7, 4)])
def test_any_whole_number_of_cells_is_taken(visual, grid):
    images = torch.rand(2, 3, grid[0] * RESNET_STRIDE, grid[1] * RESNET_STRIDE)
    features = resnet_features(visual, images)
    assert features.shape == (2, grid[0] * grid[1], 16)
    assert features.isfinite().all()
