"""RoboPoint's vision half against transformers' own CLIP, read from sharded checkpoints."""

import json
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from f3rm.backbones import load_backbone
from f3rm.backbones.weights import weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.llava_checkpoint import LANGUAGE_SHARD, make_parts, tower_config, write_llava


def reference(images):
    """LLaVA's features by the library: the second last block's patches, then the projector."""
    tower, projector = make_parts()
    with torch.no_grad():
        states = tower(images, output_hidden_states=True, interpolate_pos_encoding=True)
        patches = states.hidden_states[-2][:, 1:]
        projector.load_state_dict({n: t.half().float() for n, t in projector.state_dict().items()})
        return patches, projector(patches)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_features_are_llavas(tmp_path, make_images, suffix):
    folder = write_llava(tmp_path / "robopoint", suffix=suffix)
    (folder / (LANGUAGE_SHARD + suffix)).unlink()  # not opened, not even there
    backbone: Any = load_backbone(BackboneRef("llava", "robopoint", str(folder)))
    for size in ((56, 56), (28, 70)):
        images = make_images(*size)
        patches, projected = reference(images)
        plain, proj = backbone.run(images, ["-2", "-2|proj"]).values()
        torch.testing.assert_close(plain.flatten(1, 2), patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(proj.flatten(1, 2), projected, rtol=1e-5, atol=1e-5)
        assert torch.equal(backbone.encode_image(images), proj)
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (40, 14, False)
    assert {p.dtype for p in backbone.tower.parameters()} == {torch.float32}


def test_the_language_model_does_not_count(tmp_path):
    folder = write_llava(tmp_path / "robopoint")
    ref = BackboneRef("llava", "robopoint", str(folder))
    before = weights_identity(ref)
    (folder / f"{LANGUAGE_SHARD}.safetensors").write_bytes(b"finetuned")
    assert weights_identity(ref) == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 1}))
    assert weights_identity(ref) != before


def test_a_tower_elsewhere_is_followed(tmp_path, make_images):
    tower, _ = make_parts()
    tower.save_pretrained(tmp_path / "clip")
    folder = write_llava(tmp_path / "robopoint", own_tower=False)
    ref = BackboneRef("llava", "robopoint", str(folder))
    with pytest.raises(BackboneUnavailableError, match="no image tower and names none"):
        load_backbone(ref)
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = str(tmp_path / "clip")
    (folder / "config.json").write_text(json.dumps(config))
    images = make_images(56, 56)
    (plain,) = load_backbone(ref).run(images, ["-2"]).values()
    torch.testing.assert_close(plain.flatten(1, 2), reference(images)[0], rtol=1e-5, atol=1e-5)
    assert CLIPVisionModel.from_pretrained(tmp_path / "clip").config.num_attention_heads == 1


def test_attention_heads_are_the_checkpoints_or_an_error(tmp_path, make_images):
    """64 channels in four heads or one have the same weights, but not the same features."""
    tower, _ = make_parts()
    folder = write_llava(tmp_path / "robopoint")
    plain = json.loads((folder / "config.json").read_text())
    del plain["mm_vision_tower"]
    vision = {**tower_config().to_dict(), "num_attention_heads": 4}
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text(json.dumps({"vision_config": vision}))
    ref = BackboneRef("llava", "robopoint", str(folder))
    images = make_images(56, 56)
    expected = CLIPVisionModel(CLIPVisionConfig(**vision)).eval()
    expected.load_state_dict(tower.state_dict())
    with torch.no_grad():
        hidden = expected(images, output_hidden_states=True).hidden_states
    assert hidden is not None
    for stated in ({"vision_config": vision}, {"mm_vision_tower": str(tmp_path / "tower")}):
        (folder / "config.json").write_text(json.dumps({**plain, **stated}))
        (found,) = load_backbone(ref).run(images, ["-2"]).values()
        torch.testing.assert_close(found.flatten(1, 2), hidden[-2][:, 1:], rtol=1e-5, atol=1e-5)
        assert (found.flatten(1, 2) - reference(images)[0]).abs().max() > 1e-3
    (folder / "config.json").write_text(json.dumps(plain))
    with pytest.raises(BackboneUnavailableError, match="number of attention heads is not known"):
        load_backbone(ref)
    (tmp_path / "tower" / "config.json").write_text("{}")
    stated = {**plain, "mm_vision_tower": str(tmp_path / "tower")}
    (folder / "config.json").write_text(json.dumps(stated))
    with pytest.raises(BackboneUnavailableError, match="neither has that of its tower"):
        load_backbone(ref)


def test_what_is_no_llava_is_refused(tmp_path):
    with pytest.raises(BackboneUnavailableError, match="query a CLIP"):
        load_backbone(BackboneRef("llava", "", str(tmp_path)), towers=("text",))
    with pytest.raises(BackboneUnavailableError, match=r"lacks model\.safetensors"):
        load_backbone(BackboneRef("llava", "", str(tmp_path)))
    folder = write_llava(tmp_path / "robopoint")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    tower_only = {n: f for n, f in places.items() if "mm_projector" not in n}
    broken = folder / "model-00002-of-00002.safetensors"
    broken.rename(tmp_path / "away.safetensors")
    index.write_text(json.dumps({"weight_map": tower_only}))
    with pytest.raises(BackboneUnavailableError, match="a shard that its index names"):
        load_backbone(BackboneRef("llava", "", str(folder)))
    index.write_text("[]")
    with pytest.raises(BackboneUnavailableError, match="is no index"):
        load_backbone(BackboneRef("llava", "", str(folder)))


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_names_the_option():
    ref = BackboneRef("llava", "f3rm/no-such-llava", "")
    with pytest.raises(BackboneUnavailableError, match=r"--weights LLAVA=/path"):
        load_backbone(ref)
