"""Dense CLIP features against the algorithm written out from the raw tensors, in fp64."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from f3rm.backbones import load_backbone
from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.vit import clip_vit, embed_patches, resize_positions
from f3rm.errors import BackboneRef

PATCH, HEADS, TRAINED_GRID = 14, 2, 4
ACTIVATIONS = {
    True: lambda x: x * torch.sigmoid(1.702 * x),
    False: lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
}


def cubic_matrix(size_out: int, size_in: int) -> Tensor:
    """Cubic convolution (a = -0.75) with replicated borders, one row of weights per output."""
    a = -0.75
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for row in range(size_out):
        x = (row + 0.5) * size_in / size_out - 0.5
        for neighbour in range(math.floor(x) - 1, math.floor(x) + 3):
            d = abs(x - neighbour)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(neighbour, 0), size_in - 1)] += weight
    return matrix


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def reference_block(x: Tensor, state: dict[str, Tensor], name: str, *, quick_gelu: bool) -> Tensor:
    """One image's tokens (tokens, width) through an ordinary block, head by head."""
    width = x.shape[-1]
    size = width // HEADS
    y = layer_norm(x, state, f"{name}.ln_1")
    qkv = y @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
    outputs = []
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        q, k, v = (qkv[:, part * width : (part + 1) * width][:, at] for part in range(3))
        outputs.append(((q @ k.T) / math.sqrt(size)).softmax(-1) @ v)
    mixed = torch.cat(outputs, -1)
    x = x + mixed @ state[f"{name}.attn.out_proj.weight"].T + state[f"{name}.attn.out_proj.bias"]
    y = layer_norm(x, state, f"{name}.ln_2")
    y = y @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
    y = ACTIVATIONS[quick_gelu](y)
    return x + y @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]


def reference_maskclip(folder: Path, images: Tensor) -> Tensor:
    """MaskCLIP's value path for (batch, 3, height, width), from nothing but the file's tensors."""
    state = {
        name.removeprefix("visual."): tensor.double()
        for name, tensor in load_file(folder / "open_clip_model.safetensors").items()
        if name.startswith("visual.")
    }
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    rows, cols = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    kernel = state["conv1.weight"].flatten(1)  # (width, 3 * patch * patch)
    positions = state["positional_embedding"]
    cells = positions[1:].reshape(TRAINED_GRID, TRAINED_GRID, -1)
    vertical, horizontal = cubic_matrix(rows, TRAINED_GRID), cubic_matrix(cols, TRAINED_GRID)
    cells = torch.einsum("ri,cj,ijw->rcw", vertical, horizontal, cells)
    results = []
    for image in images.double():
        patches = torch.stack(
            [
                kernel
                @ image[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].flatten()
                for r in range(rows)
                for c in range(cols)
            ]
        )
        x = torch.cat([state["class_embedding"][None], patches])
        x = x + torch.cat([positions[:1], cells.reshape(rows * cols, -1)])
        x = layer_norm(x, state, "ln_pre")
        last = config["vision_cfg"]["layers"] - 1
        for index in range(last):
            name = f"transformer.resblocks.{index}"
            x = reference_block(x, state, name, quick_gelu=config["quick_gelu"])
        name = f"transformer.resblocks.{last}"
        width = x.shape[-1]
        values = (
            layer_norm(x, state, f"{name}.ln_1")
            @ state[f"{name}.attn.in_proj_weight"][2 * width :].T
            + state[f"{name}.attn.in_proj_bias"][2 * width :]
        )
        values = values @ state[f"{name}.attn.out_proj.weight"].T
        values = values + state[f"{name}.attn.out_proj.bias"]
        dense = layer_norm(values[1:], state, "ln_post") @ state["proj"]
        results.append(dense.reshape(rows, cols, -1))
    return torch.stack(results)


@pytest.fixture(scope="module")
def backbone(clip_folder: Path) -> ClipBackbone:
    loaded = load_backbone(BackboneRef("clip", "", str(clip_folder)))
    assert isinstance(loaded, ClipBackbone)
    return loaded


