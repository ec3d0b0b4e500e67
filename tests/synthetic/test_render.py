import importlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from f3rm.synthetic.cameras import View, camera_rays, draw_views, look_at
from f3rm.synthetic.layouts import SCENE_KINDS, TABLE_HALF, draw_layout
from f3rm.synthetic.objects import COLOURS, Light, Part, SceneSpec, Texture
from f3rm.synthetic.render import Raycaster, RaycastError, SceneRenderer
from tests.scene_fixtures import need_raycaster

GREY = Texture("plain", (0.8, 0.8, 0.8), (0.8, 0.8, 0.8))
SIZES = {"height": 60, "width": 80}


@pytest.fixture(scope="module", autouse=True)
def raycaster():
    need_raycaster()


@pytest.fixture(scope="module")
def renderers():
    return {kind: SceneRenderer(draw_layout(kind, 0).spec) for kind in ("tabletop", "room")}


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_everything_is_hit(kind, renderers):
    renderer = renderers["room" if kind == "room" else "tabletop"]
    for view in draw_views(kind, 0, views=6, **SIZES):
        seen = renderer.render(view)
        assert seen.ids.shape == seen.depth.shape == (view.height, view.width)
        assert np.isfinite(seen.depth).all()
        assert (seen.ids >= 0).all()


@pytest.mark.parametrize("kind", ["tabletop", "room"])
def test_no_large_surface_has_a_constant_colour(kind, renderers):
    """Nerfacto hides floaters before walls of one colour."""
    for view in draw_views(kind, 0, views=6, **SIZES):
        seen = renderers[kind].render(view)
        for surface in (0, 1, 2):
            here = seen.rgb[seen.ids == surface].astype(float)
            if len(here) > 400:
                assert here.std(axis=0).min() > 3
                _, counts = np.unique(here, axis=0, return_counts=True)
                assert counts.max() < 0.1 * len(here)


def test_a_pixel_in_the_middle_has_the_distance_of_the_target(renderers):
    # Straight above an empty corner of the table top, which is the plane z = 0.
    corner = TABLE_HALF - 0.02
    eye = np.array([corner, corner - 0.001, 1.0])
    view = View(look_at(eye, np.array([corner, corner, 0.0])), focal=500.0, height=9, width=9)
    seen = renderers["tabletop"].render(view)
    assert draw_layout("tabletop", 0).spec.objects[seen.ids[4, 4]] == ("table", 0)
    assert seen.depth[4, 4] == pytest.approx(1.0, abs=1e-3)


def test_plain_things_have_the_colours_of_their_names(renderers):
    layout = draw_layout("tabletop", 0)
    found = 0
    for view in draw_views("tabletop", 0, views=3, **SIZES):
        seen = renderers["tabletop"].render(view)
        for index, thing in enumerate(layout.descriptions):
            if thing is None or thing.material != "plain" or (seen.ids == index).sum() < 20:
                continue
            wanted = np.array(COLOURS[str(thing.colour)])
            median = np.median(seen.rgb[seen.ids == index].astype(float), axis=0)
            cosine = median @ wanted / np.linalg.norm(median) / np.linalg.norm(wanted)
            assert cosine > 0.98, thing.name
            found += 1
    assert found > 2


def test_light_is_ambient_plus_lambert_s_cosine_and_a_shadow_is_ambient_alone():
    floor = Part("floor", "box", (0.0, 0.0, -0.1), (2.0, 2.0, 0.1), GREY)
    plate = Part("plate", "box", (0.0, 0.0, 0.5), (0.2, 0.2, 0.01), GREY)
    lamp = Light((0.0, 0.0, 1.0), strength=0.5, colour=(1.0, 0.5, 0.0))
    spec = SceneSpec("lamp", seed=0, parts=(floor, plate), lights=(lamp,), ambient=0.3)
    renderer = SceneRenderer(spec)

    def brightness(x):
        pose = look_at(np.array([x, -1.0, 0.3]), np.array([x, 0.0, 0.0]))
        return renderer.render(View(pose, focal=900.0, height=9, width=9)).rgb[4, 4] / 255

    assert brightness(0.0) == pytest.approx(0.8 * 0.3, abs=0.01)  # under the plate
    cosine = 1.0 / np.sqrt(1.0 + 1.0)  # a metre beside the lamp, which hangs at one metre
    wanted = 0.8 * (0.3 + 0.5 * cosine * np.array([1.0, 0.5, 0.0]))
    assert brightness(1.0) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("gloss", [0.0, 0.7])
