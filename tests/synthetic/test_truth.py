import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from f3rm.errors import DatasetError
from f3rm.store.items import read_items
from f3rm.synthetic.layouts import draw_layout
from f3rm.synthetic.truth import SceneTruth, TruthQuery
from tests.scene_fixtures import write_dataset, write_scene

NAME = "images/frame_00001.png"
IDS, DEPTH = "truth/ids/frame_00001.png", "truth/depth/frame_00001.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene") / "tabletop", views=2)


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_truth_is_what_was_drawn(folder):
    truth, layout = SceneTruth.read(folder), draw_layout("tabletop", 0)
    assert (truth.folder, truth.kind, truth.seed) == (folder, "tabletop", 0)
    assert tuple((entry.name, entry.instance) for entry in truth.objects) == layout.spec.objects
    assert [entry.id for entry in truth.objects] == list(range(len(layout.descriptions)))
    kinds = ["object" if thing else "surface" for thing in layout.descriptions]
    assert [entry.kind for entry in truth.objects] == kinds
    assert truth.absent == layout.absent
    parts = {part.name: part for part in reversed(layout.spec.parts)}
    for entry in truth.objects:
        if entry.kind == "object" and entry.instance == 0:
            part = parts[entry.name]
            box = (part.centre, part.half_size, part.yaw)
            assert (entry.centre, entry.half_size, entry.yaw) == box


def test_a_query_has_all_objects_of_its_name(folder):
    truth = SceneTruth.read(folder)
    things = [entry for entry in truth.objects if entry.kind == "object"]
    assert [query.text for query in truth.queries] == list(dict.fromkeys(e.name for e in things))
    assert sorted(number for query in truth.queries for number in query.ids) == [
        entry.id for entry in things
    ]
    (twins,) = (query for query in truth.queries if len(query.ids) > 1)
    assert {truth.objects[number].instance for number in twins.ids} == {0, 1}


def test_words_of_a_name_stand_in_the_file(folder):
    shapes = [entry.shape for entry in SceneTruth.read(folder).objects]
    for entry in json.loads((folder / "scene.json").read_text())["objects"]:
        if entry["kind"] == "surface":
            assert entry["words"] is None
            assert shapes[entry["id"]] is None
            continue
        words = [entry["words"][key] for key in ("material", "colour", "shape")]
        assert entry["name"] == " ".join(word for word in words if word not in ("plain", None))
        assert shapes[entry["id"]] == entry["words"]["shape"]


def test_views_are_found_by_relative_and_absolute_paths(folder, monkeypatch):
    truth = SceneTruth.read(folder)
    first = truth.view(NAME)
    assert first.ids.shape == first.depth.shape == (48, 64)
    assert first.ids.dtype == np.int32
    assert first.depth.dtype == np.float32
    for path in (folder / NAME, f"./{NAME}", read_items(folder)[0].path):
        np.testing.assert_array_equal(truth.view(path).ids, first.ids)
    monkeypatch.chdir(folder.parent)
    again = SceneTruth.read(type(folder)(folder.name)).view(NAME)
    np.testing.assert_array_equal(again.depth, first.depth)


def test_datasets_behind_links_are_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    truth = SceneTruth.read(tmp_path / "link")
    np.testing.assert_array_equal(truth.view(folder / NAME).ids, truth.view(NAME).ids)


def test_a_mask_is_the_union_of_its_objects(folder):
    view = SceneTruth.read(folder).view(NAME)
    numbers = np.unique(view.ids).tolist()
    np.testing.assert_array_equal(view.mask(numbers[:2]), np.isin(view.ids, numbers[:2]))
    assert view.mask(numbers).all()
    assert not view.mask([]).any()
    assert not view.mask([99]).any()


def test_zero_is_nothing(damaged):
    for name, mode in ((IDS, np.uint8), (DEPTH, np.uint16)):
        pixels = np.array(Image.open(damaged / name))
        pixels[3, 5] = 0
        Image.fromarray(pixels.astype(mode)).save(damaged / name)
    view = SceneTruth.read(damaged).view(NAME)
    assert view.ids[3, 5] == -1
    assert view.depth[3, 5] == np.inf
    assert np.isinf(view.depth).sum() == (view.ids < 0).sum() == 1


def test_numbers_of_sixteen_bits_are_read(damaged):
    pixels = np.array(Image.open(damaged / IDS))
    before = SceneTruth.read(damaged).view(NAME).ids
    Image.fromarray(pixels.astype(np.uint16)).save(damaged / IDS)
    np.testing.assert_array_equal(SceneTruth.read(damaged).view(NAME).ids, before)


