"""Where CLIP weights come from, which tower is kept, and what is said when they cannot be had."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from f3rm.backbones import load_backbone
from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.source import find_source
from f3rm.errors import BackboneRef, BackboneUnavailableError
from tests.backbones.random_clip import write_random_checkpoint

LOCAL_HINT = (
    r"--weights CLIP=/path/to/folder-or-file "
    r"\(training: --pipeline\.datamanager\.weights CLIP=/path\)"
)


@pytest.fixture
def tiny_model(monkeypatch, clip_folder) -> str:
    """Registers the test model's architecture with open_clip, as the models it ships are."""
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-14", config)
    return "ViT-tiny-14"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(5))


def edit_config(folder: Path, target: Path, **changes) -> Path:
    shutil.copytree(folder, target)
    file = target / "open_clip_config.json"
    published = json.loads(file.read_text())
    published["model_cfg"].update(changes)
    file.write_text(json.dumps(published))
    return target


def test_a_folder_decides_architecture_and_statistics(clip_folder, tmp_path, images):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    published = json.loads((folder / "open_clip_config.json").read_text())
    published["preprocess_cfg"] = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    backbone = load_backbone(BackboneRef("clip", "no such model", str(folder)))
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert (backbone.channels, backbone.patch_size, backbone.has_text) == (32, 14, True)
    assert backbone.device == torch.device("cpu")
    expected = load_backbone(BackboneRef("clip", "", str(clip_folder))).encode_image(images)
    assert torch.equal(backbone.encode_image(images), expected)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested.pt", "half.bin", "parallel.pth"])
def test_a_file_of_any_kind_gives_the_same_features(
    clip_folder, clip_ref, tiny_model, tmp_path, images, kind
):
    state = load_file(clip_folder / "open_clip_model.safetensors")
    file = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "nested.pt":
        torch.save({"epoch": 3, "state_dict": state}, file)
    elif kind == "half.bin":
        torch.save({name: tensor.half() for name, tensor in state.items()}, file)
    elif kind == "parallel.pth":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)
    ref = BackboneRef("clip", tiny_model, str(file))
    backbone = load_backbone(ref, towers=("image", "text"))
    expected = load_backbone(clip_ref).encode_image(images)
    tolerance = 3e-2 if kind == "half.bin" else 0.0
    torch.testing.assert_close(backbone.encode_image(images), expected, rtol=0, atol=tolerance)
    assert backbone.encode_text(["mug"]).shape == (1, 32)
    assert backbone.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_as_openai_published_it(
    clip_folder, clip_ref, tiny_model, tmp_path, images
):
    holder = nn.Module()
    for name, tensor in load_file(clip_folder / "open_clip_model.safetensors").items():
        *parents, leaf = name.split(".")
        module = holder
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(leaf, tensor)
    holder.register_buffer("input_resolution", torch.tensor(56))
    file = tmp_path / "ViT-tiny-14.pt"
    torch.jit.script(holder).save(str(file))
    backbone = load_backbone(BackboneRef("clip", tiny_model, str(file)), towers=("image", "text"))
    expected = load_backbone(clip_ref).encode_image(images)
    assert torch.equal(backbone.encode_image(images), expected)


def test_only_the_asked_tower_is_kept(clip_ref, images):
    image_only = load_backbone(clip_ref)
    text_only = load_backbone(clip_ref, towers=("text",))
    assert isinstance(image_only, ClipBackbone)
    assert isinstance(text_only, ClipBackbone)
    assert image_only.text is None
    assert text_only.visual is None
    assert text_only.text is not None
    assert not any("visual" in name for name, _ in text_only.text.network.named_modules())
    assert image_only.has_text
    assert text_only.has_text
    assert text_only.encode_text([]).shape == (0, 32)
    assert text_only.device == torch.device("cpu")
    with pytest.raises(BackboneUnavailableError, match=r"^The text tower .*\"text\""):
        image_only.encode_text(["mug"])
    with pytest.raises(BackboneUnavailableError, match=r"^The image tower"):
        text_only.encode_image(images)
    with pytest.raises(
        TypeError, match=r"must be a sequence of strings, got one string. Pass \['mug'\]"
    ):
        text_only.encode_text("mug")


