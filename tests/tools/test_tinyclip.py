"""The program that makes TINYCLIP: what its texts mean, what its batches hold, how it resumes."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from f3rm.backbones.registry import load_backbone
from f3rm.backbones.weights import local_weights
from f3rm.store.spec import PRESETS
from f3rm.synthetic.objects import COLOURS, MATERIALS, SHAPES, TELLING_MATERIALS, Description
from tools.tinyclip import train
from tools.tinyclip.batches import CELL, draw_batch, patch_shares
from tools.tinyclip.clutter import draw_clutter
from tools.tinyclip.measure import Whole, material_numbers
from tools.tinyclip.model import (
    VOCABULARY_NAME,
    build_model,
    build_tutor,
    embed_texts,
    loss_of,
    tokenizer,
)
from tools.tinyclip.pictures import HELD_OUT_FROM, load_generated, load_scene, render_scenes
from tools.tinyclip.schedule import Schedule, rate_at
from tools.tinyclip.together import average_gradients, helped
from tools.tinyclip.words import (
    UNSEEN_PAIRS,
    attributes,
    describe,
    full_text,
    generic_texts,
    is_unseen,
    material_texts,
    pair_texts,
    single_texts,
    surface_attributes,
    vocabulary,
)

MEANINGS = {
    synonym: word
    for kind, word, *others in map(str.split, vocabulary().splitlines())
    for synonym in (word, *others)
    if kind in ("colour", "material", "shape")
}
TEXTS = [*generic_texts(), *single_texts(), *pair_texts(), *material_texts()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    render_scenes(folder, [0, 1, HELD_OUT_FROM], processes=1)
    return folder


@pytest.fixture(scope="module")
def scenes(pictures):
    return [load_scene(pictures, seed) for seed in (0, 1)]


@st.composite
def things(draw):
    material = draw(st.sampled_from(MATERIALS))
    colour = None if material == "wooden" else draw(st.sampled_from(list(COLOURS)))
    return Description(draw(st.sampled_from(SHAPES)), colour, material)


@given(things())
def test_what_is_said_of_a_thing_is_true_of_it_alone(thing):
    truth = attributes(thing)
    assert full_text(thing).wanted <= truth
    assert describe(thing.shape).wanted <= truth
    true = {text.words for text in TEXTS if text.wanted <= truth}
    assert {"object", "things", thing.shape} <= true
    assert not true & ({*SHAPES} - {thing.shape})
    assert not true & ({*COLOURS} - {thing.colour})
    assert not true & {"stuff", "texture", "table", "floor", "wall"}


@pytest.mark.parametrize("name", ["table", "floor", "wall"])
def test_what_is_said_of_a_surface(name):
    true = {text.words for text in TEXTS if text.wanted <= surface_attributes(name)}
    assert true == {name, "stuff", "texture"}


def test_training_says_and_shows_no_unseen_pair(scenes):
    assert {shape for _, shape in UNSEEN_PAIRS} <= set(SHAPES)
    said = {text.words for text in TEXTS}
    for scene in scenes:
        said |= set(draw_batch([scene], np.random.default_rng(0), size=2, grid=(8, 8)).texts)
    assert not any(
        {colour, shape} <= set(text.split()) for text in said for colour, shape in UNSEEN_PAIRS
    )
    shown = [draw_clutter(seed).things for seed in range(30)]
    assert not any(thing and is_unseen(thing) for scene in shown for thing in scene)
    held_out = [draw_clutter(HELD_OUT_FROM + seed, unseen=True).things for seed in range(30)]
    assert any(thing and is_unseen(thing) for scene in held_out for thing in scene)


def test_wordings_keep_the_meaning():
    words = random.Random(0)
    for _ in range(30):
        said = describe("red", "mug").say(words)
        assert "red" in said.split()
        assert {"mug", "cup"} & set(said.split())


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_patch_shares_count_pixels(rows, cols, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 5, (2, rows * 4, cols * 4), dtype=np.int32)
    shares = patch_shares(torch.from_numpy(ids), (rows, cols))
    row, col, number = rng.integers(rows), rng.integers(cols), rng.integers(5)
    patch = ids[1, row * 4 : (row + 1) * 4, col * 4 : (col + 1) * 4]
    assert shares[1, row * cols + col, number] == pytest.approx((patch == number).mean())
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(2, rows * cols))


def test_a_batch_names_what_its_regions_show(scenes):
    batch = draw_batch(scenes, np.random.default_rng(3), size=3, grid=(8, 12))
    assert batch.images.shape == (3, 3, 8 * CELL, 12 * CELL)
    torch.testing.assert_close(
        batch.regions.weights.sum(dim=1), torch.ones(len(batch.regions.picture))
    )
    assert batch.true.shape == (len(batch.regions.picture), len(batch.texts))
    # Every region has a true text of every level down to the generic ones.
    assert (batch.true & (batch.levels == 0)).any(dim=1).all()
    assert (batch.true & (batch.levels > 0)).any(dim=1).all()


def test_a_batch_tells_materials_apart_by_texts_that_differ_in_nothing_else(scenes):
    batch = draw_batch(scenes, np.random.default_rng(3), size=8, grid=(4, 5))
    said = {frozenset(map(MEANINGS.get, text.split())) - {None} for text in batch.texts}
    things = [thing for thing in batch.regions.things if thing.colour is not None]
    assert things
    for thing in things:
        others = [replace(thing, material=material) for material in TELLING_MATERIALS]
        false = [other for other in others if frozenset(other.name.split()) in said]
        assert sum(other != thing for other in false) >= 2
    shown = {MATERIALS[number] for number in batch.regions.materials.unique() if number >= 0}
    assert shown == {thing.material for thing in batch.regions.things}


def test_all_words_of_training_are_in_the_vocabulary_that_ships(scenes):
    folder = local_weights(PRESETS["TINYCLIP"].backbone)
    assert folder is not None
    shipped = (folder / VOCABULARY_NAME).read_text(encoding="utf-8")
    assert shipped == vocabulary()
    known = {word for line in shipped.splitlines() for word in line.split()[1:]}
    words = random.Random(0)
    said = {word for _ in range(20) for text in TEXTS for word in text.say(words).split()}
    for scene in scenes:
        batch = draw_batch([scene], np.random.default_rng(0), size=4, grid=(4, 5))
        said |= {word for text in (*batch.texts, *batch.captions) for word in text.split()}
    assert said == known


def test_texts_are_embedded_as_open_clip_does():
    model = build_model(0).eval()
    texts = ("mug", "a photo of a striped red mug", "the blue ball and a box")
    with torch.no_grad():
        expected = model.encode_text(tokenizer()(list(texts)), normalize=True)
        torch.testing.assert_close(embed_texts(model, texts), expected, rtol=1e-5, atol=1e-6)


def test_learning_a_batch_lowers_its_loss(scenes):
    model, tutor = build_model(0), build_tutor()
    optimiser = torch.optim.AdamW([*model.parameters(), *tutor.parameters()], 1e-3)
    batch = draw_batch(scenes, np.random.default_rng(0), size=2, grid=(6, 6))
    losses = []
    for _ in range(8):
        loss, _ = loss_of(model, tutor, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_processes_take_parts_of_a_batch_and_average_their_gradients(scenes, tmp_path):
    settings = train.Train(tmp_path, processes=3)
    parts = [train._Batches(scenes, settings, rank)[7].images for rank in range(3)]
    size = settings.schedule.draw(7 / settings.steps, np.random.default_rng([0, 7]))[1]
    assert sum(len(part) for part in parts) == size
    assert not torch.equal(parts[0][0], parts[1][0])
    weight = torch.zeros(2, 3, requires_grad=True)
    weight.grad = torch.full((2, 3), 4.0)
    with helped(tmp_path, 2, _add_a_gradient_of_two):
        average_gradients([weight, torch.zeros(5, requires_grad=True)])
    torch.testing.assert_close(weight.grad, torch.full((2, 3), 3.0))


def _add_a_gradient_of_two(rank):
    assert rank == 1
    weight = torch.zeros(2, 3, requires_grad=True)
    weight.grad = torch.full((2, 3), 2.0)
    average_gradients([weight])


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [rate_at(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert np.argmax(rates) == 99
    assert (np.diff(rates[99:]) <= 0).all()
    assert rates[-1] == 0


def test_an_interrupted_training_ends_with_the_same_model(tmp_path, pictures, capsys):
    always = Schedule(kinds=(((3, 3), 4),), shares=(0.0, 1.0), chances=((1.0, 1.0),))
    (tabletops := tmp_path / "tabletops").mkdir()
    weights = []
    for name, stops in (("whole", [4]), ("interrupted", [2, 4])):
        work = tmp_path / name
        work.mkdir()
        (work / "pictures").symlink_to(pictures)
        (work / "tabletops").symlink_to(tabletops)
        for stop in stops:
            sizes = {"scenes": 2, "held_out": 1, "tabletops": 1, "views": 2}
            settings = train.Train(
                work, work / "out", **sizes, steps=4, save_every=2, stop_at=stop, schedule=always
            )
            settings.run()
        weights.append(load_file(work / "out" / "open_clip_model.safetensors"))
        assert '"colour_and_shape"' in capsys.readouterr().out
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def _embed_words(texts):
    """A text's directions are its words'."""
    words = ["striped", "dotted", "shiny", "checkered", "red", "mug", "object"]
    rows = torch.tensor([[float(word in text.split()) for word in words] for text in texts])
    return torch.nn.functional.normalize(rows, dim=-1)


def test_materials_are_measured_between_things_that_differ_in_nothing_else():
    striped, dotted = (Description("mug", "red", material) for material in ("striped", "dotted"))
    wholes = [
        Whole(_embed_words([thing.name])[0], thing, (0, picture))
        for picture in (0, 1)
        for thing in (
            striped,
            dotted,
            Description("mug", "red"),
            Description("box", None, "wooden"),
        )
    ]
    found = material_numbers(wholes, _embed_words)
    assert found["material_of_two_names"] == found["material_of_two_objects"] == 1
    assert found["material_of_two_objects_count"] == 8  # each of two with two others, twice
    assert found["full_name_accepted"] == 1
    assert found["wrong_material_refused"] == 0  # two of three words are nearer than "object"
    mistaken = [replace(whole, thing=dotted) for whole in wholes if whole.thing == striped]
    found = material_numbers(mistaken, _embed_words)
    assert found["material_of_two_names"] == 0
    assert np.isnan(found["material_of_two_objects"])


def test_the_shipped_model_tells_things_apart(tmp_path):
    backbone = load_backbone(PRESETS["TINYCLIP"].backbone, towers=("image", "text"))
    tabletops = [load_generated(tmp_path, "tabletop", seed, views=3) for seed in (100, 101, 102)]
    found = train.measure(*train.towers(backbone), tabletops)
    assert found["colour"] >= 0.9
    assert found["colour_and_shape"] >= 0.8
    assert found["whole_colour_and_shape"] >= 0.8
    assert found["material_of_two_objects"] >= 0.8
    assert found["wrong_material_refused"] >= 0.8
    render_scenes(tmp_path, [HELD_OUT_FROM + 500, HELD_OUT_FROM + 501], processes=1)
    clutter = [load_scene(tmp_path, HELD_OUT_FROM + 500 + index) for index in range(2)]
    found = train.measure(*train.towers(backbone), clutter)
    assert found["colour"] > 0.9
    assert found["colour_and_shape"] > 0.5
