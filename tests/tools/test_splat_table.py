"""The table of lifted features: a column per way, seeds pooled, and the teacher beside it."""

import json

import pytest


@pytest.fixture
def table(benchmark_module):
    return benchmark_module("splat_table")


def evaluation(ious, teacher, **numbers):
    """An evaluation of as many queries as there are IoUs, each seen in two views."""
    queries = [{"views": 2, "miou": iou, "teacher_miou": teacher} for iou in ious]
    means = {"miou": sum(ious) / len(ious), "teacher_miou": teacher}
    means |= {"localisation_mask": 0.5, "teacher_localisation_mask": 0.25}
    return means | {"queries": queries, "absent": [], "views": []} | numbers


def test_ways_are_columns_and_seeds_are_pooled(table):
    lifted = [
        evaluation([0.5, 0.5, 0.5], 0.4, attach_seconds=10.0, point_accuracy=0.5),
        evaluation([0.9], 0.4, attach_seconds=20.0, point_accuracy=1.0),
    ]
    trained = [evaluation([0.7, 0.7, 0.7], 0.4), evaluation([0.7], 0.4)]
    text = table.markdown("tabletop", {"lifted": lifted, "trained": trained})
    lines = text.splitlines()
    assert lines[0] == "| tabletop | lifted | trained | 2D teacher |"
    assert f"| {table.ROWS['miou']} | 0.600 | 0.700 | 0.400 |" in lines  # over 4 queries
    assert f"| {table.ROWS['point_accuracy']} | 0.750 |  |  |" in lines
    assert f"| {table.TIMES['attach_seconds']} | 15.000 |  | |" in lines
    assert lines[-2].endswith(
        "by seed: lifted 0.500, 0.900; trained 0.700, 0.700; 2D teacher 0.400, 0.400."
    )


def test_what_is_measured_is_not_measured_again(table, tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        folder = tmp_path / f"tabletop-{seed}" / "refine-0"
        folder.mkdir(parents=True)
        (folder / "eval.json").write_text(json.dumps(evaluation([0.5], 0.4)))
    words = ["splat_table.py", "--seeds", "0", "1", "--refine", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    table.main()
    assert f"| {table.ROWS['miou']} | 0.500 | 0.400 |" in capsys.readouterr().out
