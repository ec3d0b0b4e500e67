import sys
from dataclasses import replace
from typing import Any

import pytest

from f3rm.errors import BackboneRef, FeatureTypeError
from f3rm.store.geometry import Prep, PrepError
from f3rm.store.spec import PRESETS, FeatureSpec, resolve_feature_type
from f3rm.store.video import FramePolicy
from tests.extract.toy import toy_spec

IDENTITY = "hub:x"


def names(text, **options):
    return [spec.name for spec in resolve_feature_type(text, **options)]


def test_names_aliases_and_combinations_in_any_case():
    assert names("clip") == ["clip"]
    assert names("DinoClip") == names("DINOCLIP") == names("dino + clip") == ["dino", "clip"]
    assert names("CLIP+DINOV2+DINO") == ["clip", "dinov2", "dino"]


def test_presets_are_the_documented_ones():
    (clip,) = resolve_feature_type("CLIP")
    assert clip.backbone == BackboneRef("clip", "ViT-L-14-336-quickgelu", "openai")
    assert (clip.taps, clip.prep, clip.codec) == (("-1|dense(maskclip)",), Prep(size=1024), "fp16")
    assert [spec.prep.size for spec in resolve_feature_type("DINO+DINOV2")] == [448, 518]
    assert all(key.lower() == spec.name for key, spec in PRESETS.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CLOP", "no feature type 'CLOP'. Did you mean CLIP"),
        ("DINO+", "no feature type ''. Choose one of these"),
        ("CLIP+clip", "'CLIP\\+clip' with CLIP twice. Drop one"),
        ("DINOCLIP+CLIP", "with CLIP twice"),
    ],
)
def test_unknown_and_repeated_types(text, message):
    with pytest.raises(FeatureTypeError, match=message):
        resolve_feature_type(text)


def test_weights_replace_the_default_of_their_type_only(tmp_path):
    path = tmp_path / "weights.pt"
    path.touch()
    for weights in ({"clip": str(path)}, [f"CLIP={path}"]):
        dino, clip = resolve_feature_type("DINOCLIP", weights=weights)
        assert clip.backbone == replace(PRESETS["CLIP"].backbone, weights=str(path))
        assert dino == replace(PRESETS["DINO"], precision="auto")


def test_local_weights_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    (tmp_path / "w.pt").touch()
    monkeypatch.chdir(tmp_path)
    dino, clip = resolve_feature_type("DINOCLIP", weights=["CLIP=w.pt", "DINO=me/model=1"])
    assert clip.backbone.weights == str(tmp_path / "w.pt")
    assert dino.backbone.weights == "me/model=1"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["DINO=x"], "weights must name one of the types in use, CLIP, got 'DINO'"),
        ({"CLI": "x"}, "got 'CLI'. Did you mean CLIP"),
        (["x"], "weights must look like CLIP=PATH, got 'x'"),
        (["CLIP="], "weights must look like CLIP=PATH, got 'CLIP='"),
    ],
    ids=["unused", "unknown", "no-type", "no-path"],
)
def test_wrong_weights(weights, message):
    with pytest.raises(FeatureTypeError, match=message):
        resolve_feature_type("CLIP", weights=weights)


def test_short_side_override():
    (clip,) = resolve_feature_type("CLIP", short_side={"CLIP": 224})
    assert clip.prep == Prep(size=224)
    with pytest.raises(PrepError, match=r"size must be a number of pixels, .* got 0 with"):
        resolve_feature_type("CLIP", short_side={"CLIP": 0})


def test_key_depends_on_every_setting_but_not_on_name_or_place():
    spec = toy_spec()
    preps: list[dict[str, Any]] = [
        {"size": 33},
        {"resize": "long"},
        {"fit": "square"},
        {"pad_value": "edge"},
        {"interpolation": "bilinear"},
        {"window": (32, 16)},
        {"window": (32, 32)},
        {"scales": (1.0, 0.5)},
    ]
    changes = [
        {"taps": ("other",)},
        {"taps": ("final", "other")},
        *({"prep": replace(spec.prep, **change)} for change in preps),
        {"frames": FramePolicy(num=3)},
        {"background": (1.0, 1.0, 1.0)},
        {"codec": "fp32"},
        {"precision": "bfloat16"},
        {"backbone": BackboneRef("toy", "other", "toy")},
        {"backbone": BackboneRef("other", "mean", "toy")},
    ]
    changed = [replace(spec, **change) for change in changes]
    keys = {each.key(IDENTITY) for each in changed}
    assert [FeatureSpec.from_dict(each.to_dict()) for each in changed] == changed
    keys |= {spec.key(IDENTITY), spec.key("hub:y"), spec.key(IDENTITY, algorithm=99)}
    assert len(keys) == len(changes) + 3
    moved = replace(spec, name="renamed", backbone=replace(spec.backbone, weights="/elsewhere"))
    assert moved.key(IDENTITY) == spec.key(IDENTITY)


def test_names_must_be_safe_folder_names():
    for name in ("../x", "CLIP", "a/b", ".hidden"):
        with pytest.raises(FeatureTypeError, match="name must be lower-case"):
            replace(toy_spec(), name=name)


def test_installed_adapters_are_feature_types(toy_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(toy_plugin))
    (toy,) = resolve_feature_type("TOY")
    assert toy == toy_spec(precision="auto")
    with pytest.raises(
        FeatureTypeError, match=r"There are CLIP, DINO, DINOV2, .*TINYCLIP, .*DINOCLIP, .*TOY, also"
    ):
        resolve_feature_type("TOI")


def test_an_adapter_that_cannot_be_used_is_named(toy_plugin, monkeypatch):
    (entries,) = toy_plugin.glob("*/entry_points.txt")
    entries.write_text("[f3rm.backbones]\nbroken = no_such_module:X\nplain = json:JSONDecoder\n")
    monkeypatch.syspath_prepend(str(toy_plugin))
    sys.path_importer_cache.clear()
    for name in ("broken", "plain"):
        with pytest.raises(FeatureTypeError, match=f"the adapter '{name}' .* Update the package"):
            resolve_feature_type(name)
