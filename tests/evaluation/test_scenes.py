import hashlib
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from f3rm._types import DatasetError
from f3rm.evaluation import scenes
from f3rm.evaluation.raycast import RaycastError, unit_mesh
from f3rm.evaluation.scene_objects import (
    COLOURS,
    ROOM,
    SHAPES,
    TABLE_HALF,
    Light,
    Part,
    SceneSpec,
    Texture,
    tabletop,
)
from f3rm.evaluation.scene_render import SceneRenderer, View, look_at
from f3rm.evaluation.scenes import SceneSettings, make_tabletop, tabletop_views
from f3rm.features.items import read_items
from f3rm.scripts import cli

SMALL = SceneSettings(seed=0, views=4, height=48, width=64)


@pytest.fixture(scope="session", autouse=True)
def ray_caster():
    """Says once, instead of in every test, that Open3D's system libraries are missing."""
    try:
        unit_mesh("box")
    except RaycastError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def renderer():
    return SceneRenderer(tabletop(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene") / "tabletop"
    assert make_tabletop(folder, SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def cameras(folder: Path) -> list[View]:
    """The cameras as a reader of transforms.json finds them."""
    content = json.loads((folder / "transforms.json").read_text())
    assert content["fl_x"] == content["fl_y"]
    assert (content["cx"], content["cy"]) == (content["w"] / 2, content["h"] / 2)
    return [
        View(np.array(frame["transform_matrix"]), content["fl_x"], content["h"], content["w"])
        for frame in content["frames"]
    ]


def project(points: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The OpenGL convention, written out: x right, y up, -z forward, pixel centres at .5."""
    rotation, eye = view.world_from_camera[:3, :3], view.world_from_camera[:3, 3]
    local = (points - eye) @ rotation  # the inverse rotation, as rows
    depth = -local[..., 2]
    x = view.width / 2 + view.focal * local[..., 0] / depth
    y = view.height / 2 - view.focal * local[..., 1] / depth
    return np.stack((x, y), axis=-1), depth


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    make_tabletop(tmp_path / "tabletop", SMALL)
    assert digests(tmp_path / "tabletop") == digests(written)


def test_another_seed_gives_another_scene(written, tmp_path):
    make_tabletop(tmp_path / "other", replace(SMALL, seed=1))
    assert not set(digests(tmp_path / "other").values()) & set(digests(written).values())


def test_files_are_a_nerfstudio_dataset(written):
    items = read_items(written)
    assert [item.name for item in items] == [f"images/frame_0000{i}.png" for i in (1, 2, 3, 4)]
    content = json.loads((written / "transforms.json").read_text())
    assert [content[key] for key in ("k1", "k2", "p1", "p2")] == [0.0] * 4
    for item in items:
        with Image.open(item.path) as image:
            assert (image.mode, image.size) == ("RGB", (content["w"], content["h"]))


def test_scene_file_lists_what_is_there(written):
    content = json.loads((written / "scene.json").read_text())
    spec = tabletop(0)
    assert {key: content[key] for key in ("seed", "views", "height", "width")} == {
        "seed": 0,
        "views": 4,
        "height": 48,
        "width": 64,
    }
    assert {(entry["id"], entry["name"]) for entry in content["objects"]} == {
        (index, name) for index, name in enumerate(spec.names) if name != ROOM
    }


def test_poses_project_objects_to_where_the_id_buffer_has_them(written, renderer):
    spec = tabletop(0)
    objects = [
        part for part in spec.parts if part.shape != "ring" and part.name not in spec.names[:2]
    ]
    found = 0
    for view in cameras(written):
        seen = renderer.render(view)
        for part in objects:
            (x, y), depth = project(np.array(part.centre), view)
            if not (0 <= x < view.width and 0 <= y < view.height):
                continue
            pixel = int(y), int(x)
            visible = seen.ids[pixel] == spec.names.index(part.name)
            # What hides an object stands before it; nothing of it can be behind its middle.
            assert visible or seen.depth[pixel] < depth
            assert not visible or seen.depth[pixel] < depth + 0.02
            found += visible
    assert found >= len(objects) * len(cameras(written)) // 2


def test_depths_of_two_views_agree_where_both_see_a_point(renderer):
    first, second = tabletop_views(replace(SMALL, views=24))[:2]
    one, other = renderer.render(first), renderer.render(second)
    rows, columns = np.meshgrid(np.arange(first.height), np.arange(first.width), indexing="ij")
    x = (columns + 0.5 - first.width / 2) / first.focal * one.depth
    y = -(rows + 0.5 - first.height / 2) / first.focal * one.depth
    local = np.stack((x, y, -one.depth), axis=-1)
    pose = first.world_from_camera
    points = local @ pose[:3, :3].T + pose[:3, 3]
    pixels, depth = project(points, second)
    inside = ((pixels >= 0) & (pixels < (second.width, second.height))).all(-1) & (depth > 0)
    column, row = pixels[inside].astype(int).T
    # A pixel is a few centimetres wide on slanted surfaces; edges and hidden points differ.
    nearer = other.depth[row, column] < depth[inside] - 0.08
    farther = other.depth[row, column] > depth[inside] + 0.08
    assert inside.mean() > 0.5
    assert nearer.mean() < 0.3  # hidden in the second view
    assert farther.mean() < 0.05  # would mean a surface that the second view looks through
    same = one.ids[inside] == other.ids[row, column]
    assert same[~nearer & ~farther].mean() > 0.9


def test_a_pixel_in_the_middle_has_the_distance_of_the_target(renderer):
    # Straight above an empty corner of the table top, which is the plane z = 0.
    corner = TABLE_HALF - 0.02
    eye = np.array([corner, corner - 0.001, 1.0])
    view = View(look_at(eye, np.array([corner, corner, 0.0])), focal=500.0, height=9, width=9)
    seen = renderer.render(view)
    assert seen.ids[4, 4] == tabletop(0).names.index("table")
    assert seen.depth[4, 4] == pytest.approx(1.0, abs=1e-3)


def test_everything_is_hit_and_nothing_has_a_constant_colour(renderer):
    for view in tabletop_views(SMALL):
        seen = renderer.render(view)
        assert np.isfinite(seen.depth).all()
        assert (seen.ids >= 0).all()
        walls = seen.rgb[seen.ids == 0].astype(float)
        assert walls.std(axis=0).min() > 8
        _, counts = np.unique(walls, axis=0, return_counts=True)
        assert counts.max() < 0.02 * len(walls)


def test_objects_have_the_colours_of_their_names(renderer):
    seen = renderer.render(tabletop_views(SMALL)[1])
    spec = tabletop(0)
    for index, name in enumerate(spec.names):
        part = next(part for part in spec.parts if part.name == name)
        if name.split()[0] not in COLOURS or (seen.ids == index).sum() < 20:
            continue
        wanted = np.array(COLOURS[name.split()[0]])
        median = np.median(seen.rgb[seen.ids == index].astype(float), axis=0)
        cosine = median @ wanted / np.linalg.norm(median) / np.linalg.norm(wanted)
        assert cosine > 0.98, (name, part.texture)


def test_light_is_ambient_plus_lambert_s_cosine_and_a_shadow_is_ambient_alone():
    grey = Texture("plain", (0.8, 0.8, 0.8), (0.8, 0.8, 0.8))
    floor = Part("floor", "box", (0.0, 0.0, -0.1), (2.0, 2.0, 0.1), grey)
    plate = Part("plate", "box", (0.0, 0.0, 0.5), (0.2, 0.2, 0.01), grey)
    lamp = Light((0.0, 0.0, 1.0), strength=0.5)
    spec = SceneSpec("lamp", seed=0, parts=(floor, plate), lights=(lamp,), ambient=0.3)
    renderer = SceneRenderer(spec)

    def brightness(x):
        pose = look_at(np.array([x, -1.0, 0.3]), np.array([x, 0.0, 0.0]))
        return renderer.render(View(pose, focal=900.0, height=9, width=9)).rgb[4, 4, 0] / 255

    assert brightness(0.0) == pytest.approx(0.8 * 0.3, abs=0.01)  # under the plate
    cosine = 1.0 / np.sqrt(1.0 + 1.0)  # a metre beside the lamp, which hangs at one metre
    assert brightness(1.0) == pytest.approx(0.8 * (0.3 + 0.5 * cosine), abs=0.01)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_every_scene_has_distinct_objects_apart_from_each_other_on_the_table(seed):
    spec = tabletop(seed)
    objects = [part for part in spec.parts if part.name not in (ROOM, "table")]
    assert 6 <= len(objects) <= 9
    assert len({part.name.split()[0] for part in objects}) == len(objects)
    for part in objects:
        assert part.centre[2] == pytest.approx(part.half_size[2])
        reach = np.abs(part.centre[:2]).max() + radius(part)
        assert reach < TABLE_HALF
    for index, part in enumerate(objects):
        for other in objects[:index]:
            gap = np.linalg.norm(np.subtract(part.centre, other.centre)[:2])
            assert gap > radius(part) + radius(other) - 0.02 or not overlap(part, other)


def radius(part: Part) -> float:
    return part.half_size[0] * (np.sqrt(2) if part.shape == "box" else 1)


def overlap(part: Part, other: Part) -> bool:
    """Whether boxes around both, in x and y, touch."""
    apart = np.abs(np.subtract(part.centre, other.centre))[:2]
    return bool((apart < radius(part) + radius(other)).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_shapes_fill_their_cube(shape):
    vertices = unit_mesh(shape).vertices
    np.testing.assert_allclose(vertices.min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(vertices.max(axis=0), 1, atol=1e-6)


def test_cones_stand_on_their_base():
    vertices = unit_mesh("cone").vertices
    assert np.ptp(vertices[vertices[:, 2] > 0.99, 0]) == 0  # the tip


@pytest.mark.parametrize("pattern", ["plain", "checker", "stripes", "waves"])
def test_textures_stay_within_their_colours_and_repeat(pattern):
    texture = Texture(pattern, (0.2, 0.3, 0.4), (0.8, 0.7, 0.6), period=0.5)
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    colours = texture.colours(points)
    assert (colours >= 0).all()
    assert (colours <= 1).all()
    assert (np.ptp(colours, axis=0) > 0.1).all() == (pattern != "plain")
    if pattern in ("checker", "stripes"):
        np.testing.assert_array_equal(texture.colours(points + np.array([0, 0, 0.5])), colours)


def test_a_texture_turns_with_its_part():
    ones = (1.0, 1.0, 1.0)
    part = Part("it", "box", (1.0, 2.0, 3.0), ones, Texture("plain", ones, ones), yaw=0.7)
    np.testing.assert_allclose(
        np.sort(part.local(part.mesh().vertices.astype(float)), axis=0),
        np.sort(unit_mesh("box").vertices, axis=0),
        atol=1e-6,
    )


def test_the_same_scene_is_used_as_it_is(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    (written / "features").mkdir(exist_ok=True)  # what training adds does not matter
    assert not make_tabletop(written, SMALL)
    (written / "features").rmdir()
    assert {path: path.stat().st_mtime_ns for path in before if path != written} == {
        path: stamp for path, stamp in before.items() if path != written
    }


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "scene").mkdir()
    assert make_tabletop(tmp_path / "scene", SMALL)


@pytest.mark.parametrize("present", ["photo.jpg", "scene.json"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, present):
    (tmp_path / present).write_text("mine")
    with pytest.raises(DatasetError, match=r"new, empty, or hold the same scene, .* other files"):
        make_tabletop(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "mine"


def test_another_scene_and_an_incomplete_one_are_refused(tmp_path):
    folder = tmp_path / "scene"
    make_tabletop(folder, SMALL)
    before = digests(folder)
    with pytest.raises(DatasetError, match="another scene"):
        make_tabletop(folder, replace(SMALL, seed=1))
    assert digests(folder) == before
    (folder / "images/frame_00002.png").unlink()
    with pytest.raises(DatasetError, match="incomplete"):
        make_tabletop(folder, SMALL)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "scene").write_text("mine")
    with pytest.raises(DatasetError, match="other files"):
        make_tabletop(tmp_path / "scene", SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(scenes, "_transforms", fail)  # after the images
    with pytest.raises(error):
        make_tabletop(tmp_path / "deep" / "scene", SMALL)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="Choose another folder"):
        make_tabletop(tmp_path / "file" / "scene", SMALL)


@pytest.mark.parametrize(("name", "value"), [("views", 1), ("height", 7), ("seed", -1)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(DatasetError, match=f"{name} must be at least"):
        replace(SMALL, **{name: value})


def test_missing_open3d_is_explained(monkeypatch):
    def fail(name):
        raise ImportError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RaycastError, match=r"libusb-1\.0\.so\.0.*apt-get install libusb-1\.0-0"):
        unit_mesh("box")


def test_the_command_writes_and_says_what_is_next(tmp_path, capsys):
    words = ["make-scene", "tabletop", "--out", str(tmp_path / "s"), "--views", "2"]
    words += ["--height", "16", "--width", "24"]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert "Wrote 2 views of 16 x 24" in first
    assert f"ns-train f3rm --data {tmp_path / 's'}" in first
    assert cli.main(words) == 0
    assert "Already there: 2 views" in capsys.readouterr().out
    assert cli.main([*words, "--seed", "3"]) == 1
    assert "must be new, empty" in capsys.readouterr().err
