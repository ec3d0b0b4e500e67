"""A shell for the pages: each command in a process of its own, forked from one that has imported.

``python -m tests.docs.shell CONFIGS`` reads one request per line, a JSON object, and answers each
with the forked process's id and, once it has ended, its exit code. Commands are the installed ones
(console scripts) with the words of the page. What is downloaded elsewhere is small here: the
environment's HF_HOME holds little checkpoints under the hub's names, and CLIP's architecture of
that name, the feature types' image sides and the model of colours are set before forking.
"""

import argparse
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast
from unittest import mock

from _pytest.config import parse_warning_filter

PARSED = 77
"""Exit code of a command whose words were read by its own parser, and that did no more."""

FILTERS = "DOCS_WARNING_FILTERS"
SIDE = 56
_SHOWN = 6000
_LIMIT = 600.0
"""Seconds that a command may take."""
_ROOMS = ("backbones", "colours", "extract", "language", "recipes", "scene", "store")
_CHECKED = [f"f3rm.{room}" for room in _ROOMS]
"""Where shapes are checked as in the other tests; Nerfstudio's configurations pass 0 for 0.0."""
_TOOLS = (
    "nerfstudio.scripts.train",
    "nerfstudio.scripts.eval",
    "nerfstudio.scripts.render",
    "nerfstudio.scripts.exporter",
    "nerfstudio.scripts.viewer.run_viewer",
    "f3rm.scripts.attach",
    "f3rm.scripts.eval",
    "f3rm.scripts.export",
    "f3rm.scripts.extract",
    "f3rm.scripts.find",
    "f3rm.scripts.label",
    "f3rm.scripts.render",
    "f3rm.scripts.view",
)


class Shell:
    """Runs commands and Python examples of the pages.

    Args:
        environment: The environment of all of them.
        configs: Folder of open_clip's model configurations that replace the large ones.
        log: File that holds what the last of them printed.
    """

    def __init__(self, environment: dict[str, str], configs: Path, log: Path) -> None:
        self.log = log
        self.pid = 0
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.docs.shell", str(configs)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def start(self, folder: Path, **request: Any) -> None:
        """Starts ``words=[...]`` (with ``parse=True``: reads its words only) or ``code="..."``."""
        assert self._server.stdin is not None
        request |= {"folder": str(folder), "log": str(self.log)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        self.pid = self._answer()

    def wait(self) -> int:
        """Returns the exit code of what was started; what does not end is killed."""
        deadline = threading.Timer(_LIMIT, os.kill, (self.pid, signal.SIGKILL))
        deadline.start()
        try:
            return self._answer()
        finally:
            deadline.cancel()

    def run(self, folder: Path, **request: Any) -> int:
        """Starts a command and returns its exit code."""
        self.start(folder, **request)
        return self.wait()

    def interrupt(self) -> None:
        """Presses Ctrl-C."""
        os.kill(self.pid, signal.SIGINT)

    def said(self) -> str:
        """Returns the end of what was printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_SHOWN:]

    def close(self) -> None:
        """Ends the process that commands are forked from."""
        self._server.communicate()

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def serve(configs: str) -> None:
    """Imports, then answers requests until the input ends."""
    _prepare(configs)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed here must not be taken for an answer
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _prepare(configs: str) -> None:
    hook = importlib.import_module("jaxtyping").install_import_hook
    hook(_CHECKED, "beartype.beartype")
    for name in _TOOLS:
        importlib.import_module(name)
    importlib.import_module("open_clip").add_model_config(Path(configs))
    spec = importlib.import_module("f3rm.store.spec")
    registry = importlib.import_module("f3rm.backbones.registry")
    colours = importlib.import_module("tests.viewer.colour_backbone")
    for name, preset in spec.PRESETS.items():
        spec.PRESETS[name] = replace(preset, prep=replace(preset.prep, size=SIDE))
    spec.PRESETS.update(colours.SPECS)
    registry._SHIPPED.update(colours.ADAPTERS)


def _child(request: dict[str, Any]) -> None:
    """Does what is asked and ends this process."""
    code = 1
    # What a script starts in the background ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.chdir(request["folder"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = _example(request["code"]) if "code" in request else _command(**request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001 - the parent reads it in the log
        traceback.print_exc()
    finally:  # whatever it was: the parent's tests must not go on in this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _example(code: str) -> int:
    warnings.resetwarnings()
    for line in json.loads(os.environ[FILTERS]):
        warnings.filterwarnings(*parse_warning_filter(line, escape=False))
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    return 0


def _command(words: Sequence[str], *, parse: bool = False, **_: str) -> int:
    if parse:
        _stop_after_parsing()
    sys.argv = [*words]
    if words[0] == "python":
        sys.argv = [*words[1:]]
        if words[1] == "-m":
            sys.argv = [*words[2:]]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[1]).parent))
            runpy.run_path(words[1], run_name="__main__")
        return 0
    if words[0] == "pip":
        command = importlib.import_module("pip._internal.commands").create_command(words[1])
        command.parse_args([*words[2:]])
        return PARSED
    scripts = entry_points(group="console_scripts", name=words[0])
    if not scripts:
        return subprocess.call(words)
    call = next(iter(scripts)).load()
    if words[:2] == ["ns-train", "nerfacto"]:  # plain Nerfacto fetches LPIPS when it is built
        with importlib.import_module("f3rm.compat").lazy_lpips():
            return cast("int", call() or 0)
    return cast("int", call() or 0)


def _stop_after_parsing() -> None:
    """Makes tyro and argparse end the process where the program would begin its work."""
    tyro = importlib.import_module("tyro")
    read, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def cli(*arguments: Any, **options: Any) -> Any:
        read(*arguments, **options)
        raise SystemExit(PARSED)

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        parse_args(self, args, namespace)
        raise SystemExit(PARSED)

    mock.patch.object(tyro, "cli", cli).start()
    mock.patch.object(argparse.ArgumentParser, "parse_args", parse).start()


if __name__ == "__main__":
    serve(sys.argv[1])
