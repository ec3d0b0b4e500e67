"""The tables over several scenes: a column per seed, and what all of them together give."""

import pytest


@pytest.fixture
def table(benchmark_module):
    return benchmark_module("quality_table")


def job(table, kind, seed):
    options = {"views": 8, "size": (8, 8), "feature_type": "TINYCLIP", "weights": ()}
    return table.Job(kind, seed, **options, steps=9, overrides=(), nerfacto=False, device="cpu")


def evaluation(table, ious, **numbers):
    """An evaluation of as many queries as there are IoUs, each seen in two views."""
    queries = [
        {"text": f"query {n}", "views": 2, "miou": iou, "localisation": 0.5, "certainty": "found"}
        for n, iou in enumerate(ious)
    ]
    absent = [{"text": "fox", "kind": "unknown_word", "shared_words": 0, "certainty": "absent"}]
    rows = {"queries": queries, "absent": absent, "views": []}
    return dict.fromkeys(table.ROWS) | {"miou": sum(ious) / len(ious)} | rows | numbers


def cells(text, label):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_scenes_are_pooled_by_their_rows_and_what_is_missing_is_in_no_mean(table):
    spread = {"mean": 0.9, "median": 0.8, "max": 1.0}
    found = {
        job(table, "tabletop", 0): evaluation(table, [0.5, 0.5, 0.5], present_max_relevancy=spread),
        job(table, "tabletop", 3): evaluation(table, [0.9], point_accuracy=0.25),
        job(table, "room", 0): evaluation(table, [0.1]),
    }
    tabletop = table.means_table("tabletop", {j.seed: n for j, n in list(found.items())[:2]})
    assert tabletop.splitlines()[0] == "| tabletop | seed 0 | seed 3 | pooled | 95 % | over |"
    assert cells(tabletop, table.ROWS["miou"])[:3] == ["0.500", "0.900", "0.600"]  # of 4 queries
    assert cells(tabletop, table.ROWS["miou"])[4] == "4 queries"
    assert cells(tabletop, table.ROWS["localisation"])[2:] == ["0.500", "0.500 to 0.500", "8 pairs"]
    assert cells(tabletop, table.ROWS["present_max_relevancy"]) == ["0.900", "-", "-", "", ""]
    assert cells(tabletop, table.ROWS["point_accuracy"])[1:] == [
        *("0.250", "0.250", "0.250 to 0.250", "1 scenes")
    ]
    page = table.markdown(found)
    assert page.count("| seed 0 |") == 2
    assert "| room | seed 0 | pooled | 95 % | over |" in page


def test_certainty_is_counted_over_all_seeds(table):
    found = [evaluation(table, [0.5, 0.5]), evaluation(table, [0.9])]
    certainty, absent = table.prompt_tables("room", found)
    assert cells(certainty, "present") == ["3", "0", "0", "0"]
    assert cells(certainty, "unknown_word") == ["0", "0", "2", "0"]
    assert cells(absent, "unknown_word") == ["0", "2", *["-"] * 6]
