"""The tap expression: what it reads, prints and refuses."""

from typing import get_args

import pytest
from hypothesis import assume, given, settings, strategies as st

from f3rm.backbones.taps import OP_RULES, Facet, Op, Select, Tap, parse_taps
from f3rm.errors import TapError

LAYERS = st.from_regex(r"-?[0-9]{1,2}|[a-z][a-z0-9_]{0,6}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True)
SIDES = st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40)))


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, tuple]:
    """Name and arguments; plain data, because the run-time type checks draw random numbers."""
    name = draw(st.sampled_from(sorted(OP_RULES)))
    if name == "dense":
        return name, (draw(st.from_regex(r"[a-z]{1,9}", fullmatch=True)),)
    if name in ("avg", "max"):
        kernel, stride = draw(st.integers(2, 20)), draw(SIDES)
        return name, (kernel, stride, draw(st.integers(0, kernel // 2)))
    fewest, most = OP_RULES[name].arguments
    return name, tuple(draw(SIDES) for _ in range(draw(st.integers(fewest, most))))


@given(
    layer=LAYERS,
    facet=st.sampled_from(get_args(Facet)),
    select=st.sampled_from(get_args(Select)),
    ops=st.lists(operations(), max_size=3),
)
@settings(deadline=None)
def test_what_is_printed_is_read_back(layer, facet, select, ops):
    try:
        tap = Tap(layer, facet, select, tuple(Op(*op) for op in ops))
    except TapError:
        assume(condition=False)
        return
    assert Tap.parse(str(tap)) == tap
    assert str(Tap.parse(str(tap))) == str(tap)
    assert Tap.parse(f" {str(tap).replace('|', ' | ').replace(',', ', ')} ") == tap


@pytest.mark.parametrize(
    ("text", "tap"),
    [
        ("-1|dense(maskclip)", Tap("-1", ops=(Op("dense", ("maskclip",)),))),
        ("-1:query@all", Tap("-1", "query", "all")),
        ("final@all|proj", Tap("final", select="all", ops=(Op("proj"),))),
        ("res4|avg(8,3,0)|flatten", Tap("res4", ops=(Op("avg", (8, 3, 0)), Op("flatten")))),
        ("11:token@patch", Tap("11")),
        ("layer1.0|max(3x5,2)", Tap("layer1.0", ops=(Op("max", ((3, 5), 2)),))),
        ("-1:key|heads|l2", Tap("-1", "key", ops=(Op("heads"), Op("l2")))),
    ],
)
def test_examples(text, tap):
    assert Tap.parse(text) == tap
    assert parse_taps([text, tap]) == (tap, tap)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must look like layer"),
        ("-1:quary", "no facet 'quary'; did you mean query"),
        ("-1@pathc", "no select 'pathc'; did you mean patch"),
        ("res4|agv(3)", "no operation 'agv'; did you mean avg"),
        ("res4|avg", "avg must have 1 to 3 arguments, got 0"),
        ("res4|avg(4,2,3)", "padding \\(at most half the kernel\\)"),
        ("res4|avg(0)", "arguments of avg must be kernel"),
        ("res4|adaptive_avg(a)", "must be rows and cols"),
        ("-1|dense(3)", "must be the name of a rule"),
        ("res4|mean(", "must look like mean or avg"),
        ("res4|mean|avg(2)", "avg must follow a map, got a vector"),
        ("-1@all|avg(2)", "avg must follow a map, got a tokens"),
        ("res4|flatten|mean", "mean must follow"),
        ("res4|flatten|norm", "got a flattened vector"),
        ("-1:attn@reg", "attn must be @cls, @patch or @all"),
        ("-1:attn|l2", "l2 must follow"),
        ("-1:key|proj", "proj must be used on the facet token"),
        ("-1|heads", "heads must come first"),
        ("-1:key|heads|avg(2)", "without pooling windows"),
        ("-1@all|dense(maskclip)", "dense must come first"),
        ("-1|l2|dense(maskclip)", "dense must come first"),
        ("-1|dense(maskclip)|proj", "without norm and proj"),
    ],
)
def test_malformed_taps_say_what_is_wrong(text, message):
    with pytest.raises(TapError, match=message):
        Tap.parse(text)


def test_a_layer_built_by_hand_is_checked_too():
    with pytest.raises(TapError, match="layer must be made of letters"):
        Tap("a|b")
