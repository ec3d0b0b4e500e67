"""A CLIP whose last block attends by a DINO, against a reference written out patch by patch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from f3rm.backbones import load_backbone
from f3rm.backbones.weights import weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.random_dino import write_random_checkpoint


@pytest.fixture
def dino_folder(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "dino", patch_size=7)


def test_features_equal_a_reference(clip_folder, dino_folder, make_images):
    backbone = load_backbone(BackboneRef("proxyclip", "a,b", f"{clip_folder},{dino_folder}"))
    clip: Any = load_backbone(BackboneRef("clip", "", str(clip_folder)))
    dino = load_backbone(BackboneRef("dino", "", str(dino_folder)))
    images = make_images(28, 42)
    found = backbone.encode_image(images)
    assert found.shape == (2, 4, 6, 32)
    colours = images * torch.tensor(clip.std)[:, None, None]
    colours = colours + torch.tensor(clip.mean)[:, None, None]
    for_dino = (colours - torch.tensor(dino.mean)[:, None, None]) / torch.tensor(dino.std)[
        :, None, None
    ]
    patches = dino.encode_image(for_dino).flatten(1, 2)
    (values,) = clip.run(images, ["-1:value"]).values()
    values = F.interpolate(values.permute(0, 3, 1, 2), (4, 6), mode="bilinear")
    block = clip.visual.transformer.resblocks[-1]
    for image in range(2):
        unit = patches[image] / patches[image].norm(dim=-1, keepdim=True)
        alike = unit @ unit.T
        mean = alike.mean()
        for patch in range(24):
            shares = [
                (3 * (alike[patch, other] - 1.2 * mean)).exp()
                if alike[patch, other] >= 1.2 * mean or other == patch
                else torch.tensor(0.0)
                for other in range(24)
            ]
            gathered = sum(
                share * values[image, :, other // 6, other % 6]
                for other, share in enumerate(shares)
            ) / sum(shares)
            with torch.no_grad():
                expected = clip.visual.ln_post(block.attn.out_proj(gathered)) @ clip.visual.proj
            torch.testing.assert_close(
                found[image, patch // 6, patch % 6], expected, rtol=1e-3, atol=1e-4
            )


def test_the_contract(clip_folder, dino_folder, make_images):
    ref = BackboneRef("proxyclip", "a,b", f"{clip_folder},{dino_folder}")
    backbone = load_backbone(ref, towers=("image", "text"))
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (32, 7, True)
    assert backbone.encode_text(["mug"]).shape == (1, 32)
    assert backbone.encode_image(make_images(21, 35)).shape == (2, 3, 5, 32)  # no multiple of 14
    images = make_images(14, 14)
    (dense,) = backbone.run(images, ["-1|dense(proxy)"]).values()
    assert torch.equal(dense, backbone.encode_image(images))
    uniform = backbone.encode_image(torch.ones(1, 3, 28, 28))
    assert torch.isfinite(uniform).all()
    identity = weights_identity(ref)
    assert identity.count("xxh3:") == 2
    assert load_backbone(ref, towers=("text",)).encode_text(["mug"]).shape == (1, 32)
    provenance = backbone.provenance()
    assert (provenance["library"], provenance["proxy_library"]) == ("open_clip", "transformers")


def test_one_model_is_too_few(clip_folder):
    with pytest.raises(BackboneUnavailableError, match="joined by a comma"):
        load_backbone(BackboneRef("proxyclip", "a", str(clip_folder)))
