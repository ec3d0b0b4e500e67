"""Base of all commands: arguments from a dataclass, one way to log, one way to fail."""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import rich
import tyro
from rich.logging import RichHandler

from f3rm.distribution import silence_other_packages
from f3rm.errors import F3rmError, printable

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""


class Command(ABC):
    """A command: a dataclass whose fields are its arguments.

    Attributes:
        when_interrupted: The message after Ctrl-C.
    """

    when_interrupted: ClassVar[str] = "Stopped."

    @abstractmethod
    def run(self) -> None:
        """Does the work and prints the result.

        Raises:
            F3rmError: If it cannot be done; the message says what to do.
        """


def run_command(
    command: type[Command], arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> int:
    """Parses a command's arguments and runs it.

    Args:
        command: The dataclass of the command.
        arguments: Its command-line words; None takes them from ``sys.argv``.
        prog: Name of the command in help texts.

    Returns:
        0; or 1 after an error of f3rm's own, which is printed without a traceback; or 130 after
        Ctrl-C.
    """
    if arguments is None:  # the console's command, not a call in Python
        silence_other_packages()
    parsed = tyro.cli(command, args=arguments, prog=prog)
    _log_to_console()
    try:
        parsed.run()
    except F3rmError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{parsed.when_interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def say(text: str) -> None:
    """Prints a line; control characters of names in it are escaped."""
    print(printable(text))


class _PrintableFormatter(logging.Formatter):
    """Escapes control characters of names in messages."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def _log_to_console() -> None:
    """Sends messages and progress bars to standard error; other packages only warn.

    Standard output stays clean for results, which may be JSON.
    """
    rich.reconfigure(stderr=True)
    handler = RichHandler(show_time=False, show_path=False)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("f3rm").setLevel(logging.INFO)