def test_loading_and_writing_leave_the_random_state_alone(clip_ref, tmp_path):
    before = torch.get_rng_state()
    load_backbone(clip_ref, towers=("image", "text"))
    write_random_checkpoint(tmp_path / "other", seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_checkpoint_depends_on_its_seed_alone(tmp_path):
    def tensor(name: str, seed: int) -> torch.Tensor:
        folder = write_random_checkpoint(tmp_path / name, seed=seed, width=32, layers=2)
        return load_file(folder / "open_clip_model.safetensors")["visual.proj"]

    assert torch.equal(tensor("a", 1), tensor("b", 1))
    assert not torch.equal(tensor("a", 1), tensor("c", 2))


def test_a_text_tower_under_its_own_name(clip_folder, clip_ref, tmp_path):
    folder = edit_config(clip_folder, tmp_path / "custom", custom_text=True)
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    own = [name for name in state if not name.startswith("visual.") and name != "logit_scale"]
    for name in own:
        state[f"text.{name}"] = state.pop(name)
    save_file(state, file)
    embeddings = load_backbone(replace(clip_ref, weights=str(folder)), towers=("text",))
    expected = load_backbone(clip_ref, towers=("text",)).encode_text(["mug"])
    torch.testing.assert_close(embeddings.encode_text(["mug"]), expected)


@pytest.mark.parametrize("model", ["ViT-L-14-336", "ViT-L-14-336-quickgelu", "ViT-L/14-336"])
def test_openai_tags_always_run_with_quick_gelu(monkeypatch, model):
    asked = []

    def fetch(repository, names):
        asked.append((repository, tuple(names)))
        return Path("weights.safetensors")

    monkeypatch.setattr("f3rm.backbones.clip.source.fetch_file", fetch)
    source = find_source(BackboneRef("clip", model, "openai"))
    assert source.config["quick_gelu"] is True
    assert source.mean == open_clip.OPENAI_DATASET_MEAN
    assert asked[0][1][0] == "open_clip_model.safetensors"


def test_statistics_and_activation_follow_the_tag(monkeypatch):
    monkeypatch.setattr("f3rm.backbones.clip.source.fetch_file", lambda *_: Path("w.bin"))
    source = find_source(BackboneRef("clip", "ViT-L-14", "laion2b_s32b_b82k"))
    assert source.config["quick_gelu"] is False
    assert source.mean == (0.5, 0.5, 0.5)


def test_hub_repositories_are_read_like_folders(monkeypatch, clip_folder):
    def fetch(repository, names):
        assert repository == "org/name"
        return clip_folder / names[0]

    monkeypatch.setattr("f3rm.backbones.clip.source.fetch_file", fetch)
    backbone = load_backbone(BackboneRef("clip", "", "hf-hub:org/name"))
    assert backbone.channels == 32
    assert backbone.provenance() == {
        "library": "open_clip",
        "version": open_clip.__version__,
        "torch": torch.__version__,
        "weights": "hub:@hf-hub:org/name",
    }


@pytest.mark.parametrize("weights", ["openai", "hf-hub:f3rm/no-such-model"])
@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_is_quick_and_helpful(weights):
    start = time.monotonic()
    with pytest.raises(BackboneUnavailableError, match=LOCAL_HINT) as caught:
        load_backbone(BackboneRef("clip", "ViT-L-14-336-quickgelu", weights))
    assert time.monotonic() - start < 5
    assert weights in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("ViT-L-14-336", "opnai", "no such tag; did you mean openai"),
        ("ViT-L-14-337", "openai", "no such model; did you mean .*ViT-L-14-336"),
        ("ViT-L-14-336", "/nowhere/clip.safetensors", "no file or folder '/nowhere/clip.s"),
        ("ViT-L-14-336", "~/nowhere", "no file or folder '/.*nowhere' exists"),
        ("ViT-L-14-336", "clip.pt", "no file or folder 'clip.pt' exists"),
        ("ViT-L-14-336", "hf-hub:a/b/c", "no file or folder"),
    ],
    ids=["tag", "model", "absolute", "home", "suffix", "hub"],
)
def test_unknown_names_and_missing_paths(model, weights, message):
    with pytest.raises(BackboneUnavailableError, match=message) as caught:
        load_backbone(BackboneRef("clip", model, weights))
    assert repr(weights) in str(caught.value)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_base"}, "the timm model 'vit_base'"),
        ({"pool_type": "none"}, "neither by its class token nor by averaging"),
        ({"attentional_pool": True}, "neither by its class token nor by averaging"),
        ({"pool_type": "avg", "final_ln_after_pool": True}, "normed after averaging"),
        ({"patch_size": [14, 16]}, r"patches of \[14, 16\]"),
    ],
    ids=["timm", "none", "attention", "norm", "oblong"],
)
def test_other_image_towers_are_refused(clip_folder, tmp_path, vision, message):
    published = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    changed = {**published["vision_cfg"], **vision}
    folder = edit_config(clip_folder, tmp_path / "other", vision_cfg=changed)
    with pytest.raises(BackboneUnavailableError, match=message):
        load_backbone(BackboneRef("clip", "", str(folder)))


def test_other_text_towers_are_refused_but_their_images_work(clip_folder, tmp_path, images):
    text = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
    folder = edit_config(clip_folder, tmp_path / "roberta", text_cfg=text)
    ref = BackboneRef("clip", "", str(folder))
    backbone = load_backbone(ref)
    assert not backbone.has_text
    assert backbone.encode_image(images).shape == (1, 2, 3, 32)
    with pytest.raises(BackboneUnavailableError, match="text tower is not open_clip's own"):
        load_backbone(ref, towers=("text",))


def test_weights_that_do_not_fit_are_refused(clip_folder, tmp_path):
    wider = edit_config(clip_folder, tmp_path / "wider", embed_dim=16)
    with pytest.raises(BackboneUnavailableError, match=r"does not fit the model .*size mismatch"):
        load_backbone(BackboneRef("clip", "", str(wider)))
    file = tmp_path / "wider" / "open_clip_model.safetensors"
    save_file({"encoder.weight": torch.zeros(2)}, file)
    with pytest.raises(BackboneUnavailableError, match=r"does not fit the model .missing"):
        load_backbone(BackboneRef("clip", "", str(wider)))


def test_unusable_folders_name_what_is_lacking(clip_folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BackboneUnavailableError, match=r"must hold open_clip_config.json and"):
        load_backbone(BackboneRef("clip", "", str(empty)))
    unknown = edit_config(clip_folder, tmp_path / "unknown", from_the_future=1)
    with pytest.raises(BackboneUnavailableError, match="cannot build its configuration"):
        load_backbone(BackboneRef("clip", "", str(unknown)))
    config = unknown / "open_clip_config.json"
    config.write_text('{"model_cfg": {"embed_dim": 3}}')
    with pytest.raises(BackboneUnavailableError, match="lacks vision_cfg, text_cfg"):
        load_backbone(BackboneRef("clip", "", str(unknown)))
    config.write_text("{")
    with pytest.raises(BackboneUnavailableError, match="holds no model_cfg"):
        load_backbone(BackboneRef("clip", "", str(unknown)))
