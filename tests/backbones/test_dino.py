"""DINO, DINOv2 and DINOv3 against transformers' own forward, on small random checkpoints."""

import json
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, ViTConfig

from f3rm.backbones import load_backbone
from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.random_dino import DinoFamily, write_random_checkpoint

FAMILIES = get_args(DinoFamily)
ADAPTERS = {family: family.removesuffix("_with_registers") for family in FAMILIES}
PREFIX_TOKENS = {"dino": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3": 5}
PATCH = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dino")
    return {family: write_random_checkpoint(root / family, family=family) for family in FAMILIES}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {
        family: load_backbone(BackboneRef(ADAPTERS[family], "", str(folder)))
        for family, folder in folders.items()
    }


def test_dinov3_facets_and_attention_are_the_librarys(folders, backbones, make_images):
    images = make_images(24, 40)
    library = AutoModel.from_pretrained(folders["dinov3"], attn_implementation="eager").eval()
    seen: list[Tensor] = []
    library.model.layer[1].attention.q_proj.register_forward_hook(
        lambda *call: seen.append(call[2])
    )
    with torch.no_grad():
        expected = library(images, output_attentions=True, output_hidden_states=True)
    found = backbones["dinov3"].run(images, ["1:query@all", "1:attn@all", "1@all", "embed@all"])
    queries, attention, tokens, embedded = found.values()
    torch.testing.assert_close(queries, seen[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(attention, expected.attentions[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens, expected.hidden_states[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(embedded, expected.hidden_states[0], rtol=0, atol=1e-5)


def library_tokens(folder: Path, images: Tensor) -> Tensor:
    """All tokens after the final norm, (batch, prefix + rows * cols, channels), eager attention."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    options = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    with torch.no_grad():
        return model(images, **options).last_hidden_state


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 56), (64, 40)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_librarys_patch_tokens(folders, backbones, make_images, family, size):
    images = make_images(*size)
    features = backbones[family].encode_image(images)
    rows, cols = size[0] // PATCH, size[1] // PATCH
    assert features.shape == (2, rows, cols, 48)
    tokens = library_tokens(folders[family], images)
    assert tokens.shape[1] == PREFIX_TOKENS[family] + rows * cols
    for row in range(rows):
        for col in range(cols):
            token = tokens[:, PREFIX_TOKENS[family] + row * cols + col]
            torch.testing.assert_close(features[:, row, col], token, rtol=0, atol=1e-5)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), data=st.data())
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_patch_changes_its_own_cell_most(backbones, family, rows, cols, data):
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, rows * PATCH, cols * PATCH, generator=generator)
    changed = images.clone()
    changed[..., row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] += 3
    backbone = backbones[family]
    change = (backbone.encode_image(changed) - backbone.encode_image(images)).norm(dim=-1)[0]
    assert divmod(int(change.argmax()), cols) == (row, col)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract(backbones, folders, make_images, family):
    backbone = backbones[family]
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (48, PATCH, False)
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert backbone.device == torch.device("cpu")
    features = backbone.encode_image(make_images(16, 16))
    assert features.dtype == torch.float32
    assert not features.requires_grad
    provenance = backbone.provenance()
    assert provenance["library"] == "transformers"
    assert provenance["version"] == transformers.__version__
    assert provenance["weights"].startswith("xxh3:")
    with pytest.raises(ValueError, match="whole number of 8-pixel patches"):
        backbone.encode_image(torch.zeros(1, 3, 20, 16))
    with pytest.raises(BackboneUnavailableError, match=r"no text tower\. Query a CLIP-like"):
        backbone.encode_text(["mug"])


def test_the_text_tower_is_refused_when_loading(folders):
    with pytest.raises(BackboneUnavailableError, match="have no text tower"):
        load_backbone(BackboneRef("dino", "", str(folders["dino"])), towers=("image", "text"))


def test_statistics_come_from_the_folder(tmp_path):
    folder = write_random_checkpoint(tmp_path / "dino", layers=1)
    settings_file = folder / "preprocessor_config.json"
    settings_file.write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3]}))
    backbone = load_backbone(BackboneRef("dino", "", str(folder)))
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (1.0, 2.0, 3.0))
    settings_file.write_text('{"image_mean": [0.5]}')
    with pytest.raises(BackboneUnavailableError, match="no RGB statistics"):
        load_backbone(BackboneRef("dino", "", str(folder)))


def test_half_precision_files_are_read_in_full_precision(tmp_path, make_images):
    folder = write_random_checkpoint(tmp_path / "dino", layers=1)
    file = folder / "model.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    backbone = load_backbone(BackboneRef("dino", "", str(folder)))
    assert backbone.encode_image(make_images(16, 16)).dtype == torch.float32


def test_loading_and_writing_leave_the_random_state_alone(folders, tmp_path):
    before = torch.get_rng_state()
    load_backbone(BackboneRef("dinov2", "", str(folders["dinov2"])))
    again = write_random_checkpoint(tmp_path / "again", family="dinov2")
    other = write_random_checkpoint(tmp_path / "other", family="dinov2", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    name = "embeddings.position_embeddings"
    first, second, third = (
        load_file(folder / "model.safetensors")[name]
        for folder in (folders["dinov2"], again, other)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("weights", ["", "f3rm/no-such-dino"])
@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_is_quick_and_helpful(weights):
    start = time.monotonic()
    with pytest.raises(BackboneUnavailableError, match=r"--weights DINOV2=/path") as caught:
        load_backbone(BackboneRef("dinov2", "f3rm/no-such-model", weights))
    assert time.monotonic() - start < 5
    assert "the hub cannot be reached" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_unusable_folders_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(BackboneUnavailableError, match=r"is a file; DINO weights are a folder"):
        load_backbone(BackboneRef("dino", "", str(file)))
    with pytest.raises(BackboneUnavailableError, match="no readable transformers model folder"):
        load_backbone(BackboneRef("dino", "", str(tmp_path)))
    with pytest.raises(BackboneUnavailableError, match="no file or folder"):
        load_backbone(BackboneRef("dino", "", str(tmp_path / "nowhere")))


def test_other_architectures_and_lacking_parameters_are_refused(tmp_path):
    folder = write_random_checkpoint(tmp_path / "dino", layers=1)
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["layernorm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BackboneUnavailableError, match=r"lacks parameters.*layernorm.weight"):
        load_backbone(BackboneRef("dino", "", str(folder)))
    config = {**ViTConfig().to_dict(), "model_type": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneUnavailableError, match="model type is 'clip'; supported are vit,"):
        load_backbone(BackboneRef("dino", "", str(folder)))
