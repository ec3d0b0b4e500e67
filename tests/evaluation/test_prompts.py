"""Answers counted by what was asked."""

import pytest
from hypothesis import given, settings, strategies as st

from f3rm.evaluation.prompts import absent_table, confusion

CERTAINTIES = ["found", "uncertain", "absent", "unknown word"]
KINDS = ["unknown_word", "absent_word", "absent_pair", "swapped", "wrong_material"]


@given(
    st.lists(st.sampled_from(CERTAINTIES), min_size=1),
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(CERTAINTIES))),
)
@settings(max_examples=50, deadline=None)
def test_every_prompt_is_counted_once_in_the_row_of_its_kind(present, absent):
    queries = [{"certainty": certainty} for certainty in present]
    prompts = [{"kind": kind, "certainty": certainty} for kind, certainty in absent]
    table = confusion(queries, prompts)
    assert table is not None
    assert sum(sum(row.values()) for row in table.values()) == len(present) + len(absent)
    assert list(table) == ["present", *(kind for kind in KINDS if kind in dict(absent))]
    for kind, row in table.items():
        asked = len(present) if kind == "present" else sum(k == kind for k, _ in absent)
        assert sum(row.values()) == asked
        assert list(row) == CERTAINTIES


def test_what_was_not_asked_is_not_counted():
    assert confusion([{"text": "mug"}], [{"kind": "swapped"}]) is None
    assert absent_table([{"text": "mug"}], []) == []


def test_absent_prompts_are_grouped_by_kind_and_shared_words():
    def prompt(kind, shared, *scores):
        return {"kind": kind, "shared_words": shared, "max_relevancies": list(scores)}

    queries = [{"max_relevancies": [0.7, 0.9]}, {"max_relevancies": [0.8]}]
    table = absent_table(
        queries,
        [
            prompt("swapped", 2, 0.1, 0.95),
            prompt("unknown_word", 0, 0.2, 0.5),
            prompt("swapped", 1, 0.3),
            prompt("swapped", 2, 0.85, 0.2),
        ],
    )
    groups = [(row["kind"], row["shared_words"], row["prompts"]) for row in table]
    assert groups == [("unknown_word", 0, 1), ("swapped", 1, 1), ("swapped", 2, 2)]
    assert [row["accepted"] for row in table] == [0, 0, 1]  # 0.5 is not above 0.5
    assert [row["max_relevancy"] for row in table] == [0.5, 0.3, 0.95]
    assert [row["auroc"] for row in table] == [1, 1, pytest.approx(1 / 4)]
    assert {row["teacher_auroc"] for row in table} == {None}
