"""PE-Core against timm's and open_clip's own forwards; needs newer ones than Nerfstudio pins.

:mod:`tests.backbones.encoders.test_pe_environment` runs this file where they are installed.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from f3rm.backbones import load_backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError

pytest.importorskip("timm", "1.0.17")
if int(open_clip.__version__.partition(".")[0]) < 3:
    pytest.skip("open_clip before 3 has no PE", allow_module_level=True)

from f3rm.backbones.clip.pe import PeBackbone, make_trunk
from f3rm.backbones.clip.source import ClipSource

NAME = "PE-Core-T-16-384"
REF = BackboneRef("pe", NAME, "meta")


def published_config(name) -> Any:
    config = open_clip.get_model_config(name)
    assert config is not None
    return config


def source(name=NAME):
    half = (0.5, 0.5, 0.5)
    return ClipSource(published_config(name), Path("unused"), half, half)


def random_weights(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def trunk():
    return random_weights(make_trunk(source(), depth=3))


@pytest.fixture(scope="module")
def backbone(trunk):
    made = PeBackbone(REF, source())
    made.show(trunk)
    return made


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (384, 384)], ids=str)
def test_tokens_and_embeddings_are_timms(backbone, trunk, size):
    images = torch.randn(2, 3, *size)
    tokens, patches, embedding = backbone.run(images, ["final@all", "final", "head"]).values()
    expected = trunk.forward_features(images)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(embedding, trunk(images), rtol=0, atol=1e-5)
    assert patches.shape == (2, size[0] // 16, size[1] // 16, trunk.embed_dim)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)], ids=str)
def test_a_dense_feature_is_the_embedding_of_a_patch_that_is_pooled_alone(backbone, trunk, size):
    images = torch.randn(2, 3, *size)
    dense = backbone.encode_image(images)
    patches = trunk.forward_features(images)[:, 1:]
    alone = [trunk.forward_head(patches[:, index : index + 1]) for index in range(patches.shape[1])]
    expected = torch.stack(alone, dim=1)
    torch.testing.assert_close(dense.flatten(1, 2), expected, rtol=0, atol=1e-5)
    assert dense.shape == (2, size[0] // 16, size[1] // 16, backbone.channels)


def test_both_towers_are_loaded_from_a_folder(tmp_path):
    config = published_config(NAME)
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 2, "vocab_size": 49408}
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    model = random_weights(open_clip.CustomTextCLIP(**settings))
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    published = {"model_cfg": config, "preprocess_cfg": statistics}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(published))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    ref = BackboneRef("pe", NAME, str(tmp_path))
    both = load_backbone(ref, towers=("image", "text"))
    assert (both.channels, both.patch_size, both.has_text) == (512, 16, True)
    images = torch.randn(1, 3, 384, 384)
    (embedding,) = both.run(images, ["head"]).values()
    torch.testing.assert_close(embedding, model.encode_image(images), rtol=0, atol=1e-5)
    texts = ["a red mug", "Two dogs!"]
    tokens = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(texts)
    expected = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(both.encode_text(texts), expected, rtol=0, atol=1e-5)
    alone = load_backbone(ref, towers=("text",))
    torch.testing.assert_close(alone.encode_text(texts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["PE-Core-B-16", "PE-Core-L-14-336", "PE-Core-bigG-14-448"])
def test_published_models_have_the_names_and_shapes_that_are_read(name):
    config = published_config(name)
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.device("meta"):
        model: Any = open_clip.CustomTextCLIP(**settings)
        ours = make_trunk(source(name)).state_dict()
    theirs = model.visual.trunk.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert PeBackbone(REF, source(name)).patch_size == model.visual.trunk.patch_embed.patch_size[0]


def test_other_clips_are_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": open_clip.get_model_config("ViT-B-32")})
    )
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(BackboneUnavailableError, match="no PE-Core"):
        load_backbone(BackboneRef("pe", "", str(tmp_path)))
