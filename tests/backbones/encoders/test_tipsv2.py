"""TIPSv2 against transformers' own forward, on a small random checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from f3rm.backbones import load_backbone
from f3rm.backbones.base import Backbone
from f3rm.backbones.tipsv2 import backbone as tipsv2
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.encoders.random_towers import CONTEXT, WIDTH, write_tipsv2

TEXTS = ["a mug", "A Mug", "a text that is far longer than the context"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tipsv2(tmp_path_factory.mktemp("tipsv2"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneRef("tipsv2", "", str(folder)), towers=("image", "text"))


@pytest.fixture
def library(folder: Path) -> Any:
    return Tipsv2Model.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("size", [(56, 56), (28, 70), (84, 42)], ids=str)
def test_tokens_and_dense_maps_are_the_librarys(backbone, library, make_images, size):
    images = make_images(*size)
    rows, cols = size[0] // 14, size[1] // 14
    taps = ["final@all", "1@all", "-1:attn@all", "head"]
    tokens, last, attention, pooled = backbone.run(images, taps).values()
    vision = library.vision_model
    with torch.no_grad():
        expected = vision(images, output_hidden_states=True, output_attentions=True)
        # The library's own forward, in whose last block every token attends to itself alone.
        own = vision.encoder.layer[-1].attention
        own.forward = lambda states, *_, **__: (own.o_proj(own.v_proj(states)), None)
        values = vision(images).last_hidden_state[:, 2:].unflatten(1, (rows, cols))
    assert tokens.shape == (2, 2 + rows * cols, WIDTH)
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, expected.hidden_states[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(attention, expected.attentions[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.encode_image(images), values, rtol=0, atol=1e-5)


def test_texts_are_the_librarys(backbone, library, folder):
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
    with torch.no_grad():
        expected = library.get_text_features(**tokenizer(TEXTS, **padding, return_tensors="pt"))
    found = backbone.encode_text(TEXTS)
    unit = torch.nn.functional.normalize(expected.pooler_output, dim=-1)
    torch.testing.assert_close(found, unit, rtol=0, atol=1e-5)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-2)
    assert backbone.encode_text([]).shape == (0, WIDTH)
    with pytest.raises(TypeError, match="got one string"):
        backbone.encode_text("mug")


def test_the_contract(backbone, make_images):
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (WIDTH, 14, True)
    assert (backbone.mean, backbone.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    tokens, first, second = backbone.run(make_images(28, 42), ["0@all", "0@cls", "0@reg"]).values()
    assert torch.equal(tokens[:, 0], first)
    assert torch.equal(tokens[:, 1:2], second)
    assert backbone.shape("-1|dense(values)", 28, 42) == (2, 3, WIDTH)
    assert backbone.provenance()["weights"].startswith("xxh3:")


def test_a_tower_that_is_not_asked_for_is_not_there(folder):
    ref = BackboneRef("tipsv2", "", str(folder))
    images = load_backbone(ref)
    with pytest.raises(BackboneUnavailableError, match="text tower of '' was not loaded"):
        images.encode_text(["mug"])
    texts = load_backbone(ref, towers=("text",))
    assert texts.device == torch.device("cpu")
    with pytest.raises(BackboneUnavailableError, match="image tower of '' was not loaded"):
        texts.layers()


def test_its_authors_configuration_files_are_read(
    folder, backbone, tmp_path, make_images, monkeypatch
):
    tiny = {"num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(tipsv2, "_SIZES", {"vit_base": tiny})
    copy = shutil.copytree(folder, tmp_path / "copy")
    stated = {"vision_fn": "vit_base", "embed_dim": WIDTH, "patch_size": 14, "img_size": 56}
    stated |= {"text_hidden_size": WIDTH, "text_mlp_dim": 2 * WIDTH, "num_register_tokens": 1}
    stated |= {"text_num_heads": 2, "text_num_layers": 2, "max_len": CONTEXT}
    words = backbone.text.network.config.vocab_size
    stated |= {"vocab_size": words, "model_type": "tipsv2", "auto_map": {"AutoModel": "x.X"}}
    (copy / "config.json").write_text(json.dumps(stated))
    again = load_backbone(BackboneRef("tipsv2", "", str(copy)), towers=("image", "text"))
    images = make_images(28, 42)
    assert torch.equal(again.encode_image(images), backbone.encode_image(images))
    assert torch.equal(again.encode_text(TEXTS), backbone.encode_text(TEXTS))


def test_without_its_tokenizer_it_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BackboneUnavailableError, match="tokenizer"):
        load_backbone(BackboneRef("tipsv2", "", str(copy)), towers=("text",))
