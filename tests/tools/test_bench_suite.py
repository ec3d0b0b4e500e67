"""The benchmark suite's page, limits and command lines fit each other."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def suite(benchmark_module):
    return benchmark_module("suite")


def test_every_size_runs_the_same_benchmarks_and_they_exist(suite):
    assert suite.SIZES["smallest"].keys() == suite.SIZES["default"].keys()
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in suite.SIZES["default"])
    on_gpu = {name.split()[0] for name in suite.ON_GPU}
    assert {*suite.AT_MOST, *suite.AT_LEAST, *on_gpu} <= suite.SIZES["default"].keys()


def test_images_per_second_are_shown_of_a_gpu_alone(benchmark_module):
    rates = {"bare": 52.5, "engine": 50.0}
    found = {"vs_bare_model": 0.95, "rss_growth": 1.0, "images_per_second": rates, "side": 336}
    table_of = benchmark_module("tables").table_of
    line = "Images per second at a short side of 336: bare 52.5, engine 50."
    assert line in table_of("extract", {"result": found | {"is_gpu": True}})
    assert "per second at" not in table_of("extract", {"result": found | {"is_gpu": False}})


def test_an_engine_is_never_faster_than_its_simulated_device(benchmark_module):
    simulated = benchmark_module("simulated")
    setting = simulated.Setting((24, 33), side=28, batch=4, milliseconds=8, images=10)
    assert setting.rate == 500
    found = simulated.simulate(setting, repeats=1)
    assert 0 < found["ratio"] <= 1
    assert found["wanted_mb_per_second"] > 0
    result = {"vs_bare_model": 0.9, "rss_growth": 1.0, "engine_ratio_25": found["ratio"]}
    table = benchmark_module("tables").table_of(
        "extract", {"result": result | {"engines": {"25": found}}}
    )
    assert f"simulated device of 25 images per second | {found['ratio']:.3g} |" in table
    assert "At 25 images per second an image takes " in table


def test_on_a_gpu_is_measured_what_is_installed(suite, monkeypatch):
    assert suite.chosen("default", "cpu") == suite.SIZES["default"]
    for found, left_out in ((None, {"step tcnn", "step triton"}), (True, set())):
        monkeypatch.setattr(suite.importlib.util, "find_spec", lambda _name, found=found: found)
        assert suite.ON_GPU.keys() - suite.chosen("default", "cuda").keys() == left_out


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


def test_rows_of_one_label_are_all_shown(benchmark_module):
    labels = {"one": "a frame", "two": "the same", "three": "another", "four": "the same"}
    shown = benchmark_module("tables")._rows(labels, {"one": 1, "two": 2, "three": 3, "four": 4})
    assert [line.split(" | ")[1] for line in shown.splitlines()[2:]] == ["1 |", "2 |", "3 |", "4 |"]


def test_memory_and_time_are_those_of_the_gpu_that_computes(benchmark_module, monkeypatch):
    second, asked = torch.device("cuda:1"), []

    def note(device=None):
        asked.append(device)
        return 3 * 2**20

    for name in ("memory_allocated", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, note)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 2 * note(device))
    assert benchmark_module("measuring").peak_mib(lambda: None, second) == 3.0
    benchmark_module("time_to_quality")._clock("cuda:1")()
    assert {str(device) for device in asked} == {"cuda:1"}
