"""How certain an answer is, on a surface of patches whose scores are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from f3rm.backbones.known_words import KnownWords
from f3rm.language.expressions import Phrase
from f3rm.language.questions import Question
from f3rm.language.relevancy import make_query, to_hidden
from f3rm.scene.finding.certainty import MANY
from f3rm.scene.finding.find import Wish, find_instances
from f3rm.scene.finding.scored import score_surface
from f3rm.scene.frames import Frame
from f3rm.scene.surface import Sightings, Surface, SurfacePoints
from tests.viewer.colour_backbone import COLOURS, ColourBackbone

SPACING = 0.01
ASKED, RIVAL, NEGATIVE = torch.eye(3)


def patches(*features):
    """Patches of a lattice far from each other, of one feature and of alternating size each."""
    positions: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    for number, feature in enumerate(features):
        sides = [SPACING * torch.arange(6.0), SPACING * torch.arange(6.0 + number % 2)]
        place = torch.cartesian_prod(*sides, torch.tensor([float(number)]))
        positions.append(place)
        hidden.append(feature.expand(len(place), -1))
    where = torch.cat(positions)
    counts = torch.ones(len(where), dtype=torch.long)
    points = SurfacePoints(where, torch.zeros_like(where), torch.cat(hidden), counts)
    return Surface(Sightings(points, 0 * counts, torch.tensor([[0.0, 0.0, -1.0]])), SPACING)


def asked(**changes):
    def query(prompt):
        return to_hidden(make_query(prompt[None], NEGATIVE[None]), torch.eye(3))

    own = Question("striped mug", Phrase("striped mug"), query(ASKED))
    return replace(own, **{"rivals": ("shiny mug",), "rival_query": query(RIVAL), **changes})


def answer(surface, question=None, threshold=None):
    scored = score_surface(surface, question or asked(), threshold)
    return find_instances(scored, Wish(Frame(np.eye(4)), "dataset", np.array([0.0, 0.0, 1.0])))


def mixed(own, rival, negative):
    return own * ASKED + rival * RIVAL + negative * NEGATIVE


SURE, NOTHING = mixed(1, 0.2, 0), mixed(0, 0, 1)


def test_one_clear_piece_is_found_and_needs_no_reason():
    found = answer(patches(SURE, NOTHING))
    assert (found.certainty, found.reason, len(found)) == ("found", "", 1)


def test_what_nothing_fits_is_absent():
    found = answer(patches(NOTHING))
    assert (found.certainty, len(found)) == ("absent", 0)
    assert found.reason == (
        "'striped mug' not found: best score 0.00 is below the presence threshold 0.54"
    )


@pytest.mark.parametrize(("own", "pieces"), [(0.74, 1), (0.69, 0)])
def test_a_score_close_to_the_threshold_says_neither(own, pieces):
    found = answer(patches(mixed(own, 0, 0.7), NOTHING))
    assert (found.certainty, len(found)) == ("uncertain", pieces)
    assert "the presence threshold 0.54" in found.reason


@pytest.mark.parametrize(("number", "certainty"), [(MANY, "found"), (16, "uncertain")])
def test_many_equal_pieces_are_uncertain(number, certainty):
    found = answer(patches(*[SURE] * number, NOTHING))
    assert (found.certainty, len(found)) == (certainty, number)
    assert found.reason.startswith("16 pieces") == (number == 16)


def test_a_piece_that_a_contradicting_phrase_fits_better_is_uncertain():
    found = answer(patches(mixed(0.8, 1, 0), NOTHING))
    assert (found.certainty, len(found)) == ("uncertain", 1)
    assert found.reason.startswith("what was found is rather 'shiny mug': score ")
    without = answer(patches(mixed(0.8, 1, 0), NOTHING), asked(rivals=(), rival_query=None))
    assert (without.certainty, len(without)) == ("found", 1)


def test_pieces_that_contradict_are_left_out_beside_one_that_does_not():
    points = patches(mixed(0.8, 1, 0), SURE, NOTHING)
    found = answer(points)
    assert (found.certainty, len(found)) == ("found", 1)
    assert found[0].centre[2] == pytest.approx(1)
    assert len(answer(points, threshold=0.9)) == 2  # a given threshold is the only criterion


def test_an_unknown_word_finds_nothing_however_high_it_scores():
    points = patches(SURE, NOTHING)
    found = answer(points, asked(unknown="TINY does not know 'fox'."))
    assert (found.certainty, len(found)) == ("unknown word", 0)
    assert found.reason == "TINY does not know 'fox'."
    forced = answer(points, asked(unknown="TINY does not know 'fox'."), threshold=0.5)
    assert (forced.certainty, len(forced)) == ("unknown word", 1)  # who says so gets it


def test_scores_of_an_unknown_word_are_made_and_said_once(known, monkeypatch, caplog):
    words = KnownWords({"colour": tuple((colour,) for colour in COLOURS)})
    monkeypatch.setattr(ColourBackbone, "known_words", words)
    found = known.find("orange fox")
    assert (found.certainty, len(found)) == ("unknown word", 0)
    assert found.reason.startswith("COLOURS does not know 'fox'. It knows the colours red, orange,")
    assert known.threshold("orange") < known.threshold("orange fox") == math.inf
    points = known.cells.positions[:5]
    scores = known.similarity(points, "orange fox", frame="nerfstudio")
    known.similarity(points, "orange fox", frame="nerfstudio")
    torch.testing.assert_close(scores, known.similarity(points, "orange", frame="nerfstudio"))
    assert [text for text in caplog.messages if "fox" in text] == [found.reason]
