"""Last-block rules against references written out head by head and token by token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from f3rm.backbones import load_backbone
from f3rm.backbones.clip.dense_rules import RULES, apply_rule, gaussian_nearness
from f3rm.backbones.clip.vit import clip_vit, value_path
from f3rm.errors import BackboneRef

ROWS, COLS, HEADS, WIDTH = 3, 4, 2, 64
TOKENS, CHANNELS = 1 + ROWS * COLS, WIDTH // HEADS


def logits_of(rule: str, q: Tensor, k: Tensor) -> list[Tensor]:
    """The logits of one head of one image, (tokens, tokens) each; their softmaxes are added."""
    root = math.sqrt(CHANNELS)
    if rule == "clearclip":
        return [q @ q.T / root]
    if rule == "sclip":
        return [q @ q.T / root, k @ k.T / root]
    if rule == "nacclip":
        logits = k @ k.T / root
        for one in range(ROWS * COLS):
            for other in range(ROWS * COLS):
                (r, c), (s, d) = divmod(one, COLS), divmod(other, COLS)
                logits[1 + one, 1 + other] += math.exp(-((r - s) ** 2 + (c - d) ** 2) / 50)
        return [logits]
    weights = [0.0] + [float(q[token].norm()) for token in range(1, TOKENS)]
    q_mean = sum(w * row for w, row in zip(weights, q, strict=True)) / sum(weights)
    k_mean = sum(w * row for w, row in zip(weights, k, strict=True)) / sum(weights)
    q_centred, k_centred = q - q_mean, k - k_mean
    rotation = polar_factor(k_centred.T @ q_centred)
    return [q @ (k @ rotation).T / root + 0.08 * k_centred @ k_centred.T / root]


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, by Newton's iteration X <- (X + X^-T) / 2."""
    found = matrix.double()
    for _ in range(60):
        found = (found + torch.linalg.inv(found).T) / 2
    return found.float()


def reference(visual: Any, tokens: Tensor, rule: str) -> Tensor:
    block = visual.transformer.resblocks[-1]
    packed = block.ln_1(tokens) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    attended = torch.zeros_like(tokens)
    for image in range(len(tokens)):
        for head in range(HEADS):
            part = slice(head * CHANNELS, (head + 1) * CHANNELS)
            q, k, v = (side[:, part] for side in packed[image].split(WIDTH, dim=-1))
            if rule == "maskclip":
                attended[image, :, part] = v
                continue
            for logits in logits_of(rule, q.clone(), k.clone()):
                attended[image, :, part] += logits.exp() / logits.exp().sum(1, keepdim=True) @ v
    result = block.attn.out_proj(attended)
    if rule == "sclip":
        result = tokens + result
        result = result + block.mlp(block.ln_2(result))
    return visual.ln_post(result[:, 1:]) @ visual.proj


@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_their_references(clip_ref, make_images, rule):
    backbone: Any = load_backbone(clip_ref)
    images = make_images(14 * ROWS, 14 * COLS)
    tap = f"-1|dense({rule})"
    found, tokens = backbone.run(images, [tap, "-2@all"]).values()
    with torch.no_grad():
        expected = reference(backbone.visual, tokens, rule)
    assert found.shape == (2, ROWS, COLS, 32)
    torch.testing.assert_close(found.flatten(1, 2), expected, rtol=1e-3, atol=1e-4)
    others = [backbone.run(images, [f"-1|dense({other})"]) for other in RULES if other != rule]
    assert all((found - next(iter(other.values()))).abs().max() > 1e-2 for other in others)


def test_maskclip_is_what_the_backbone_gives(clip_ref, make_images):
    backbone = load_backbone(clip_ref)
    images = make_images(28, 70)
    (found,) = backbone.run(images, [backbone.default_tap]).values()
    torch.testing.assert_close(found, backbone.encode_image(images), rtol=1e-5, atol=1e-5)


def test_the_value_path_equals_the_rule_that_computes_queries_and_keys_too(clip_ref, make_images):
    backbone: Any = load_backbone(clip_ref)
    (tokens,) = backbone.run(make_images(14 * ROWS, 14 * COLS), ["-2@all"]).values()
    expected = apply_rule("maskclip", clip_vit(backbone.visual).blocks[-1], tokens, (ROWS, COLS))
    found = value_path(backbone.visual.transformer.resblocks[-1], tokens)[:, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_nearness_ignores_the_class_token():
    nearness = gaussian_nearness((2, 3), 5.0)
    assert not nearness[0].any()
    assert not nearness[:, 0].any()
    assert nearness[1, 6] == pytest.approx(math.exp(-(1 + 4) / 50))


def test_rules_keep_their_meaning_in_half_precision(clip_folder, make_images):
    backbone = load_backbone(BackboneRef("clip", "", str(clip_folder)))
    images = make_images(28, 42)
    taps = [f"-1|dense({rule})" for rule in RULES]
    exact = backbone.run(images, taps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone.run(images, taps)
    for tap, features in exact.items():
        cosine = torch.cosine_similarity(features, rough[tap].float(), dim=-1)
        assert cosine.min() > 0.99
