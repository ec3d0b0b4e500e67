import numpy as np
import pytest

from f3rm.synthetic.objects import (
    COLOURS,
    MATERIALS,
    SHAPES,
    TELLING_MATERIALS,
    Description,
    Part,
    Placement,
    SceneSpec,
    Texture,
    build_part,
    draw_description,
    of_another_material,
    unit_mesh,
)

ONES = (1.0, 1.0, 1.0)
PATTERNS = ["plain", "checker", "stripes", "dots", "waves", "grain"]


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_shapes_fill_their_cube(shape):
    vertices = unit_mesh(shape).vertices
    np.testing.assert_allclose(vertices.min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(vertices.max(axis=0), 1, atol=1e-6)


def test_cones_stand_on_their_base():
    vertices = unit_mesh("cone").vertices
    assert np.ptp(vertices[vertices[:, 2] > 0.99, 0]) == 0  # the tip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_textures_stay_within_their_colours(pattern):
    texture = Texture(pattern, (0.2, 0.3, 0.4), (0.8, 0.7, 0.6), period=0.5)
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    colours = texture.colours(points)
    assert (colours >= 0).all()
    assert (colours <= 1).all()
    assert (np.ptp(colours, axis=0) > 0.1).all() == (pattern != "plain")
    if pattern in ("checker", "stripes", "dots"):
        np.testing.assert_array_equal(texture.colours(points + np.array([0, 0, 0.5])), colours)
        assert len(np.unique(colours, axis=0)) == 2


def test_a_texture_turns_with_its_part():
    part = Part("it", "box", (1.0, 2.0, 3.0), ONES, Texture("plain", ONES, ONES), yaw=0.7)
    np.testing.assert_allclose(
        np.sort(part.local(part.mesh().vertices.astype(float)), axis=0),
        np.sort(unit_mesh("box").vertices, axis=0),
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_things_stand_on_what_is_below_and_have_their_size(shape):
    place = Placement(0.3, -0.2, floor=0.5, yaw=1.0)
    part = build_part(Description(shape, "red"), place, 0.2, np.random.default_rng(0))
    assert part.centre[:2] == (0.3, -0.2)
    assert part.mesh().vertices[:, 2].min() == pytest.approx(0.5, abs=1e-6)
    assert max(part.half_size[:2]) == pytest.approx(0.11 if shape == "bottle" else 0.2)
    assert part.name == f"red {shape}"


@pytest.mark.parametrize("material", MATERIALS)
def test_names_say_material_and_colour(material):
    colour = None if material == "wooden" else "blue"
    thing = Description("mug", colour, material)
    words = {"plain": "blue mug", "wooden": "wooden mug"}
    assert thing.name == words.get(material, f"{material} blue mug")
    part = build_part(thing, Placement(0.0, 0.0), 0.1, np.random.default_rng(1))
    assert (part.texture.gloss > 0) == (material == "shiny")
    if colour is not None:
        assert part.texture.first == pytest.approx(COLOURS[colour])


def test_parts_of_one_name_and_instance_are_one_object():
    texture = Texture("plain", ONES, ONES)
    names = [("table", 0), ("mug", 0), ("table", 0), ("mug", 1), ("table", 1)]
    parts = tuple(Part(n, "box", ONES, ONES, texture, instance=i) for n, i in names)
    spec = SceneSpec("it", 0, parts, (), 1.0)
    assert spec.objects == (("table", 0), ("mug", 0), ("mug", 1), ("table", 1))


def test_only_wooden_things_have_no_colour():
    rng = np.random.default_rng(0)
    things = [draw_description(rng) for _ in range(300)]
    assert {thing.material for thing in things} == set(MATERIALS)
    assert all((thing.colour is None) == (thing.material == "wooden") for thing in things)
    assert all(
        thing.material == "plain" for thing in (draw_description(rng, fancy=0.0) for _ in range(9))
    )


@pytest.mark.parametrize("material", ["plain", *TELLING_MATERIALS])
def test_another_material_is_all_that_differs(material):
    rng = np.random.default_rng(0)
    own = Description("mug", "blue", material)
    others = {of_another_material(rng, own) for _ in range(60)}
    assert {other.material for other in others} == {*TELLING_MATERIALS} - {material}
    assert {(other.shape, other.colour) for other in others} == {("mug", "blue")}


@pytest.mark.parametrize("shape", SHAPES)
def test_stripes_show_on_a_ring_seen_from_above(shape):
    """Along z alone a flat ring would have none, and a box's lid one colour."""
    rng = np.random.default_rng(0)
    for colour in ("purple", "yellow"):
        thing = Description(shape, colour, "striped")
        part = build_part(thing, Placement(0.0, 0.0), 0.13, rng)
        mesh = unit_mesh(shape)
        corners = mesh.vertices[mesh.triangles].astype(float)
        upward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 1e-6
        weights = rng.dirichlet((1, 1, 1), (200, 1))
        points = np.einsum("ntk,tkd->ntd", np.tile(weights, (1, upward.sum(), 1)), corners[upward])
        colours = part.texture.colours(points.reshape(-1, 3) * part.half_size)
        share = (colours == np.array(part.texture.second, np.float32)).all(axis=-1).mean()
        assert 0.1 < share < 0.9
