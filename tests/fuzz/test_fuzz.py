"""Nothing that a dataset, a cache or a person hands over ends in anything but an answer or advice.

A failure names its case: ``run_cases(kind, target, range(number, number + 1), folder)`` makes it
again.
"""

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import run_cases

FEW, MANY = 500, 10_000


@pytest.fixture
def target(kind, tmp_path):
    return TARGETS[kind](tmp_path / "arena")


@pytest.mark.parametrize("kind", TARGETS)
def test_a_few_documents_are_answered_or_refused(kind, target, tmp_path, record_property):
    check(kind, target, tmp_path, range(FEW), record_property)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", TARGETS)
def test_many_documents_are_answered_or_refused(kind, target, tmp_path, record_property):
    check(kind, target, tmp_path, range(FEW, MANY), record_property)


def check(kind, target, tmp_path, numbers, record_property):
    outcomes = run_cases(kind, target, numbers, tmp_path)
    record_property("outcomes", dict(outcomes.counts))
    assert not outcomes.failures, "\n".join(outcomes.failures[:20])
    assert sum(outcomes.counts.values()) == len(numbers)
    refused = outcomes.counts.total() - outcomes.counts["accepted"]
    assert outcomes.counts["accepted"] > len(numbers) / 50  # neither all nothing
    assert refused > len(numbers) / 50
