"""The benchmark suite's page, limits and command lines fit each other."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def suite(benchmark_module):
    return benchmark_module("suite")


def test_every_size_runs_the_same_benchmarks_and_they_exist(suite):
    assert suite.SIZES["smallest"].keys() == suite.SIZES["default"].keys()
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in suite.SIZES["default"])
    assert {*suite.AT_MOST, *suite.AT_LEAST, *suite.ON_GPU} <= suite.SIZES["default"].keys()


def test_limits_bite_on_their_side(suite):
    for limits, good, bad in ((suite.AT_MOST, 0.0, 1e9), (suite.AT_LEAST, 1e9, 0.0)):
        for value, expected in ((good, 0), (bad, sum(map(len, limits.values())))):
            runs = {
                name: {"result": dict.fromkeys(bounds, value)} for name, bounds in limits.items()
            }
            others = suite.AT_LEAST if limits is suite.AT_MOST else suite.AT_MOST
            for name, bounds in others.items():
                fine = 1e9 if others is suite.AT_LEAST else 0.0
                runs.setdefault(name, {"result": {}})["result"] |= dict.fromkeys(bounds, fine)
            assert len(suite.failures(runs)) == expected


def test_the_page_has_a_place_for_every_table(suite, benchmark_module):
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = {
        "step": {
            **{f"{name}_384": 1.25 for name in ("step_ratio", "features_ratio")},
            "per_sample_ratio_384": 2.0,
            "peak_mib": {"nerfacto": 1.0, "f3rm 384": 2.0, "per_sample 384": 1234.0},
            "head_speedup_768": 14.0,
            "shares_768": {"Adam": 0.25},
        },
        "scale": {
            f"{name}{end}": {"50": 1.0, "5000": 2.0} if end == "_ms" else 1.5
            for name in ("open", "gather", "extract", "channels", "rays")
            for end in ("_ms", "_per_doubling")
        },
        **{
            name: dict.fromkeys(labels, 3.25)
            for name, labels in benchmark_module("tables").ROWS.items()
        },
    }
    assert found.keys() == suite.SIZES["default"].keys()
    runs = {
        name: {"command": f"python {name}.py", "commit": "abc", "result": result}
        for name, result in found.items()
    }
    record = {"device": "a machine", "torch": "2", "benchmarks": runs}
    once = suite.render(page, record)
    assert once == suite.render(once, record)
    for line in ("| | 384 channels |", "1,234", "Adam 25%", "5,000: 2", "| 3.25 |"):
        assert line in once
    assert "`python lite.py` at abc, a machine, 1 thread, torch 2." in once
    with pytest.raises(ValueError, match="marks of 'step' once, got 0"):
        suite.render("# Empty", record)
