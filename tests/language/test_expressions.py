import pytest
import torch
from hypothesis import given, strategies as st

from f3rm.language.expressions import (
    Either,
    Every,
    ExpressionError,
    Negation,
    PartOf,
    Phrase,
    combined,
    parse,
    phrases_of,
    split_questions,
    wholes_of,
)

LEAVES = st.builds(Phrase, st.sampled_from(["mug", "red mug", "black and white ball", "a > b"]))
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Negation, inner),
        st.builds(Every, st.tuples(inner, inner)),
        st.builds(Either, st.tuples(inner, inner)),
        st.builds(PartOf, inner, inner),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
def test_what_is_written_is_read_again(expression):
    assert parse(str(expression)) == expression


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red  mug", Phrase("red mug")),
        ("mug and not red", Every((Phrase("mug"), Negation(Phrase("red"))))),
        ("a OR b and c", Either((Phrase("a"), Every((Phrase("b"), Phrase("c")))))),
        ("(a or b) and c", Every((Either((Phrase("a"), Phrase("b"))), Phrase("c")))),
        ("mug > handle", PartOf(Phrase("mug"), Phrase("handle"))),
        ('"black and white" ball', Phrase("black and white ball")),
        ("orange", Phrase("orange")),
    ],
)
def test_operators_bind_as_usual_and_words_that_hold_them_do_not(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "and mug", "mug or", "(mug", "mug)", "not", '"mug', "a > "])
def test_what_cannot_be_read_is_refused_with_the_text(text):
    with pytest.raises(ExpressionError, match="A question must be phrases") as error:
        parse(text)
    assert repr(text) in str(error.value)


def test_semicolons_separate_questions_outside_quotation_marks():
    assert split_questions(' red mug; "a; b" ;; bowl or box;') == [
        "red mug",
        '"a; b"',
        "bowl or box",
    ]
    assert split_questions(" ; ") == []


def _scores(**scores):
    return lambda phrase: torch.tensor(scores[phrase])


def test_scores_are_combined_by_least_most_and_one_minus():
    scores = _scores(a=[0.2, 0.9], b=[0.6, 0.7])

    def of(text):
        return combined(parse(text), scores, lambda thing: 0.5)

    torch.testing.assert_close(of("a and b"), torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(of("a or b"), torch.tensor([0.6, 0.9]))
    torch.testing.assert_close(of("b and not a"), torch.tensor([0.6, 0.1]))
    torch.testing.assert_close(of("a > b"), torch.tensor([0.0, 0.7]))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_de_morgan_holds(values):
    scores = _scores(a=values[:2], b=values[2:])
    left = combined(parse("not (a and b)"), scores, lambda thing: 0.5)
    right = combined(parse("not a or not b"), scores, lambda thing: 0.5)
    torch.testing.assert_close(left, right)


def test_phrases_and_things_are_named_in_order():
    expression = parse("(box > lid) > knob or box")
    assert phrases_of(expression) == ("box", "lid", "knob")
    assert [str(thing) for thing in wholes_of(expression)] == ["box", "box > lid"]
