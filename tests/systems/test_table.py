"""The table of docs/toolkit.md has the calls that the tests here make."""

from tests.systems.table import COMMAND, FOLDER, PAGE, SYSTEMS, rows, written


def test_the_table_is_the_one_of_the_tests():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), f"docs/toolkit.md is stale. Write its table: {COMMAND}"


def test_every_system_has_rows_once_each():
    found = list(rows())
    assert {row.system for row in found} == set(SYSTEMS.values())
    assert len({(row.system, row.call, row.here) for row in found}) == len(found)
    files = {path.stem for path in FOLDER.glob("test_*.py")} - {"test_table"}
    assert files == set(SYSTEMS)
