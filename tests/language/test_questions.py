"""Questions by examples score as the viewer's clicks do, and lists of questions are checked."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from f3rm.errors import BackboneRef, F3rmError, HeadSpec
from f3rm.language.active_query import DisplaySettings, Example, active_query
from f3rm.language.questions import MOST_QUESTIONS, question_like, questions_in


@dataclass
class _Head:
    spec: HeadSpec
    weight: Tensor


HEAD = _Head(HeadSpec("dino", 6, False, BackboneRef("dino", "a", "b")), torch.randn(6, 4))
HIDDEN, BACKGROUND = torch.randn(50, 4), torch.randn(6)


def test_an_example_scores_as_a_click_in_the_viewer():
    feature = torch.randn(6)
    click = Example("point 1", is_positive=True, features={"dino": feature})
    shown = active_query("dino", None, [click], BACKGROUND, DisplaySettings())
    assert shown is not None
    asked = question_like("mug", feature[None], HEAD, BACKGROUND, is_present=True)
    expected = shown.scores(HIDDEN, {"dino": HEAD.weight})[:, 0]
    torch.testing.assert_close(asked.scores(HIDDEN), expected)
    assert (asked.label, asked.compares) == ("mug", True)


def test_of_several_examples_the_nearest_counts():
    features = torch.randn(3, 6)
    alone = [
        question_like("mug", feature[None], HEAD, BACKGROUND, is_present=True).scores(HIDDEN)
        for feature in features
    ]
    together = question_like("mug", features, HEAD, BACKGROUND, is_present=True)
    torch.testing.assert_close(together.scores(HIDDEN), torch.stack(alone).amax(dim=0))


def test_a_query_is_one_question_or_a_list():
    question = question_like("mug", BACKGROUND[None], HEAD, BACKGROUND, is_present=True)
    assert questions_in(question) == [question]
    assert questions_in([question, "bowl"]) == [question, "bowl"]
    assert questions_in('mug; "a; b"; ') == ["mug", '"a; b"']
    assert len(questions_in(["mug"] * MOST_QUESTIONS)) == MOST_QUESTIONS
    with pytest.raises(F3rmError, match=r"may hold 255 questions, got 256"):
        questions_in(["mug"] * (MOST_QUESTIONS + 1))
