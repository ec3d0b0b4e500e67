"""MaskCLIP features of CLIP's ResNets, at a quarter of the network's stride.

Source: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022, section 3.2.
"""

from itertools import product
from typing import cast

from jaxtyping import Float
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

RESNET_STRIDE = 8
"""Pixels between the cells of a ResNet's features."""


def resnet_features(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Computes MaskCLIP's vector per cell.

    Cells are 8 pixels apart, a quarter of the network's stride: the last two stages run once for
    each of the 2 x 2 offsets of their cells, and the results are interleaved. A cell's vector
    equals the network's own for the picture shifted to it, so no training is needed.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
    section 3.2 (shift and stitch). Different here: the stages before the last two run once.

    Args:
        visual: A ResNet in evaluation mode.
        images: Normalised RGB, a whole number of 8-pixel cells high and wide.

    Returns:
        Features in the space of the text embeddings, not normalised, in the tower's dtype; cells
        row by row.
    """
    # The centre of the network's first cell is 16 pixels inside its input. With a border of 12
    # pixels it is 4 pixels inside the picture, the centre of an 8-pixel cell.
    padded = F.pad(images, (RESNET_STRIDE + RESNET_STRIDE // 2,) * 4, mode="replicate")
    third = _at_all_offsets(visual.layer3, _second_maps(visual, padded))
    rows, cols = images.shape[-2] // RESNET_STRIDE, images.shape[-1] // RESNET_STRIDE
    maps = third.new_empty(len(images), _channels(visual.layer4), rows, cols)
    for down, right in product(range(2), range(2)):
        part = _at_all_offsets(visual.layer4, third[..., down::2, right::2])
        maps[..., down::2, right::2] = part
    return project_cells(visual, maps)


def _at_all_offsets(
    stage: nn.Sequential, maps: Float[Tensor, "batch hidden rows_before cols_before"]
) -> Float[Tensor, "batch channels rows cols"]:
    """Runs a stage that halves its input at each of its 2 x 2 offsets, and interleaves.

    The result is as dense as the input, with one row and one column fewer.
    """
    rows, cols = maps.shape[-2] - 1, maps.shape[-1] - 1
    result = maps.new_empty(len(maps), _channels(stage), rows, cols)
    for down, right in product(range(min(2, rows)), range(min(2, cols))):
        result[..., down::2, right::2] = stage(maps[..., down:, right:])
    return result


def _channels(stage: nn.Sequential) -> int:
    """Returns the channels after the last bottleneck of a stage."""
    return cast("Bottleneck", stage[-1]).conv3.out_channels


def resnet_maps(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch hidden rows cols"]:
    """Computes the last feature map, the input of the attention pooling: stride 32."""
    return visual.layer4(visual.layer3(_second_maps(visual, images)))


def _second_maps(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch hidden rows cols"]:
    maps = visual.stem(images.to(visual.conv1.weight.dtype))
    return visual.layer2(visual.layer1(maps))


def project_cells(
    visual: ModifiedResNet, maps: Float[Tensor, "batch hidden rows cols"]
) -> Float[Tensor, "batch patches channels"]:
    """Passes each cell alone through the value and output projections of the attention pooling.

    The pooling takes the place of a transformer's last block (Zhou et al., section 3.2).
    """
    pool = visual.attnpool
    return pool.c_proj(pool.v_proj(maps.flatten(2).transpose(1, 2)))
