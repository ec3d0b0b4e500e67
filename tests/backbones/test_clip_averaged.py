"""CLIP towers pooled by averaging, and TINYCLIP, whose tower is a ResNet."""

import json
from pathlib import Path
from typing import cast

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import load_file, save_file

from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.resnet import project_cells, resnet_maps
from f3rm.backbones.registry import load_backbone
from f3rm.backbones.weights import local_weights, weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError

TINYCLIP = BackboneRef("clip", "tinyclip", "builtin:tinyclip")


@pytest.fixture(scope="module")
def averaged(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as the class-token model's, pooled by averaging."""
    folder = tmp_path_factory.mktemp("averaged")
    published = json.loads((clip_folder / "open_clip_config.json").read_text())
    published["model_cfg"]["vision_cfg"]["pool_type"] = "avg"
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    weights = "open_clip_model.safetensors"
    save_file(load_file(clip_folder / weights), folder / weights)
    return folder


def open_clips_own(folder: Path) -> open_clip.CLIP:
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config)
    state = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def test_the_mean_of_the_features_is_open_clips_image_embedding(averaged, make_images):
    images = make_images(56, 56)
    features = load_backbone(BackboneRef("clip", "", str(averaged))).encode_image(images)
    with torch.no_grad():
        pooled = open_clips_own(averaged).encode_image(images)
    torch.testing.assert_close(features.mean(dim=(1, 2)), pooled, rtol=1e-5, atol=1e-5)


def test_each_feature_is_open_clips_projected_last_token(averaged, make_images):
    images = make_images(56, 56)
    model = open_clips_own(averaged)
    seen = []
    last_norm = model.visual.ln_post
    assert isinstance(last_norm, torch.nn.Module)
    last_norm.register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    with torch.no_grad():
        model.encode_image(images)
    expected = (seen[0][:, 1:] @ model.visual.proj).detach().unflatten(1, (4, 4))
    features = load_backbone(BackboneRef("clip", "", str(averaged))).encode_image(images)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_other_grids_than_the_trained_one_work(averaged, make_images):
    backbone = load_backbone(BackboneRef("clip", "", str(averaged)))
    assert backbone.encode_image(make_images(28, 84)).shape == (2, 2, 6, backbone.channels)


def test_what_ships_is_found_by_name_and_identified_by_content():
    folder = local_weights(TINYCLIP)
    assert folder is not None
    assert weights_identity(TINYCLIP) == weights_identity(BackboneRef("clip", "", str(folder)))
    assert weights_identity(TINYCLIP).startswith("xxh3:")


def test_an_unknown_builtin_is_refused_with_what_there_is():
    with pytest.raises(BackboneUnavailableError, match="did you mean tinyclip"):
        load_backbone(BackboneRef("clip", "", "builtin:tinyclib"))


def test_tinyclip_is_open_clips_own_model_in_both_towers():
    folder = local_weights(TINYCLIP)
    assert folder is not None
    model = open_clips_own(folder)
    backbone = load_backbone(TINYCLIP, towers=("image", "text"))
    texts = ["a red mug", "shiny blue ball", "something it never heard of"]
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(texts)
    with torch.no_grad():
        embedded = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(backbone.encode_text(texts), embedded, rtol=1e-5, atol=1e-5)
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    expected = attention_pooling_of_single_cells(model.visual, images)
    visual = cast("ClipBackbone", backbone).visual
    assert isinstance(visual, ModifiedResNet)
    with torch.no_grad():
        cells = project_cells(visual, resnet_maps(visual, images)).unflatten(1, (3, 5))
    torch.testing.assert_close(cells, expected, rtol=1e-4, atol=1e-4)
    assert backbone.encode_image(images).shape == (2, 12, 20, 128)


def attention_pooling_of_single_cells(visual, images):
    """CLIP's own attention pooling, given each cell alone and no positions."""
    seen = []
    handle = visual.layer4.register_forward_hook(lambda _, __, maps: seen.append(maps))
    pool = visual.attnpool
    visual.attnpool = torch.nn.Identity()
    with torch.no_grad():
        visual(images)
        handle.remove()
        batch, channels, rows, cols = seen[0].shape
        cells = seen[0].permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        pool.positional_embedding = torch.nn.Parameter(torch.zeros(2, channels))
        pooled = pool(cells)  # the query is the cells' mean, itself one of two equal tokens
    return pooled.unflatten(0, (batch, rows, cols))


def test_what_ships_is_small():
    folder = local_weights(TINYCLIP)
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
