"""``f3rm doctor`` as a user calls it, on machines with and without what training needs."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from f3rm.backbones import hub
from f3rm.backbones.at_hand import weights_at_hand
from f3rm.errors import BackboneRef
from f3rm.networks import base
from f3rm.scripts import doctor
from f3rm.scripts.cli import main
from f3rm.store.spec import PRESETS

METHOD = SimpleNamespace(value="f3rm.f3rm_config:f3rm_method", load=lambda: None)


@pytest.fixture(autouse=True)
def _sound(monkeypatch):
    """Nothing but the GPU differs between the machines of these tests."""
    monkeypatch.setattr(doctor, "namesake_beside", lambda: None)
    monkeypatch.setattr(doctor, "entry_points", lambda **_: [METHOD])
    monkeypatch.setattr(hub, "require_hub", lambda: pytest.fail("asked the network"))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    found = SimpleNamespace(name="Test GPU", total_memory=24 << 30, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(base, "tcnn_installed", lambda: False)


def rows(text):
    """Returns what stands beside each name of the report."""
    return {line[:18].strip(): line[18:] for line in text.splitlines() if line.strip()}


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_last_line_says_why_not_and_what_would(capsys):
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("ns-train f3rm cannot run here: PyTorch")
    assert "sees no CUDA GPU" in last
    assert last.endswith("ns-train f3rm-lite --machine.device-type cpu")
    found = rows(shown.out)
    assert found["GPU"] == "none"
    assert found["hash grids"].startswith("torch on cpu: there is no GPU; ")
    assert "can run here" not in shown.out


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_it_can_run_and_the_report_fits_one_screen(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[-1] == "ns-train f3rm can run here."
    assert len(shown.out.splitlines()) <= 40
    found = rows(shown.out)
    assert found["GPU"] == "Test GPU, 24.0 GiB, compute capability 8.6"
    assert found["hash grids"].startswith("torch on cuda: tiny-cuda-nn is not installed")
    assert torch.__version__.startswith(found["torch"])
    assert found["ffmpeg"] == "/usr/bin/ffmpeg"
    assert found["TINYCLIP"].endswith("tinyclip")
    assert set(PRESETS) <= set(found)


@pytest.mark.usefixtures("gpu")
def test_the_implementation_is_the_one_that_auto_chooses(capsys, monkeypatch):
    choices = [
        base.Choice("torch", "tiny-cuda-nn cannot be imported", is_fallback=True),
        base.Choice("tcnn", "tiny-cuda-nn is installed and the device is CUDA"),
    ]
    for choice in choices:
        monkeypatch.setattr(base, "choose_implementation", lambda *_, choice=choice: choice)
        assert main(["doctor"]) == 0
        shown = rows(capsys.readouterr().out)
        assert shown["hash grids"] == f"{choice.implementation} on cuda: {choice.reason}"


@pytest.mark.parametrize("device", ["gpu", "no_gpu"])
def test_json_says_the_same(capsys, request, device):
    request.getfixturevalue(device)
    able = device == "gpu"
    assert main(["doctor", "--json"]) == (0 if able else 1)
    found = json.loads(capsys.readouterr().out)
    assert found["can_train"] is able
    assert bool(found["problems"]) is bool(found["advice"]) is not able
    assert found["packages"]["nerfstudio"]["required"] is True
    assert found["packages"]["numba"]["purpose"]
    assert set(found["weights"]) == set(PRESETS)
    assert [each["name"] for each in found["machine"]["gpus"]] == ["Test GPU"] * able
    assert found["machine"]["cores"] >= 1


@pytest.mark.usefixtures("gpu")
def test_what_is_missing_says_what_it_is_for(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name in ("numba", "viser") else "1"
    )
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    found = rows(shown.out)
    assert found["numba"].startswith("missing: faster hash grids on a CPU; pip install 'numba>=")
    assert found["viser"] == "missing: the viewer"
    assert shown.err == (
        "ns-train f3rm cannot run here: viser is missing. What to do: pip install viser\n"
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ([], "Nerfstudio does not know the method f3rm"),
        ([SimpleNamespace(value="other:method")], "Nerfstudio does not know the method f3rm"),
        (
            [SimpleNamespace(value=METHOD.value, load=lambda: torch.ops.torchvision.no_such_op)],
            "the plugin cannot be imported",
        ),
    ],
    ids=["not installed", "another", "broken"],
)
def test_a_plugin_that_cannot_be_had_is_a_problem(capsys, monkeypatch, methods, problem):
    monkeypatch.setattr(doctor, "entry_points", lambda **_: methods)
    assert main(["doctor"]) == 1
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_an_open3d_without_its_system_libraries_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    main(["doctor"])
    said = rows(capsys.readouterr().out)["open3d"]
    assert re.search(r"\. Open3D, which .*, cannot be imported: .*libegl1", said)


@pytest.mark.usefixtures("gpu")
def test_a_namesake_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "namesake_beside", lambda: "Run: pip uninstall")
    assert main(["doctor"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "another project's f3rm is installed too" in last
    assert last.endswith("What to do: Run: pip uninstall")


class _Cache:
    """A hub cache that has some files."""

    def __init__(self, folder, *files):
        self.folder, self.files = folder, files

    def __call__(self, repository, name):
        path = self.folder / name
        return str(path) if f"{repository}/{name}" in self.files else None


OPENAI = "timm/vit_large_patch14_clip_336.openai/open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("feature_type", "files"),
    [
        ("CLIP", [OPENAI]),
        ("DINO", ["facebook/dino-vits8/pytorch_model.bin"]),
        ("DINOV2", ["facebook/dinov2-large/model.safetensors"]),
        (
            "PROXYCLIP",
            [
                "timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors",
                "facebook/dino-vitb8/model.safetensors",
            ],
        ),
        (
            "ROBOPOINTPROJ",
            [
                "wentao-yuan/robopoint-v1-vicuna-v1.5-13b/pytorch_model.bin.index.json",
                "wentao-yuan/robopoint-v1-vicuna-v1.5-13b/vision.bin",
            ],
        ),
    ],
)
def test_weights_are_at_hand_once_all_their_files_are(monkeypatch, tmp_path, feature_type, files):
    index = {"weight_map": {"model.mm_projector.0.weight": "vision.bin", "lm_head.weight": "l.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    ref = PRESETS[feature_type].backbone
    for lacking in files:
        some = [file for file in files if file != lacking]
        monkeypatch.setattr(hub, "try_to_load_from_cache", _Cache(tmp_path, *some))
        assert weights_at_hand(ref) is None
    monkeypatch.setattr(hub, "try_to_load_from_cache", _Cache(tmp_path, *files))
    found = weights_at_hand(ref)
    assert found is not None
    assert found.name == files[0].rpartition("/")[2]


def test_paths_are_at_hand_and_other_adapters_are_unknown(tmp_path):
    assert weights_at_hand(BackboneRef("dino", "any", str(tmp_path))) == tmp_path
    assert weights_at_hand(BackboneRef("module", "timm:resnet18", "pretrained")) is None
