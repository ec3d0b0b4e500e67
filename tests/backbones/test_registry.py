"""Adapters by name: shipped, installed by other packages, unknown, and without their package."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import f3rm.backbones
from f3rm.backbones import adapter_names, load_backbone
from f3rm.backbones.weights import weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError

TOY_ADAPTER = """
import torch
from f3rm.backbones import Backbone

class ToyBackbone(Backbone):
    def __init__(self, ref, device):
        self.ref, self.channels, self.patch_size = ref, 3, 2
        self.mean, self.std, self.has_text = (0.0,) * 3, (1.0,) * 3, False
        self._device = torch.device(device)

    @classmethod
    def load(cls, ref, *, device, towers):
        assert towers == ("image",)
        return cls(ref, device)

    def encode_image(self, images):
        rows, cols = self.feature_grid(images)
        return images[..., ::2, ::2].permute(0, 2, 3, 1)

    def provenance(self):
        return {"library": "toy"}

    @property
    def device(self):
        return self._device

def not_a_class():
    return None
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real third-party package on the path, with its metadata as pip writes it."""
    (tmp_path / "f3rm_toy_adapter.py").write_text(TOY_ADAPTER)
    (tmp_path / "f3rm_needy_adapter.py").write_text("import a_package_nobody_has\n")
    metadata = tmp_path / "f3rm_toy_adapter-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: f3rm-toy-adapter\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [f3rm.backbones]
            toy = f3rm_toy_adapter:ToyBackbone
            function = f3rm_toy_adapter:not_a_class
            moved = f3rm_toy_adapter:NoLongerHere
            needy = f3rm_needy_adapter:NeedyBackbone
            clip = f3rm_toy_adapter:ToyBackbone
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_the_shipped_adapters_are_known():
    assert {"clip", "dino", "dinov2"} <= set(adapter_names())
    assert list(adapter_names()) == sorted(adapter_names())


@pytest.mark.usefixtures("installed")
def test_other_packages_add_adapters():
    assert "toy" in adapter_names()
    backbone = load_backbone(BackboneRef("toy", "toy-1", "none"))
    assert backbone.encode_image(torch.zeros(1, 3, 4, 6)).shape == (1, 2, 3, 3)
    assert type(backbone).__name__ == "ToyBackbone"


@pytest.mark.usefixtures("installed")
def test_a_shipped_name_cannot_be_taken_over(clip_ref):
    assert type(load_backbone(clip_ref)).__name__ == "ClipBackbone"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("function", "must be a subclass of f3rm.backbones.Backbone"),
        ("moved", "Reinstall or update the package 'f3rm_toy_adapter'"),
        ("needy", "'a_package_nobody_has'.* Install it: pip install a_package_nobody_has"),
    ],
)
def test_a_broken_package_is_named(adapter, message):
    with pytest.raises(BackboneUnavailableError, match=message):
        load_backbone(BackboneRef(adapter, "", ""))


@pytest.mark.parametrize(("name", "match"), [("clib", "clip"), ("dinov4", "dinov2")])
def test_an_unknown_adapter_gets_near_matches(name, match):
    with pytest.raises(
        BackboneUnavailableError, match=rf"adapter '{name}'; did you mean .*{match}"
    ):
        load_backbone(BackboneRef(name, "", ""))


@pytest.mark.parametrize(
    ("adapter", "package", "distribution"),
    [("clip", "open_clip", "open_clip_torch"), ("dino", "transformers", "transformers")],
)
def test_a_missing_package_is_named_with_its_cause(monkeypatch, adapter, package, distribution):
    for module in [name for name in sys.modules if name.startswith(f"f3rm.backbones.{adapter}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackboneUnavailableError, match=f"pip install {distribution}") as caught:
        load_backbone(BackboneRef(adapter, "", ""))
    assert isinstance(caught.value.__cause__, ImportError)


def test_some_tower_must_be_asked_for(clip_ref):
    with pytest.raises(ValueError, match="towers must name some of"):
        load_backbone(clip_ref, towers=())


def _said(code):
    """What a new interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return result.stdout


def test_importing_the_room_loads_no_model_library():
    code = (
        "import sys, f3rm.backbones; f3rm.backbones.adapter_names(); "
        "heavy = ('open_clip', 'transformers', 'nerfstudio', 'timm'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    assert _said(code).strip() == "[]"


def test_an_adapter_is_loaded_without_a_slow_logger_which_can_be_imported_later():
    code = (
        "import sys; from f3rm.backbones.registry import load_backbone; "
        "from f3rm.errors import BackboneRef, F3rmError\n"
        "try: load_backbone(BackboneRef('clip', 'no model', ''))\n"
        "except F3rmError: print('timm' in sys.modules, 'wandb' in sys.modules)\n"
        "import wandb; print(wandb.__name__)"
    )
    assert _said(code).split() == ["True", "False", "wandb"]


def test_classes_of_families_are_found_in_the_room_on_first_use():
    code = (
        "import sys, f3rm.backbones; print('f3rm.backbones.module.backbone' in sys.modules); "
        "from f3rm.backbones import ModuleBackbone, VideoBackbone; "
        "heavy = ('open_clip', 'transformers', 'torchvision', 'timm', 'diffusers'); "
        "print(ModuleBackbone.__name__, VideoBackbone.__name__); "
        "print([name for name in heavy if name in sys.modules])"
    )
    assert _said(code).splitlines() == ["False", "ModuleBackbone VideoBackbone", "[]"]
    with pytest.raises(AttributeError, match=r"'f3rm\.backbones' has no attribute 'ModelBackbone'"):
        f3rm.backbones.ModelBackbone  # noqa: B018


def test_names_are_identified_without_a_model():
    ref = BackboneRef("clip", "ViT-L-14-336-quickgelu", "openai")
    assert weights_identity(ref) == "hub:ViT-L-14-336-quickgelu@openai"
    dino = BackboneRef("dino", "facebook/dino-vits8", "")
    assert weights_identity(dino) == "hub:facebook/dino-vits8@facebook/dino-vits8"
