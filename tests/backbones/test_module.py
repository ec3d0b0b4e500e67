"""Any module as a backbone, against torchvision's own feature extractor."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models.feature_extraction import create_feature_extractor

from f3rm.backbones import load_backbone
from f3rm.backbones.module.backbone import ModuleBackbone
from f3rm.backbones.weights import weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError, TapError

RESNET = BackboneRef("module", "torchvision:resnet18", "random")
STAGES = {"conv1": "relu", "res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class Trunk(nn.Module):
    """Calls one activation twice, and works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.activation(self.second(self.activation(self.first(images)))))


@pytest.fixture(scope="module")
def resnet() -> ModuleBackbone:
    return ModuleBackbone.load(RESNET)


def test_vissl_layers_equal_torchvisions_extractor(resnet, make_images):
    images = make_images(70, 96)
    trunk = dict(resnet._modules)["trunk"]
    nodes = {**STAGES, "res5avg": "avgpool", "head": "fc"}
    extractor = create_feature_extractor(trunk, {node: name for name, node in nodes.items()})
    with torch.no_grad():
        expected = extractor(images)
    asked = ["head", "res2|avg(16,8,0)", "res5", "conv1|avg(10,10,4)", "res4|flatten", "res3|mean"]
    head, pooled, last, stem, flat, mean = resnet.run(images, [*asked]).values()
    torch.testing.assert_close(head, expected["head"])
    torch.testing.assert_close(pooled.permute(0, 3, 1, 2), F.avg_pool2d(expected["res2"], 16, 8, 0))
    torch.testing.assert_close(last.permute(0, 3, 1, 2), expected["res5"])
    torch.testing.assert_close(stem.permute(0, 3, 1, 2), F.avg_pool2d(expected["conv1"], 10, 10, 4))
    torch.testing.assert_close(flat, expected["res4"].flatten(1))
    torch.testing.assert_close(mean, expected["res3"].mean((2, 3)))
    for tap in asked:
        assert (
            resnet.shape(tap, 70, 96) == tuple(resnet.run(images[:1], [tap]).popitem()[1].shape)[1:]
        )


def test_one_pass_stops_at_the_deepest_module(resnet, make_images):
    ran: list[str] = []
    trunk = resnet._modules["trunk"]
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in trunk.named_children()
    ]
    found = resnet.run(make_images(64, 64), ["res3|mean", "res2|mean", "res3|amax"])
    for handle in handles:
        handle.remove()
    assert ran == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    assert [str(tap) for tap in found] == ["res3|mean", "res2|mean", "res3|amax"]


def test_images_become_the_deepest_map(resnet, make_images):
    assert (resnet.channels, resnet.patch_size) == (512, 32)
    assert resnet.encode_image(make_images(64, 96)).shape == (2, 2, 3, 512)
    with pytest.raises(ValueError, match="whole number of 32-pixel"):
        resnet.encode_image(make_images(70, 96))


def test_a_trunk_and_head_of_ones_own(make_images):
    torch.manual_seed(0)
    trunk = Trunk()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    ref = BackboneRef("module", "mine", "none")
    backbone = ModuleBackbone(ref, trunk, head=head, probe_size=32)
    images = make_images(20, 24)
    asked = ["head", "head.0|flatten", "trunk", "activation", "second", "first"]
    out, pooled, last, second_call, second, first = backbone.run(images, asked).values()
    with torch.no_grad():
        torch.testing.assert_close(first.permute(0, 3, 1, 2), trunk.first(images))
        before = trunk.second(trunk.first(images).relu())
        torch.testing.assert_close(second.permute(0, 3, 1, 2), before)  # not what ReLU made of it
        torch.testing.assert_close(second_call.permute(0, 3, 1, 2), before.relu())
        torch.testing.assert_close(last.permute(0, 3, 1, 2), trunk(images))
        torch.testing.assert_close(pooled, trunk(images).mean((2, 3)))
        torch.testing.assert_close(out, head(trunk(images)))


def test_timm_models_with_patches():
    backbone = load_backbone(BackboneRef("module", "timm:vit_tiny_patch16_224", "random"))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = backbone.run(images, ["blocks.1", "blocks.1@all", "blocks.1@cls"])
    patches, tokens, class_token = found.values()
    assert patches.shape == (1, 14, 14, 192)
    assert torch.equal(patches.flatten(1, 2), tokens[:, 1:])
    assert torch.equal(class_token, tokens[:, 0])
    with pytest.raises(TapError, match="no facet 'query'"):
        backbone.check(["blocks.1:query"])
    with pytest.raises(TapError, match="did you mean blocks"):
        backbone.check(["block.1"])


def test_weights_come_from_files_of_training_codes(resnet, make_images, tmp_path):
    state = resnet._modules["trunk"].state_dict()
    generator = torch.Generator().manual_seed(1)
    state = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() and "running_var" not in name
        else tensor
        for name, tensor in state.items()
    }
    file = tmp_path / "trunk.pth"
    wrapped = {f"_feature_blocks.{name}": t for name, t in state.items() if "fc." not in name}
    torch.save({"state_dict": wrapped}, file)
    ref = BackboneRef("module", "torchvision:resnet18", str(file))
    loaded: Any = ModuleBackbone.load(ref)
    assert torch.equal(
        loaded._modules["trunk"].layer1[0].conv1.weight, state["layer1.0.conv1.weight"]
    )
    assert weights_identity(ref).startswith("xxh3:")
    del wrapped["_feature_blocks.conv1.weight"]
    torch.save(wrapped, file)
    with pytest.raises(BackboneUnavailableError, match="does not fit the model"):
        ModuleBackbone.load(ref)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("resnet18", "random", "must look like torchvision:resnet50"),
        ("torchvision:resnet19", "random", "did you mean .*resnet18"),
        ("no_such_package:make", "random", "cannot be imported"),
        ("math:floor", "random", "cannot build it"),
        ("builtins:dict", "random", "gave dict, no nn.Module"),
        ("timm:resnet18", "imagenet", "weights of timm models are a file or 'random'"),
    ],
)
def test_unusable_references_say_why(model, weights, message):
    with pytest.raises(BackboneUnavailableError, match=message):
        ModuleBackbone.load(BackboneRef("module", model, weights))


def test_random_weights_are_the_same_each_time(resnet: Any):
    before = torch.get_rng_state()
    again: Any = ModuleBackbone.load(RESNET)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (backbone._modules["res2"][0].conv1.weight for backbone in (resnet, again))
    assert torch.equal(first, second)
    with pytest.raises(BackboneUnavailableError, match="no text tower"):
        ModuleBackbone.load(RESNET, towers=("text",))
