"""The table of fields that were distilled from several kinds of targets."""

import pytest


@pytest.fixture
def targets(benchmark_module):
    return benchmark_module("targets")


def evaluation(ious):
    """An evaluation of as many queries as there are IoUs; one that no view shows has none."""
    return {"queries": [{"miou": iou, "miou_boundary": iou, "views": 2} for iou in ious]}


def test_each_kind_of_target_is_paired_with_the_plain_one_query_by_query(targets):
    plain = [evaluation([0.2, 0.9]), evaluation([0.5, None])]
    better = [evaluation([0.3, 1.0]), evaluation([0.6, None])]
    # The queries differ, what is added to them does not.
    gain = "0.100 (0.100 to 0.100); more in 3 of 3"
    assert targets.against_plain("miou", better, plain) == gain
    own = targets.mean_over("miou", better)
    assert own.high - own.low > 0.1
    table = targets.fields_table({"plain": plain, "better": better})
    (row,) = (line for line in table.splitlines() if line.startswith("| better "))
    assert row.count(gain) == 2
    assert "Over 2 scenes: mIoU 3 queries" in table
