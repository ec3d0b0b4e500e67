"""Reads a run's ``config.yml``, also one that another version of f3rm or Nerfstudio wrote.

An option that is missing there takes its default, as it did when there was no such option. An
option of f3rm that this version does not know is refused: the run may depend on it.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from nerfstudio.engine.trainer import TrainerConfig

from f3rm.errors import F3rmError

CONFIG_FILE = "config.yml"

_UNREADABLE = (OSError, yaml.YAMLError, ImportError, AttributeError, TypeError, ValueError)
"""What reading a configuration raises that is damaged or names classes of another program."""
_SHOWN = 3


class RunError(F3rmError):
    """A run's configuration, checkpoint or dataset cannot be used."""


def config_file(run: Path) -> Path:
    """Returns the ``config.yml`` of a run.

    Args:
        run: The file itself, or the folder that it is in.

    Raises:
        RunError: If the folder has none.
    """
    # A link to the file stands for it: what belongs to the run lies beside the file.
    path = run.expanduser().resolve()
    if not path.is_dir():
        return path
    if (path / CONFIG_FILE).is_file():
        return path / CONFIG_FILE
    deeper = [file for level in range(1, 4) for file in path.glob("*/" * level + CONFIG_FILE)]
    shown = ", ".join(str(file) for file in sorted(deeper)[:_SHOWN])
    found = f"one without {CONFIG_FILE}, but deeper inside {shown}" if shown else "one without it"
    msg = (
        f"load_run: run must be a {CONFIG_FILE} or its folder, got {str(path)!r}, {found}. Give "
        "the file that ns-train wrote beside nerfstudio_models."
    )
    raise RunError(msg)


def read_config(path: Path) -> TrainerConfig:
    """Reads a run's configuration.

    Args:
        path: The file.

    Raises:
        RunError: If it cannot be read, is none of a training, or has options of f3rm that this
            version does not know.
    """
    try:
        # Nerfstudio's runs name Python classes, which only this loader reads; as with ns-eval,
        # open runs that you trust.
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)  # noqa: S506
    except _UNREADABLE as error:
        raise refused(path, f"what cannot be read: {error}") from error
    if not isinstance(config, TrainerConfig):
        raise refused(path, f"a {type(config).__name__}")
    unknown = sorted(name for part in _parts(config) for name in _unknown_options(part))
    if unknown:
        msg = (
            f"load_run: {str(path)!r} must have options that this version of f3rm knows, got "
            f"{', '.join(unknown)}. Another version wrote it: open it with that one, or take these "
            "lines out if the run does not depend on them."
        )
        raise RunError(msg)
    return config


def refused(path: Path, got: str) -> RunError:
    """Returns the error for a file that is no run's configuration."""
    return RunError(
        f"load_run: {str(path)!r} must be the config.yml of a run of f3rm, or of nerfacto "
        f"where one is asked for, got {got}. Give the file that ns-train wrote beside "
        "nerfstudio_models."
    )


def _parts(config: Any) -> Iterator[Any]:
    """Yields a configuration and those inside of it, with what is missing filled in.

    Raises:
        RunError: If what is missing has no default.
    """
    for option in fields(config):
        if not hasattr(config, option.name):
            setattr(config, option.name, _default(option))
    yield config
    for value in vars(config).values():
        if is_dataclass(value) and not isinstance(value, type):
            yield from _parts(value)


def _default(option: Field[Any]) -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    if option.default is not MISSING:
        return option.default
    msg = (
        f"load_run: a run must have the option {option.name}, which has no default, got none. "
        "Open it with the version that wrote it, or train again."
    )
    raise RunError(msg)


def _unknown_options(config: Any) -> list[str]:
    if not type(config).__module__.startswith("f3rm."):
        return []
    known = {option.name for option in fields(config)}
    return [f"{type(config).__name__}.{name}" for name in vars(config) if name not in known]
