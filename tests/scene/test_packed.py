"""A scene opens without its photographs; packed into one file, without its run and dataset too."""

import random
import shutil

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import f3rm
from f3rm.errors import F3rmError, ImageError
from f3rm.evaluation.evaluate import evaluate_run
from f3rm.language.questions import LanguageError
from f3rm.scene.export import ExportError, export_boxes, export_packed
from f3rm.scene.export.sightings import write_sightings
from f3rm.scene.kept.packed import NOTE
from f3rm.scripts import cli
from tests.fuzz.mutations import spoiled

RAYS = 20_000
POINTS = torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.0, 0.1], [0.0, 0.0, 5.0]])


@pytest.fixture(scope="module")
def view(scene):
    return scene.views()[3]


@pytest.fixture(scope="module")
def without_photographs(run, tmp_path_factory):
    """The run's scene, whose dataset has lost its photographs."""
    root = tmp_path_factory.mktemp("lost")
    data = shutil.copytree(run.truth.folder, root / "scene", ignore=lambda *_: {"images", "truth"})
    config = shutil.copytree(run.config.parent, root / "run")
    return f3rm.load(config, data=data, device="cpu", surface_rays=RAYS)


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    """A packed scene alone in a folder: the run that it was made of is gone."""
    root = tmp_path_factory.mktemp("packed")
    data = shutil.copytree(run.truth.folder, root / "scene")
    config = shutil.copytree(run.config.parent, root / "run")
    opened = f3rm.load(config, data=data, device="cpu")
    assert export_packed(opened, root / "before.f3rm") == ()
    (root / "alone").mkdir()
    file = shutil.move(root / "before.f3rm", root / "alone" / "a scene.f3rm")
    shutil.rmtree(data)
    shutil.rmtree(config)
    return file


@pytest.fixture(scope="module")
def elsewhere(packed):
    return f3rm.load(packed, device="cpu", surface_rays=RAYS)


def _same(one, other, view):
    """Checks that two scenes give the same answers, bit by bit."""
    assert one.heads == other.heads
    assert one.views("train") == other.views("train")
    assert one.views("eval") == other.views("eval")
    for frame in ("dataset", "nerfstudio", "metres"):
        for head in one.heads:
            features = [each.features(POINTS, head, frame=frame) for each in (one, other)]
            assert torch.equal(*features)
        assert torch.equal(one.density(POINTS, frame=frame), other.density(POINTS, frame=frame))
    found = [each.find("orange; green", frame="metres") for each in (one, other)]
    assert [str(answer) for answer in found[0]] == [str(answer) for answer in found[1]]
    for first, second in zip(*(answers[0] for answers in found), strict=True):
        assert first.to_dict() == second.to_dict()
    assert len(found[0][0])
    clicked = [each.find(like=(view, (80, 60)), head="mute") for each in (one, other)]
    assert str(clicked[0]) == str(clicked[1])
    camera = one.cameras("eval")[0]
    camera.rescale_output_resolution(0.3)
    outputs = ["rgb", "depth", "pca", "similarity", "labels"]
    pictures = [each.render(camera, outputs, query="orange") for each in (one, other)]
    for name in outputs:
        assert torch.equal(pictures[0][name], pictures[1][name]), name


def test_geometry_and_language_need_no_photographs(scene, without_photographs):
    one, other = scene, without_photographs
    assert not other.run.stores
    assert torch.equal(one.features(POINTS), other.features(POINTS))
    camera = one.cameras("eval")[0]
    camera.rescale_output_resolution(0.2)
    assert torch.equal(one.render(camera)["rgb"], other.render(camera)["rgb"])
    assert str(one.find("orange")) == str(other.find("orange"))
    with pytest.raises(ImageError, match=r"There is no photograph .* with --data"):
        other.like((one.views()[0], (3, 4)))


def test_opening_a_run_reads_no_photograph(run, monkeypatch):
    def read(*_):
        raise AssertionError("a photograph was read")

    monkeypatch.setattr("nerfstudio.data.datasets.base_dataset.InputDataset.get_numpy_image", read)
    assert len(f3rm.load(run.config, device="cpu").views()) == 22


def test_a_packed_scene_answers_like_the_run(scene, elsewhere, view):
    _same(scene, elsewhere, view)


def test_it_says_what_it_is(elsewhere, packed):
    assert str(packed) in repr(elsewhere)
    assert elsewhere.run.provenance["run"] == "run"
    assert elsewhere.run.provenance["dataset"] == "scene"
    assert elsewhere.run.provenance["step"] > 0


def test_it_names_no_path_of_where_it_was_made(packed):
    content = packed.read_bytes()
    assert b"/tmp" not in content
    assert str(packed.parents[1]).encode() not in content


def test_nothing_is_kept_beside_it_and_an_evaluation_needs_its_run(elsewhere, packed):
    assert len(elsewhere.cells)
    assert [file.name for file in packed.parent.iterdir()] == [packed.name]
    with pytest.raises(F3rmError, match="Evaluate the run"):
        evaluate_run(packed, device="cpu")