def test_only_shiny_surfaces_mirror_a_lamp_and_what_is_around(gloss):
    texture = Texture("plain", (0.2, 0.2, 0.2), (0.2, 0.2, 0.2), gloss=gloss)
    floor = Part("floor", "box", (0.0, 0.0, -0.1), (2.0, 2.0, 0.1), texture)
    red = Texture("plain", (0.9, 0.0, 0.0), (0.9, 0.0, 0.0))
    wall = Part("wall", "box", (0.0, 1.5, 0.0), (2.0, 0.1, 2.0), red)
    lamp = Light((0.0, 1.0, 1.0), strength=0.5)
    spec = SceneSpec("lamp", seed=0, parts=(floor, wall), lights=(lamp,), ambient=0.3)
    # The camera is where a mirror at the origin reflects the lamp to, and the wall behind it.
    pose = look_at(np.array([0.0, -1.0, 1.0]), np.zeros(3))
    seen = SceneRenderer(spec).render(View(pose, focal=9000.0, height=9, width=9))
    matte = np.full(3, 0.2 * (0.3 + 0.5 / np.sqrt(2)))
    front = 0.3 * gloss
    share = (front + (1 - front) * (1 - 1 / np.sqrt(2)) ** 5) if gloss else 0.0
    towards = np.array([0.0, 1.0 - 1.4, 1.0 - 1.4])  # of the lamp, from where the wall is mirrored
    cosine = -towards[1] / np.linalg.norm(towards)
    mirrored = np.array([0.9, 0.0, 0.0]) * (0.3 + 0.5 * cosine)
    wanted = matte + share * (mirrored - matte) + gloss * 0.5
    assert seen.rgb[4, 4] / 255 == pytest.approx(wanted, abs=0.01)


def test_rays_of_a_pinhole_camera_go_through_pixel_centres():
    view = View(np.eye(4), focal=50.0, height=4, width=6)
    origins, directions = camera_rays(view)
    assert not origins.any()
    np.testing.assert_allclose(directions[0], [-2.5 / 50, 1.5 / 50, -1], atol=1e-7)
    np.testing.assert_allclose(directions[-1], [2.5 / 50, -1.5 / 50, -1], atol=1e-7)


@given(
    distortion=st.tuples(
        st.floats(-0.15, 0.25), st.floats(-0.02, 0.08), *[st.floats(-0.01, 0.01)] * 2
    ),
    principal=st.tuples(st.floats(25, 35), st.floats(15, 25)),
    focal_y=st.floats(45, 60),
)
@settings(max_examples=60, deadline=None)
def test_rays_of_a_lens_project_to_their_pixels(distortion, principal, focal_y):
    view = View(np.eye(4), 52.0, 40, 60, focal_y, principal, distortion)
    _, directions = camera_rays(view)
    forward = directions.astype(float) * (1, -1, -1)  # OpenCV looks along +z, y down
    matrix = np.array([[52.0, 0, principal[0]], [0, focal_y, principal[1]], [0, 0, 1]])
    pixels, _ = cv2.projectPoints(forward, np.zeros(3), np.zeros(3), matrix, np.array(distortion))
    rows, columns = np.meshgrid(np.arange(40), np.arange(60), indexing="ij")
    wanted = np.stack((columns + 0.5, rows + 0.5), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(pixels[:, 0], wanted, atol=1e-4)


def test_distortion_bends_the_picture_by_many_pixels():
    plain, bent = (
        draw_views(kind, 0, views=2, height=360, width=480)[0]
        for kind in ("tabletop", "tabletop-distorted")
    )
    apart = camera_rays(plain)[1] - camera_rays(bent)[1]
    assert np.linalg.norm(apart, axis=-1).max() * plain.focal > 20
    assert np.all(np.subtract(bent.centre, (240, 180)) != 0)


def test_missing_open3d_is_explained(monkeypatch):
    def fail(name):
        raise ImportError("libusb-1.0.so.0: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RaycastError, match=r"libusb-1\.0\.so\.0.*apt-get install libusb-1\.0-0"):
        Raycaster([])
