"""SigLIP2 against transformers' own forward, of a fixed resolution and NaFlex."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from f3rm.backbones import load_backbone
from f3rm.backbones.base import Backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError, TapError
from tests.backbones.encoders.random_towers import CONTEXT, WIDTH, write_siglip2

KINDS = ("fixed", "naflex")
TEXTS = ["a mug", "A Mug", "a text that is far longer than the context"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("siglip2")
    return {kind: write_siglip2(root / kind, flexible=kind == "naflex") for kind in KINDS}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {
        kind: load_backbone(BackboneRef("siglip2", "", str(folder)), towers=("image", "text"))
        for kind, folder in folders.items()
    }


def library(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


def inputs(kind: str, images: Tensor) -> dict[str, Any]:
    """What the library's image tower takes."""
    if kind == "fixed":
        return {"pixel_values": images, "interpolate_pos_encoding": True}
    patches = torch.stack([convert_image_to_patches(image, 16) for image in images])
    grid = torch.tensor([[images.shape[2] // 16, images.shape[3] // 16]] * len(images))
    mask = torch.ones(patches.shape[:2], dtype=torch.int64)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid}


@pytest.mark.parametrize("size", [(64, 64), (32, 80), (96, 48)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_librarys(backbones, folders, make_images, kind, size):
    images = make_images(*size)
    taps = ["final@all", "final", "-1:attn@all", "head"]
    tokens, patches, attention, pooled = backbones[kind].run(images, taps).values()
    assert patches.shape == (2, size[0] // 16, size[1] // 16, WIDTH)
    assert torch.equal(patches.flatten(1, 2), tokens)
    vision = library(folders[kind]).vision_model
    with torch.no_grad():
        expected = vision(**inputs(kind, images), output_attentions=True)
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(attention, expected.attentions[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_patch_alone_is_the_image_embedding(backbones, folders, make_images, kind):
    images = make_images(16, 16)
    with torch.no_grad():
        pooled = library(folders[kind]).vision_model(**inputs(kind, images)).pooler_output
    (dense,) = backbones[kind].run(images, ["-1|dense(values)"]).values()
    torch.testing.assert_close(dense[:, 0, 0], pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (32, 80)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_is_pooled_as_if_it_were_the_only_one(
    backbones, folders, make_images, kind, size
):
    images = make_images(*size, batch=1)
    features = backbones[kind].encode_image(images).flatten(0, 2)
    network = library(folders[kind]).vision_model
    with torch.no_grad():
        tokens = network(**inputs(kind, images)).last_hidden_state[0]
        expected = torch.cat([network.head(token[None, None]) for token in tokens])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_librarys(backbones, folders, kind):
    tokenizer = Siglip2Tokenizer.from_pretrained(folders[kind])
    tokens = tokenizer(
        TEXTS, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )["input_ids"]
    assert (tokens == 1).sum(dim=1).tolist() == [1, 1, 1]  # one end token, kept when cut off
    with torch.no_grad():
        expected = library(folders[kind]).get_text_features(tokens).pooler_output
    found = backbones[kind].encode_text(TEXTS)
    unit = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(found, unit, rtol=0, atol=1e-5)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-2)


def test_the_contract(backbones):
    backbone = backbones["fixed"]
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (WIDTH, 16, True)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert backbone.shape("final@all", 32, 48) == (6, WIDTH)
    with pytest.raises(TapError, match="has no class token"):
        backbone.check(["final@cls"])
    with pytest.raises(TapError, match="no dense rule 'maskclip'; known are values"):
        backbone.check(["-1|dense(maskclip)"])


def test_what_lacks_a_head_or_a_tokenizer_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders["fixed"], tmp_path / "copy")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BackboneUnavailableError, match="tokenizer"):
        load_backbone(BackboneRef("siglip2", "", str(copy)), towers=("text",))
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneUnavailableError, match="has no head"):
        load_backbone(BackboneRef("siglip2", "", str(copy)))
