"""Identity of local weights, the rule for paths, cached hub files, and damaged weight files."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from f3rm.backbones import hub
from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.weights import hub_name, local_weights, near_matches, weights_identity
from f3rm.errors import BackboneRef, BackboneUnavailableError


def ref_to(path: Path | str) -> BackboneRef:
    return BackboneRef("clip", "model", str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_copy_has_the_same_identity(folder, tmp_path):
    identity = weights_identity(ref_to(folder))
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    (copy / "README.md").write_text("not part of the weights")
    assert weights_identity(ref_to(copy)) == identity
    assert identity.startswith("xxh3:")
    file = ref_to(folder / "model.safetensors")
    moved = shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    assert weights_identity(ref_to(moved)) == weights_identity(file)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_changes_the_identity(folder, name):
    before = weights_identity(ref_to(folder))
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert weights_identity(ref_to(folder)) != before


def test_moving_bytes_between_files_changes_the_identity(folder):
    before = weights_identity(ref_to(folder))
    (folder / "config.json").write_text("{}0")
    (folder / "model.safetensors").write_bytes(b"123456789")
    assert weights_identity(ref_to(folder)) != before


def test_a_folder_without_weights_has_no_identity(tmp_path):
    with pytest.raises(BackboneUnavailableError, match=r"holds no \.safetensors"):
        weights_identity(ref_to(tmp_path))


@pytest.mark.parametrize(
    "name", ["openai", "laion2b_s32b_b82k", "facebook/dinov2-large", "hf-hub:org/name.v1"]
)
def test_tags_and_hub_names_are_no_paths(name):
    assert local_weights(ref_to(name)) is None


@pytest.mark.parametrize(
    "name",
    [
        "/no/where",
        "./here",
        "../there",
        "~/clip",
        "C:\\clip",
        "a/b/c",
        "clip.pt",
        "org/x.bin",
        "dino.pth.tar",
    ],
)
def test_missing_paths_are_recognised(name):
    with pytest.raises(BackboneUnavailableError, match="no file or folder"):
        local_weights(ref_to(name))


def test_a_mistyped_name_in_a_folder_that_exists_is_a_missing_path(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "dino").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneUnavailableError) as caught:
        local_weights(ref_to("checkpoints/dnio"))
    assert (
        f"no file or folder 'checkpoints/dnio' exists; the nearest folder is "
        f"{str(tmp_path / 'checkpoints')!r}, which has 'dino' (a model of the hub is "
        "hf-hub:checkpoints/dnio)"
    ) in str(caught.value)
    with pytest.raises(BackboneUnavailableError, match=r"nearest folder is .*, which has 'chec"):
        local_weights(ref_to(tmp_path / "checkpoint" / "dino"))


def test_a_name_beside_other_weights_is_a_missing_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    weights = f"{folder.parent.name}/clip"
    with pytest.raises(BackboneUnavailableError, match="no file or folder"):
        local_weights(ref_to(weights))
    assert local_weights(BackboneRef("dino", weights, weights)) is None  # the model is called so
    ref = ref_to(f"hf-hub:{weights}")
    assert local_weights(ref) is None
    assert hub_name(ref) == weights


def test_a_folder_without_weights_takes_nothing_from_the_hub(tmp_path, monkeypatch):
    (tmp_path / "facebook" / "src").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_weights(ref_to("facebook/dino-vits8")) is None


def test_what_exists_is_a_path_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    assert local_weights(ref_to("openai")) == Path("openai")


def test_near_matches_fall_back_to_all():
    assert near_matches("opnai", ["openai", "laion"]) == "did you mean openai?"
    assert near_matches("xyz", ["b", "a"]) == "known are a, b"
    assert near_matches("xyz", []) == "known are none"


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "missing.pt"])
def test_damaged_weight_files_are_named(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"this is no weight file at all")
    with pytest.raises(BackboneUnavailableError, match=rf"{name}' is not a readable weight file"):
        read_state_dict(tmp_path / name)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"weight": torch.zeros(1), "path": Path("x")}, tmp_path / "objects.pt")
    with pytest.raises(BackboneUnavailableError, match="not a readable weight file"):
        read_state_dict(tmp_path / "objects.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(BackboneUnavailableError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "list.pt")


def test_only_the_chosen_tensors_are_returned(tmp_path):
    torch.save({"a.x": torch.zeros(1), "b.x": torch.ones(1)}, tmp_path / "state.pt")
    state = read_state_dict(tmp_path / "state.pt", keep=lambda name: name.startswith("b."))
    assert list(state) == ["b.x"]


def test_cached_files_are_used_without_a_request(monkeypatch, tmp_path):
    cached = {"second": str(tmp_path / "second")}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, name: cached.get(name))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: pytest.fail("sent a request"))
    assert hub.fetch_file("org/name", ["first", "second"]) == tmp_path / "second"


def test_the_first_file_that_the_hub_has_is_downloaded(monkeypatch, tmp_path):
    def download(repository: str, name: str) -> str:
        if name != "third":
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "require_hub", lambda: None)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert hub.fetch_file("org/name", ["first", "second", "third"]) == tmp_path / "third"
    with pytest.raises(FileNotFoundError, match="'org/name' holds none of first, second"):
        hub.fetch_file("org/name", ["first", "second"])


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr(hub, "require_hub", lambda: None)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(LocalEntryNotFoundError):
        hub.fetch_file("org/name", ["first", "second"])
    assert asked == ["first"]
