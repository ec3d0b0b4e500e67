"""The site's pages that are made from the code, and its links; ``make site`` builds all of it."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from f3rm.scripts.cli import COMMANDS
from tools import site_pages


def page(place):
    return cast("Any", SimpleNamespace(file=SimpleNamespace(src_uri=place)))


def test_the_options_are_those_of_the_parsers():
    text = site_pages.options_page()
    assert [line[8:] for line in text.splitlines() if line.startswith("## f3rm ")] == [*COMMANDS]
    find = text.partition("## f3rm find\n")[2].partition("\n## ")[0]
    assert "| `--picture {None}|PATH` | `None` | " in find
    assert "### f3rm cache verify\n" in text
    assert "(default:" not in text


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("index.md", "[a](docs/python.md#frames)", "[a](python.md#frames)"),
        ("index.md", "![a](docs/images/viewer.jpg)", "![a](images/viewer.jpg)"),
        ("python.md", "[a](../examples/02_ask.py)", "[a](examples/02_ask.py)"),
        ("decisions/0001-x.md", "[a](../benchmarks.md)", "[a](../benchmarks.md)"),
        ("contributing.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("architecture.md", "[a](../f3rm/design.md)", "[a](rooms.md)"),
        ("python.md", "found[0](gone.md) and [a](gone.md)", "found[0](gone.md) and [a](gone.md)"),
    ],
)
def test_links_lead_to_the_same_file_in_the_site(place, text, expected):
    assert site_pages.on_page_markdown(text, page(place)) == expected


def test_what_a_browser_would_fetch_elsewhere_is_a_warning(caplog):
    harmless = '<a href="https://x.org"><img src="images/a.jpg"><script src="a.js"></script>'
    with caplog.at_level(logging.WARNING):
        assert site_pages.on_post_page(harmless, page("a.md")) == harmless
        assert caplog.messages == []
        site_pages.on_post_page('<script async src="https://x.org/a.js">', page("a.md"))
    assert "a.md fetches from another host" in caplog.text


def test_the_names_of_roles_are_left_out():
    text = site_pages.on_post_page("see :class:<code>f3rm.Scene</code>", page("a.md"))
    assert text == "see <code>f3rm.Scene</code>"