def test_commands_take_it(packed, tmp_path, capsys):
    arguments = ["find", str(packed), "orange", "--json", "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert '"orange"' in capsys.readouterr().out
    export_boxes(f3rm.load(packed, device="cpu"), tmp_path / "boxes.json", query="orange")


def test_the_command_packs_and_a_packed_one_is_not_packed_again(run, packed, tmp_path, capsys):
    out = tmp_path / "scene.f3rm"
    assert cli.main(["pack", str(run.config), "--out", str(out), "--device", "cpu"]) == 0
    assert f"Wrote {out}: " in capsys.readouterr().out
    opened = f3rm.load(out, device="cpu")
    with pytest.raises(F3rmError, match="Only runs are packed"):
        export_packed(opened, tmp_path / "again.f3rm")
    with pytest.raises(ExportError, match=r"must end in \.f3rm"):
        export_packed(opened, tmp_path / "again.zip")


def test_what_needs_photographs_says_so(elsewhere, packed, run, tmp_path):
    instance = elsewhere.find("orange", frame="metres")
    with pytest.raises(ImageError, match=r"There is no photograph .* with --data"):
        write_sightings(elsewhere, [instance], tmp_path / "a.png")
    opened = f3rm.load(packed, data=run.truth.folder, device="cpu", surface_rays=RAYS)
    assert write_sightings(opened, [instance], tmp_path / "a.png")


def _changed(packed, file, change=lambda note: None, tensors=lambda tensors: None):
    """Writes a packed scene with another note or other tensors."""
    with safe_open(packed, "pt") as stored:
        note = msgspec.json.decode(stored.metadata()[NOTE])
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    change(note)
    tensors(arrays)
    save_file(arrays, file, metadata={NOTE: msgspec.json.encode(note).decode()})
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda note: note.update(version=2), "its version is 2, this f3rm reads version 1"),
        (lambda note: note.update(more=1), "unknown field `more`"),
        (lambda note: note.pop("frames"), "missing required field `frames`"),
        (lambda note: note.update(train=[]), "names no training photograph"),
        (lambda note: note["train"].append("../a.png"), "'../a.png' is not in the dataset's"),
        (lambda note: note["held_out"].append("/etc/a.png"), "'/etc/a.png' is not in the data"),
        (lambda note: note["train"].pop(), "does not fit its 21 photographs"),
        (lambda note: note["frames"].pop("dataset"), r"its frames are \['metres', 'nerfst"),
        (lambda note: note["frames"].update(dataset=[[0] * 4] * 4), "no invertible matrix"),
        (lambda note: note["options"].update(magic=1), r"unknown options \['magic'\]"),
        (lambda note: note["options"].update(log2_hashmap_size=40), "log2_hashmap_size is 40"),
        (lambda note: note["options"].update(hidden_dim=1 << 40), "option hidden_dim is"),
        (lambda note: note["options"].update(hidden_dim="x"), "Expected `int`, got `str`"),
        (lambda note: note["options"].update(hidden_dim=7), "size mismatch"),
        (lambda note: note["field"].update(heads=3), "Expected `array`, got `int`"),
    ],
)
def test_a_note_that_cannot_be_is_refused(packed, tmp_path, change, message):
    file = _changed(packed, tmp_path / "a.f3rm", change)
    with pytest.raises(F3rmError, match=f"is no file of f3rm pack, or damaged: .*{message}"):
        f3rm.load(file, device="cpu")


def test_cameras_and_weights_that_cannot_be_are_refused(packed, tmp_path):
    def spoil(tensors):
        tensors["train.fx"][0] = torch.nan

    with pytest.raises(F3rmError, match=r"train\.fx has values that are not finite"):
        f3rm.load(_changed(packed, tmp_path / "a.f3rm", tensors=spoil), device="cpu")
    lost = _changed(packed, tmp_path / "b.f3rm", tensors=lambda all_: all_.pop("model.field.aabb"))
    with pytest.raises(F3rmError, match="is no file of f3rm pack, or damaged"):
        f3rm.load(lost, device="cpu")


def test_bytes_that_are_changed_are_an_error_or_another_scene(packed, tmp_path):
    content, file = packed.read_bytes(), tmp_path / "a.f3rm"
    rng, refused = random.Random(0), 0
    for _ in range(40):
        head = spoiled(content[:6000], rng) if rng.random() < 0.8 else content[: rng.randrange(99)]
        file.write_bytes(head + content[6000:])
        try:
            f3rm.load(file, device="cpu")
        except F3rmError:
            refused += 1
    assert refused > 20
    with pytest.raises(F3rmError, match="No such file"):
        f3rm.load(tmp_path / "nowhere.f3rm", device="cpu")


@pytest.mark.parametrize(
    "backbone",
    [
        {"adapter": "module", "model": "os:system", "weights": ""},
        {"adapter": "clip", "model": "tinyclip", "weights": "/etc/passwd"},
        {"adapter": "clip", "model": "tinyclip", "weights": "somebody/weights"},
    ],
)
def test_a_file_names_no_program_and_no_weights(packed, elsewhere, tmp_path, backbone):
    def change(note):
        for head in note["field"]["heads"]:
            head["backbone"] = backbone

    opened = f3rm.load(_changed(packed, tmp_path / "a.f3rm", change), device="cpu")
    assert [head.spec.backbone.adapter for head in opened.source.heads.values()] == ["none"] * 2
    assert torch.equal(opened.features(POINTS), elsewhere.features(POINTS))
    with pytest.raises(LanguageError, match="none of the heads"):
        opened.find("orange")