@pytest.mark.parametrize(
    ("height", "width"), [(56, 56), (28, 28), (84, 56), (14, 140), (112, 98)], ids=str
)
def test_features_are_the_value_path(backbone, clip_folder, make_images, height, width):
    images = make_images(height, width)
    features = backbone.encode_image(images)
    assert features.shape == (2, height // PATCH, width // PATCH, backbone.channels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features.double(), reference_maskclip(clip_folder, images), rtol=1e-5, atol=1e-5
    )


def test_the_activation_is_the_configurations(gelu_clip_folder, clip_folder, make_images):
    images = make_images(56, 70)
    features = load_backbone(BackboneRef("clip", "", str(gelu_clip_folder))).encode_image(images)
    expected = reference_maskclip(gelu_clip_folder, images)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)
    assert (expected - reference_maskclip(clip_folder, images)).abs().max() > 1e-3


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_grid_gives_one_vector_per_patch(rows, cols, seed, backbone, clip_folder):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, rows * PATCH, cols * PATCH, generator=generator)
    features = backbone.encode_image(images)
    expected = reference_maskclip(clip_folder, images)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)


@given(rows=st.integers(1, 9), cols=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_resizing_keeps_the_class_token_and_constants(rows, cols):
    positions = torch.full((1 + 3 * 5, 4), 0.25)
    positions[0] = torch.arange(4.0)
    resized = resize_positions(positions, (3, 5), (rows, cols))
    assert torch.equal(resized[0], positions[0])
    torch.testing.assert_close(resized[1:], torch.full((rows * cols, 4), 0.25))


def test_the_trained_grid_is_left_alone(backbone):
    positions = backbone.visual.positional_embedding
    assert resize_positions(positions, (4, 4), (4, 4)) is positions


@pytest.mark.parametrize("size", [(57, 56), (56, 13), (7, 7), (56, 63)], ids=str)
def test_a_size_between_patches_is_refused(backbone, size):
    with pytest.raises(ValueError, match=r"whole number of 14-pixel patches, got .*Resize them"):
        backbone.encode_image(torch.zeros(1, 3, *size))


def test_blocks_equal_open_clips_own_forward(backbone, make_images):
    images = make_images(56, 56)
    visual = backbone.visual
    with torch.no_grad():
        tokens = embed_patches(visual, images)
        for block in clip_vit(visual).blocks:
            tokens = block.run(tokens)["token"]
        pooled = visual.ln_post(tokens[:, 0]) @ visual.proj
        torch.testing.assert_close(pooled, visual(images), rtol=1e-5, atol=1e-5)


def test_low_precision_weights_give_nearly_the_same(clip_ref, make_images):
    images = make_images(56, 84)
    backbone = load_backbone(clip_ref)
    assert isinstance(backbone, ClipBackbone)
    assert backbone.visual is not None
    expected = backbone.encode_image(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = backbone.encode_image(images)
    backbone.visual.to(torch.bfloat16)
    pure = backbone.encode_image(images)
    assert pure.dtype == torch.bfloat16
    for features in (mixed, pure):
        assert torch.cosine_similarity(features.float(), expected, dim=-1).min() > 0.99


def test_no_gradient_is_recorded_and_nothing_can_be_trained(backbone, make_images):
    features = backbone.encode_image(make_images(28, 28))
    assert not features.requires_grad
    assert not features.is_inference()
    assert not any(p.requires_grad for p in backbone.visual.parameters())
    assert not backbone.visual.training


def test_texts_equal_open_clips_own(clip_folder):
    ref = BackboneRef("clip", "", str(clip_folder))
    texts = ["a red mug", "Objects, things & stuff", "word " * 200]
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config).eval()
    open_clip.load_checkpoint(model, str(clip_folder / "open_clip_model.safetensors"))
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(texts), normalize=True)
    embeddings = load_backbone(ref, towers=("text",)).encode_text(texts)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    assert embeddings.dtype == torch.float32
