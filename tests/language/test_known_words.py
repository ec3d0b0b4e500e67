"""A text tower that knows few words says so; what contradicts a phrase differs in one word."""

import pytest
from hypothesis import given, settings, strategies as st

from f3rm.backbones.known_words import KnownWords, read_known_words
from f3rm.backbones.registry import load_backbone
from f3rm.language.known_words import rivals_of, unknown_reason, unknown_words
from f3rm.store.spec import PRESETS

KNOWN = KnownWords(
    {
        "colour": (("red",), ("turquoise", "cyan")),
        "material": (("shiny", "glossy"), ("striped",), ("dotted",)),
        "shape": (("box", "cube"), ("mug",)),
    },
    frozenset({"a", "of", "photo", "object"}),
)
WORDS = st.sampled_from(sorted(KNOWN.all))


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(st.sampled_from(["fox", "Über", "x"])))
@settings(max_examples=50, deadline=None)
def test_what_is_known_is_not_named_and_all_else_is(known, others):
    phrase = " ".join([*known, *others]).title()
    assert set(unknown_words([phrase], KNOWN)) == {word.lower() for word in others}
    assert bool(unknown_reason("TINY", [phrase], KNOWN)) == bool(others)
    assert unknown_words([phrase], None) == ()
    assert unknown_reason("CLIP", [phrase], None) == ""


def test_the_reason_names_the_words_and_what_to_ask_instead():
    said = unknown_reason("TINY", ["red fox", "a fox", "mug-like"], KNOWN)
    assert said == (
        "TINY does not know 'fox' and 'like'. It knows the colours red, turquoise; the materials "
        "shiny, striped, dotted; the shapes box, mug; use CLIP for photographs"
    )


@given(st.lists(WORDS, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_rival_differs_in_one_word_of_the_same_kind(words):
    kinds = {word: kind for kind, groups in KNOWN.kinds.items() for g in groups for word in g}
    rivals = rivals_of(" ".join(words), KNOWN)
    expected = sum(len(KNOWN.kinds[kinds[word]]) - 1 for word in words if word in kinds)
    assert len(rivals) == expected
    for rival in rivals:
        ((old, new),) = [
            pair for pair in zip(words, rival.split(), strict=True) if pair[0] != pair[1]
        ]
        assert kinds[old] == kinds[new]
        assert not any({old, new} <= set(group) for group in KNOWN.kinds[kinds[old]])


def test_synonyms_are_no_rivals_and_free_words_have_none():
    assert rivals_of("glossy cube", KNOWN) == ("striped cube", "dotted cube", "glossy mug")
    assert rivals_of("a photo of a fox", KNOWN) == ()
    assert rivals_of("red mug", None) == ()


def test_words_are_read_from_the_folder_of_the_weights(tmp_path):
    assert read_known_words(None) is None
    assert read_known_words(tmp_path) is None
    lines = "colour red\ncolour cyan teal\n\ntemplate a photo\ncanonical object\nshape\n"
    (tmp_path / "vocabulary.txt").write_text(lines)
    groups, neutral = (("red",), ("cyan", "teal")), frozenset({"a", "photo", "object"})
    assert read_known_words(tmp_path) == KnownWords({"colour": groups}, neutral)


@pytest.mark.parametrize("phrase", ["striped red mug", "wooden box", "a photo of the cyan sphere"])
def test_the_small_model_that_ships_knows_what_it_was_taught(phrase):
    known = load_backbone(PRESETS["TINYCLIP"].backbone, towers=("text",)).known_words
    assert known is not None
    assert unknown_words([phrase], known) == ()
    assert unknown_words([f"{phrase} fox"], known) == ("fox",)
