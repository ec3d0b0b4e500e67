"""The table of docs/toolkit.md: calls of other systems' documents, each made by a test here.

``python -m tests.systems.table`` writes it. Rows are the decorators :func:`shows` of the tests of
this folder, in their order.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "toolkit.md"
COMMAND = "python -m tests.systems.table"
SYSTEMS = {
    "test_standalone_script": "f3rm",
    "test_feature_head": "f3rm",
    "test_nsd_guide": "NSD",
    "test_vissl_page": "VISSL",
    "test_image2representation": "Image2Representation",
}
_START, _END = f"<!-- systems: {COMMAND} -->\n", "<!-- /systems -->"

Test = TypeVar("Test", bound=Callable[..., object])


class Row(NamedTuple):
    """A call, what it is here, and the test that makes it."""

    system: str
    call: str
    here: str
    test: str


def shows(call: str, here: str = "as written") -> Callable[[Test], Test]:
    """Marks a test that makes a call.

    Args:
        call: The call in the words of the system's document.
        here: What differs; or an equivalent of the toolkit, a line of Python in backquotes, which
            tests/recipes/test_systems_table.py runs.
    """
    return lambda test: test


def rows() -> Iterator[Row]:
    """Yields the rows that the tests' sources have."""
    for name, system in SYSTEMS.items():
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "shows":
                    words = [ast.literal_eval(word) for word in mark.args]
                    call, here = words if len(words) > 1 else (words[0], "as written")
                    yield Row(system, call, here, f"{name}.py::{node.name}")


def table() -> str:
    """Returns the table as Markdown."""
    lines = ["| system and call | here |", "|---|---|"]
    lines += [f"| {row.system}: {row.call} | {row.here} |" for row in rows()]
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """Returns the text of the page with the table of today."""
    before, _, rest = page.partition(_START)
    _, _, after = rest.partition(_END)
    assert after, f"{PAGE.name} must have {_START.strip()} and {_END}"
    return f"{before}{_START}{table()}{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
