"""The tables over several scenes: a column per seed and the mean of what was measured."""

import pytest


@pytest.fixture
def table(benchmark_module):
    return benchmark_module("quality_table")


def job(table, kind, seed):
    options = {"views": 8, "size": (8, 8), "feature_type": "TINYCLIP", "weights": ()}
    return table.Job(kind, seed, **options, steps=9, overrides=(), nerfacto=False, device="cpu")


def test_scenes_are_averaged_by_kind_and_what_is_missing_is_in_no_mean(table):
    empty = dict.fromkeys(table.ROWS)
    spread = {"mean": 0.9, "median": 0.8, "max": 1.0}
    found = {
        job(table, "tabletop", 0): empty | {"miou": 0.5, "present_max_relevancy": spread},
        job(table, "tabletop", 3): empty | {"miou": 0.7, "psnr": 25.0},
        job(table, "room", 0): empty | {"miou": 0.1},
    }
    tabletop, room = table.markdown(found).split("\n\n")
    assert tabletop.splitlines()[0] == "| tabletop | seed 0 | seed 3 | mean |"
    assert "| mIoU, relevancy > 0.5 | 0.500 | 0.700 | 0.600 |" in tabletop
    assert "| highest relevancy of present phrases, mean | 0.900 | - | 0.900 |" in tabletop
    assert "| PSNR | - | 25.000 | 25.000 |" in tabletop
    assert "| mIoU, relevancy > 0.5 | 0.100 | 0.100 |" in room
