"""``f3rm models``, ``f3rm layers`` and ``f3rm shape`` as a user calls them."""

import pytest

from f3rm.backbones.cards import CARDS
from f3rm.scripts.cli import main
from f3rm.store.spec import PRESETS
from tests.backbones.random_clip import write_random_checkpoint
from tests.viewer.colour_backbone import SPECS


@pytest.fixture
def weights(tmp_path):
    return f"CLIP={write_random_checkpoint(tmp_path / 'clip')}"


def test_models_lists_types_and_adapters(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in PRESETS)
    assert "DINOCLIP" in out
    (line,) = (line for line in out.splitlines() if line.startswith("RADIO "))
    assert line.endswith("  652           NVIDIA Open Model License")
    own = {name: spec for name, spec in PRESETS.items() if spec not in SPECS.values()}
    assert {spec.backbone.model for spec in own.values()} == set(CARDS)
    (line,) = (line for line in out.splitlines() if line.startswith("adapters: "))
    adapters = line.removeprefix("adapters: ").split(", ")  # and those of other tests' packages
    assert {"clip", "dino", "dinov2", "llava", "module", "proxyclip", "vae"} <= set(adapters)


def test_layers_lists_what_taps_can_name(weights, capsys):
    assert main(["layers", "--weights", weights]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["layer", "kind", "channels"]
    names = [line.split()[0] for line in lines[2:-1]]
    assert names == ["embed", "0", "1", "2", "final", "head"]
    assert "query, key, value, attn" in lines[3]
    assert lines[-1] == "dense rules: maskclip, clearclip, nacclip, sclip, pearl"


def test_shape_says_what_extraction_would_give(weights, capsys):
    size = ["--height", "480", "--width", "640", "--weights", weights]
    assert main(["shape", *size, "--feature-type", "CLIP[side=140]"]) == 0
    assert capsys.readouterr().out == (
        "clip: -1|dense(maskclip) at 140 x 182 pixels gives 10 x 13 x 32\n"
    )
    taps = ["--taps", "-1:query@all", "final|adaptive_avg(2)|flatten"]
    assert main(["shape", *size, "--feature-type", "CLIP[side=140]", *taps]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "clip: -1:query@all at 140 x 182 pixels gives 131 x 64",
        "clip: final|adaptive_avg(2)|flatten at 140 x 182 pixels gives 256",
    ]


def test_mistakes_are_one_line(weights, capsys):
    size = ["--height", "48", "--width", "64", "--weights", weights]
    assert main(["shape", *size, "--taps", "-1:qery"]) == 1
    assert capsys.readouterr().err == "There is no facet 'qery'; did you mean query, key?\n"
    assert main(["layers", "--feature-type", "CLOP"]) == 1
    assert "Did you mean CLIP" in capsys.readouterr().err


def test_a_backbone_is_described_without_a_feature_type(capsys):
    assert main(["layers", "--backbone", "tinyclip"]) == 0  # a feature type's name is its model
    assert capsys.readouterr().out.splitlines()[-1] == "dense rules: maskclip"
    size, resnet = ["--height", "100", "--width", "64"], "module:torchvision:resnet18@random"
    assert main(["shape", *size, "--backbone", resnet, "--taps", "res4", "res5avg"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "torchvision:resnet18: res4 at 352 x 224 pixels gives 22 x 14 x 256",
        "torchvision:resnet18: res5avg at 352 x 224 pixels gives 1 x 1 x 512",
    ]
    assert main(["shape", *size, "--backbone", "resnet"]) == 1
    assert "--tap" in capsys.readouterr().err