def test_photographs_of_one_s_own_have_no_truth(tmp_path):
    write_dataset(tmp_path, {"0.png": (8, 8)})
    with pytest.raises(DatasetError, match=r"photographs of one's own have no truth.*make-scene"):
        SceneTruth.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"generator": 1, "objects": []}', "\x00", "[" * 20000]
)
def test_a_damaged_description_is_named(damaged, text):
    (damaged / "scene.json").write_text(text)
    with pytest.raises(DatasetError, match=r"scene\.json.*make it again"):
        SceneTruth.read(damaged)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objects", [{"id": 1}]),
        ("objects", None),
        ("objects", {"id": 0}),
        ("seed", "0"),
        ("seed", True),
        ("seed", -1),
        ("scene", ""),
        ("absent", ["red mug"]),
        ("absent", [{"text": "red mug", "kind": "absent_pair"}]),
        ("absent", [{"text": "", "kind": "absent_pair", "shared_words": 1}]),
        ("absent", [{"text": "red mug", "kind": "gone", "shared_words": 1}]),
        ("absent", [{"text": "red mug", "kind": "absent_pair", "shared_words": -1}]),
        ("queries", [{"text": "mug", "ids": [1000]}]),
        ("queries", [{"text": "mug", "ids": []}]),
        ("queries", [{"ids": [1]}]),
        ("metres_from_dataset", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("metres_from_dataset", [[0] * 4] * 3 + [[0, 0, 0, 1]]),
        ("metres_from_dataset", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]),
        ("metres_from_dataset", [[float("nan")] * 4] * 4),
        ("metres_from_dataset", [["1"] * 4] * 4),
        ("metres_from_dataset", [[10**400] * 4] * 4),
        ("metres_from_dataset", [[1], [2, 3]]),
    ],
)
def test_a_damaged_entry_is_named(damaged, key, value):
    path = damaged / "scene.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DatasetError, match=r"scene\.json.*make it again"):
        SceneTruth.read(damaged)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 5),
        ("id", None),
        ("kind", "thing"),
        ("name", ""),
        ("instance", 0.5),
        ("centre", [1, 2]),
        ("half_size", [1, 2, "3"]),
        ("yaw", float("inf")),
        ("kind", "object"),  # without words
    ],
)
def test_a_damaged_object_is_named(damaged, key, value):
    path = damaged / "scene.json"
    content = json.loads(path.read_text())
    content["objects"][1][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"scene\.json.*make it again"):
        SceneTruth.read(damaged)


@pytest.mark.parametrize(
    "path", ["images/frame_00099.png", "frame_00001.png", "truth/ids/frame_00001.png", "../x.png"]
)
def test_paths_that_are_no_photograph_are_refused(folder, path):
    with pytest.raises(DatasetError, match=r"no photograph in .*file_path from transforms\.json"):
        SceneTruth.read(folder).view(path)


@pytest.mark.parametrize("name", [IDS, DEPTH])
def test_missing_and_misfitting_pictures_are_named(damaged, name):
    truth = SceneTruth.read(damaged)
    path = damaged / name
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(DatasetError, match=rf"{path.parent.name}.*mode RGB"):
        truth.view(NAME)
    Image.new("L", (48, 64)).save(path)
    with pytest.raises(DatasetError, match="64 x 48, the photograph being 48 x 64"):
        truth.view(NAME)
    path.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        truth.view(NAME)


def test_numbers_of_no_object_are_refused(damaged):
    truth = SceneTruth.read(damaged)
    Image.new("L", (64, 48), len(truth.objects) + 1).save(damaged / IDS)
    with pytest.raises(DatasetError, match=f"object {len(truth.objects)} of {len(truth.objects)}"):
        truth.view(NAME)


@given(where=st.integers(0, 10**6), change=st.integers(1, 255), name=st.sampled_from([IDS, DEPTH]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_byte_is_an_error_or_harmless(damaged, folder, where, change, name):
    content = bytearray((folder / name).read_bytes())
    content[where % len(content)] ^= change
    (damaged / name).write_bytes(content)
    truth = SceneTruth.read(damaged)
    try:
        view = truth.view(NAME)
    except DatasetError:
        return
    assert view.ids.shape == (48, 64)
    assert view.ids.min() >= -1
    assert (view.depth > 0).all()


@given(
    keep=st.floats(0, 0.99),
    name=st.sampled_from([IDS, DEPTH]),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_cut_file_is_an_error(damaged, folder, keep, name):
    for whole in (IDS, DEPTH):
        (damaged / whole).write_bytes((folder / whole).read_bytes())
    content = (folder / name).read_bytes()
    (damaged / name).write_bytes(content[: int(keep * (len(content) - 12))])  # without the end mark
    with pytest.raises(DatasetError, match="make it again"):
        SceneTruth.read(damaged).view(NAME)


def test_a_query_is_plain_data():
    assert TruthQuery("mug", (1, 2)) == TruthQuery(text="mug", ids=(1, 2))
