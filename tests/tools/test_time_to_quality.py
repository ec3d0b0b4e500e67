"""What the table of times to quality is computed from."""

import math

import pytest


@pytest.fixture
def bench(benchmark_module):
    return benchmark_module("time_to_quality")


def curve(bench, cosines, *, seconds=1.0):
    return [
        bench.Point(50 * number, seconds * number, cosine, cosine / 2, 20.0)
        for number, cosine in enumerate(cosines, start=1)
    ]


def test_a_goal_is_reached_where_it_is_kept(bench):
    points = curve(bench, [0.2, 0.9, 0.3, 0.8, 0.9])
    assert bench.seconds_to(points, lambda point: point.cosine, 0.7) == 4.0
    assert bench.seconds_to(points, lambda point: point.cosine, 0.1) == 1.0
    assert math.isnan(bench.seconds_to(points, lambda point: point.cosine, 0.95))


def test_times_are_in_units_of_the_defaults(bench):
    found = {
        bench.DEFAULTS: curve(bench, [0.2, 0.5, 0.8, 0.8]),
        "slower steps": curve(bench, [0.2, 0.8, 0.8, 0.9], seconds=3.0),
        "worse": curve(bench, [0.2, 0.3, 0.4, 0.4]),
    }
    rows = bench.markdown(found).splitlines()
    assert rows[2] == "| defaults | 1.00 | 1.00 | 1.00 | 0.800 | 0.400 | 20.00 |"
    assert rows[3] == "| slower steps | 3.00 | 2.00 | 2.00 | 0.900 | 0.450 | 20.00 |"
    assert rows[4] == "| worse | 1.00 | never | never | 0.400 | 0.200 | 20.00 |"
    assert rows[-1] == "The defaults need 150 steps for the cosine and 150 for mIoU."


def test_every_variant_changes_the_configuration(bench, benchmark_module, tmp_path):
    quality_table = benchmark_module("quality_table")
    options = {"seed": 0, "views": 8, "size": (8, 8), "feature_type": "TINYCLIP", "weights": ()}
    settings = {}
    for name, changes in bench.VARIANTS.items():
        overrides = tuple(change.format(steps=70) for change in changes)
        job = quality_table.Job(
            kind="tabletop", **options, steps=70, overrides=overrides, nerfacto=False, device="cpu"
        )
        settings[name] = str(quality_table.configure(job, tmp_path, tmp_path, features=True))
    assert len(set(settings.values())) == len(settings)
