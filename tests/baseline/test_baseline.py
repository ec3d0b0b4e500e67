"""What users see stays as it was recorded, whatever moves inside."""

import difflib
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from f3rm.feature_datamanager import FeatureDataManagerConfig
from f3rm.model import FeatureFieldModelConfig
from f3rm.scene.run_loading import read_config
from tests.baseline.record import COMMAND, CONFIG, PARTS, as_text, file_of
from tests.scene_fixtures import need_raycaster

TOLERANCE = 2e-3
"""Of the largest value beside it: processors differ in the last bits."""
SHOWN = 80


def _within_tolerance(now: Any, recorded: Any) -> Any:
    """Returns what was gathered, with recorded numbers in place of those that are near enough."""
    if isinstance(now, dict) and isinstance(recorded, dict):
        return {name: _within_tolerance(now[name], recorded.get(name)) for name in now}
    if not (isinstance(now, list) and isinstance(recorded, list) and len(now) == len(recorded)):
        return now
    if not all(isinstance(value, float) for value in (*now, *recorded)):
        return now
    reach = TOLERANCE * max(map(abs, recorded), default=0.0)
    pairs = zip(now, recorded, strict=True)
    return [old if math.isclose(new, old, rel_tol=0, abs_tol=reach) else new for new, old in pairs]


def _lines(value: Any, path: str) -> Iterator[str]:
    """Yields a line for each value, with the path to it; entries of a list have one path."""
    if isinstance(value, dict) and value:
        for name, inner in sorted(value.items()):
            yield from _lines(inner, f"{path}{name}: ")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _lines(inner, path)
    else:
        yield f"{path}{value}"


def difference(part: str, now: dict[str, Any]) -> str:
    """Returns the lines in which a part differs from its record, and what to do; else nothing."""
    file = file_of(part)
    recorded = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(as_text(_within_tolerance(now, recorded)))
    before, after = list(_lines(recorded, "")), list(_lines(now, ""))
    diff = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]  # without file names
    changed = [line for line in diff if not line.startswith("@@")]
    if not changed:
        return ""
    shown = "\n".join(changed[:SHOWN])
    return (
        f"What users see is not as in tests/baseline/{file.name} (-), but +:\n{shown}\n"
        f"{len(changed)} lines differ. If this is meant, record it anew: {COMMAND} {part}"
    )


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=[pytest.mark.slow] * (part == "json_keys")) for part in PARTS],
)
def test_it_is_as_recorded(part, tmp_path):
    if part == "json_keys":
        need_raycaster()
    if changed := difference(part, PARTS[part](tmp_path)):
        pytest.fail(changed, pytrace=False)


def test_a_run_that_was_trained_before_opens():
    """Its ``config.yml`` names classes by their modules, where they may be no longer."""
    config = read_config(CONFIG)
    assert isinstance(config.pipeline.datamanager, FeatureDataManagerConfig)
    assert isinstance(config.pipeline.model, FeatureFieldModelConfig)
    assert config.pipeline.model._target.__name__ == "FeatureFieldModel"


def test_a_difference_is_named_with_the_command_that_records_it():
    recorded = json.loads(file_of("options").read_text(encoding="utf-8"))
    recorded["f3rm eval"].remove("--seed INT = 0")
    changed = difference("options", recorded)
    assert "-f3rm eval: --seed INT = 0\n1 lines differ" in changed
    assert changed.endswith(f"{COMMAND} options")


def test_numbers_may_differ_in_their_last_digits_only():
    recorded = json.loads(file_of("outputs").read_text(encoding="utf-8"))
    values = recorded["rgb"]["values"]
    values[0] *= 1 + 1e-4
    assert difference("outputs", recorded) == ""
    values[0] *= 1.1
    assert "-rgb: values: " in difference("outputs", recorded)
