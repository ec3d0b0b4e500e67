"""Hooks of ``mkdocs.yml``: pages from outside of ``docs/``, and the reference, made from the code.

Links are rewritten from where a page stands in the repository to where it stands in the site. The
reference is never a file: options come from the commands' parsers, the API from the names that
the packages offer.
"""

import ast
import importlib
import logging
import os
import posixpath
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "f3rm/design.md": "rooms.md",
    "tools/tinyclip/README.md": "tinyclip_training.md",
}
"""Pages from outside of docs/ -> their place in the site; examples keep their names."""

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)
_VALUE = re.compile(r"\s*\((?:default: (?P<default>.*)|required)\)$", re.DOTALL)

_log = logging.getLogger("mkdocs.hooks.site_pages")  # --strict counts what mkdocs' loggers warn of


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files of ``docs/``."""
    for source, place in PLACES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    for path in [*ROOT.glob("examples/*"), ROOT / "LICENSE"]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, text in {"options": options_page(), **dict(_api_pages())}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrites links between files of the repository to links between pages of the site."""
    site = page.file.src_uri
    source = {place: name for name, place in PLACES.items()}.get(site, f"docs/{site}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if not (ROOT / target).is_file():
            return match[1]
        place = PLACES.get(target, target.removeprefix("docs/"))
        return os.path.relpath(place, posixpath.dirname(site) or ".")

    return _LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Leaves the names of Sphinx's roles out; warns of what a browser would fetch elsewhere."""
    for tag in _FETCHED.findall(output):
        if 'rel="canonical"' not in tag:
            _log.warning("%s fetches from another host: %s", page.file.src_uri, tag)
    return _ROLE.sub("", output)


def options_page() -> str:
    """Returns a page with the options of all commands, from their parsers."""
    cli = importlib.import_module("f3rm.scripts.cli")
    tyro = importlib.import_module("tyro")
    parts = ["# Options of the commands", "`f3rm COMMAND --help` prints the same."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro's, of get_parser
        for name, (where, summary) in cli.COMMANDS.items():
            module, _, attribute = where.partition(":")
            command = getattr(importlib.import_module(module), attribute)
            parts += [f"## f3rm {name}", summary]
            parts += _parser_tables(f"f3rm {name}", tyro.extras.get_parser(command))
    return "\n\n".join(parts) + "\n"


def _parser_tables(name: str, parser: Any) -> Iterator[str]:
    """Yields a table of a parser's options, then those of its subcommands."""
    rows = ["| option | default | |", "|---|---|---|"]
    inner: list[str] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        if isinstance(action.choices, Mapping):
            for word, subparser in action.choices.items():
                inner += [f"### {name} {word}", *_parser_tables(f"{name} {word}", subparser)]
        elif action.dest != "help":
            rows.append(_option_row(action))
    if len(rows) > 2:
        yield "\n".join(rows)
    yield from inner


def _option_row(action: Any) -> str:
    text = " ".join((action.help or "").split())
    value = _VALUE.search(text)
    default = "required"
    if value is not None and value["default"] is not None:
        default = f"`{value['default']}`" if value["default"] else ""
    words = _VALUE.sub("", text).replace("|", r"\|")
    names = ", ".join(action.option_strings) or str(action.metavar)
    kind = f" {action.metavar}" if action.option_strings and action.metavar else ""
    return f"| `{names}{kind}` | {default} | {words} |"


def _api_pages() -> Iterator[tuple[str, str]]:
    """Yields a page for each package that offers names, for mkdocstrings to fill."""
    for path in sorted((ROOT / "f3rm").rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        names = _offered(path)
        if names and package != "f3rm.scripts":  # the commands, which have their own page
            text = "\n\n".join(f"::: {package}.{name}" for name in sorted(names))
            yield package, f"# {package}\n\n{text}\n"


def _offered(path: Path) -> Mapping[str, str]:
    """Returns the names that a package resolves on first use, and their modules."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign([ast.Name("__getattr__")], ast.Call(args=[_, names])):
                return ast.literal_eval(names)
    return {}
