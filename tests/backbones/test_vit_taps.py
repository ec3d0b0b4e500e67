"""Taps of vision transformers against the libraries' own forwards and hooks."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel

from f3rm.backbones import load_backbone
from f3rm.backbones.base import Backbone
from f3rm.backbones.taps import Tap
from f3rm.errors import BackboneRef, TapError
from tests.backbones.random_dino import write_random_checkpoint

GRID = (3, 5)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("reg"), family="dinov2_with_registers")


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> Backbone:
    return load_backbone(BackboneRef("dinov2", "", str(dino_folder)))


@pytest.fixture(scope="module")
def dino_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8 * GRID[0], 8 * GRID[1], generator=generator)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Backbone:
    return load_backbone(BackboneRef("clip", "", str(clip_folder)))


@pytest.fixture(scope="module")
def library_clip(clip_folder: Path) -> open_clip.CLIP:
    config = json.loads((clip_folder / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    model.load_state_dict(load_file(clip_folder / "open_clip_model.safetensors"))
    return model.eval()


def hooked(module: nn.Module, run: nn.Module, images: Tensor) -> Tensor:
    """What a module inside a network gave, by a plain forward hook."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        run(images)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dino_facets_equal_hooks_on_the_library(dino, dino_folder, dino_images):
    library = AutoModel.from_pretrained(dino_folder, attn_implementation="eager").eval()
    layer = library.encoder.layer[1]
    taps = [f"1:{facet}@all" for facet in ("query", "key", "value", "attn_out", "attn", "mlp_out")]
    found = dino.run(dino_images, [*taps, "1@all", "final@all", "embed@all"])
    expected = [
        hooked(layer.attention.q_proj, library, dino_images),
        hooked(layer.attention.k_proj, library, dino_images),
        hooked(layer.attention.v_proj, library, dino_images),
        layer.layer_scale1(hooked(layer.attention, library, dino_images)),
    ]
    seen: list[Tensor] = []
    handle = layer.attention.register_forward_hook(lambda *call: seen.append(call[2][1]))
    with torch.no_grad():
        final = library(dino_images).last_hidden_state
    handle.remove()
    expected += [
        seen[0],
        hooked(layer.layer_scale2, library, dino_images),
        hooked(layer, library, dino_images),
        final,
        hooked(library.embeddings, library, dino_images),
    ]
    for tap, value in zip(found, expected, strict=True):
        close(found[tap], value)


def test_selections_are_parts_of_all_tokens(dino, dino_images):
    found = dino.run(
        dino_images, ["-1@all", "-1", "-1@cls", "-1@reg", "-1:attn@cls", "-1:attn@all"]
    )
    tokens, patches, class_token, registers, attention, weights = found.values()
    assert tokens.shape == (2, 5 + 15, 48)
    assert torch.equal(patches.flatten(1, 2), tokens[:, 5:])
    assert torch.equal(class_token, tokens[:, 0])
    assert torch.equal(registers, tokens[:, 1:5])
    assert attention.shape == (2, *GRID, 4)
    assert torch.equal(attention[1, 2, 3, 1], weights[1, 1, 0, 5 + 2 * GRID[1] + 3])


def test_operations_equal_torch_on_maps_with_channels_first(dino, dino_images):
    texts = ["-1", "-1|avg(2,1,1)", "-1|max(2)", "-1|adaptive_avg(2,3)", "-1|mean", "-1|amax"]
    texts += ["-1|flatten", "-1|avg(2)|flatten", "-1|l2", "-1|norm", "-1:key|heads"]
    plain, avg, largest, adaptive, mean, amax, flat, both, unit, norm, heads = dino.run(
        dino_images, texts
    ).values()
    maps = plain.permute(0, 3, 1, 2)
    close(avg.permute(0, 3, 1, 2), F.avg_pool2d(maps, 2, 1, 1))
    close(largest.permute(0, 3, 1, 2), F.max_pool2d(maps, 2))
    close(adaptive.permute(0, 3, 1, 2), F.adaptive_avg_pool2d(maps, (2, 3)))
    close(mean, maps.mean((2, 3)))
    close(amax, maps.amax((2, 3)))
    close(flat, maps.flatten(1))
    close(both, F.avg_pool2d(maps, 2).flatten(1))
    close(unit, plain / plain.norm(dim=-1, keepdim=True))
    close(norm, dino.encode_image(dino_images))
    assert heads.shape == (2, *GRID, 4, 12)


def test_one_pass_stops_at_the_deepest_and_keeps_the_order_asked_for(dino, dino_images):
    ran: list[int] = []
    blocks = dino.network.encoder.layer
    handles = [
        block.norm1.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(blocks)
    ]
    found = dino.run(dino_images, ["1:key", "0", "1", "0|mean"])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert [str(tap) for tap in found] == ["1:key", "0", "1", "0|mean"]


def test_announced_shapes_are_the_shapes(dino, clip, dino_images, make_images):
    texts = ["-1", "-1@all", "-2@cls", "0@reg", "-1:attn@cls", "-1:attn", "-1:query|heads|mean"]
    for tap, value in dino.run(dino_images, [*texts, "final|avg(2)|flatten"]).items():
        assert dino.shape(tap, *dino_images.shape[2:]) == value.shape[1:]
    images = make_images(28, 42)
    texts = ["-1|dense(nacclip)", "final@all|proj", "head", "-1|mean|proj", "embed|flatten"]
    for tap, value in clip.run(images, texts).items():
        assert clip.shape(tap, 28, 42) == value.shape[1:]


def test_clip_equals_open_clip(clip, library_clip, make_images):
    images = make_images(56, 56)  # the trained size, so that open_clip takes it
    library_clip.visual.output_tokens = True
    block = library_clip.visual.transformer.resblocks[-1]
    with torch.no_grad():
        pooled, tokens = library_clip.visual(images)
    head, all_tokens, patches, last = clip.run(
        images, ["head", "final@all|proj", "final", "-1@all"]
    ).values()
    close(head, pooled)
    close(patches.flatten(1, 2), tokens)
    close(all_tokens[:, 0], pooled)
    close(all_tokens[:, 1:], tokens @ library_clip.visual.proj)
    close(last, hooked(block, library_clip.visual, images))


def test_clip_queries_keys_and_values_equal_its_packed_projection(clip, library_clip, make_images):
    images = make_images(56, 56)
    block = library_clip.visual.transformer.resblocks[1]
    normed = hooked(block.ln_1, library_clip.visual, images)
    packed = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    found = clip.run(images, ["1:query@all", "1:key@all", "1:value@all"])
    for value, expected in zip(found.values(), packed.split(64, dim=-1), strict=True):
        close(value, expected)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("finl", "no layer 'finl'.*did you mean final"),
        ("3", "blocks are numbered 0 to 2, or -3 to -1"),
        ("-4", "blocks are numbered 0 to 2"),
        ("final:key", "final has no facet 'key'.*Layers that have it: 0, 1, 2"),
        ("-1@reg", "has no registers"),
        ("head|mean", "mean must follow a map or tokens, got a vector"),
        ("head@all", "head gives a vector"),
        ("0|dense(maskclip)", "dense cannot follow the layer 0.*Layers that have it: 2"),
        ("-1|dense(nclip)", "no dense rule 'nclip'; did you mean .*nacclip"),
        ("final|norm", "norm cannot follow the layer final"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_it_runs(clip, tap, message):
    with pytest.raises(TapError, match=message):
        clip.check([tap])


def test_a_model_without_texts_has_no_rules(dino):
    with pytest.raises(TapError, match="No layer of this model has it"):
        dino.check([Tap.parse("-1|dense(maskclip)")])
