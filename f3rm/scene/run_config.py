"""Reads a run's ``config.yml``, also one that another version of f3rm or Nerfstudio wrote.

A missing option takes its default, which is how the run was trained before the option existed. An
option of f3rm that this version does not have is refused: the run may depend on it.
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
"""Errors of a damaged configuration, or one that names classes of another program."""
_SHOWN = 3


class RunError(F3rmError):
    """A run's configuration, checkpoint or dataset cannot be used."""


def config_file(run: Path) -> Path:
    """Returns the ``config.yml`` of a run.

    Args:
        run: The file itself, or its folder.

    Raises:
        RunError: If the folder has none.
    """
    # Links are resolved: the checkpoint is beside the file, not beside a link to it.
    path = run.expanduser().resolve()
    if not path.is_dir():
        return path
    if (path / CONFIG_FILE).is_file():
        return path / CONFIG_FILE
    deeper = [file for level in range(1, 4) for file in path.glob("*/" * level + CONFIG_FILE)]
    shown = ", ".join(str(file) for file in sorted(deeper)[:_SHOWN])
    hint = f" Deeper inside are {shown}." if shown else ""
    msg = (
        f"There is no {CONFIG_FILE} in {str(path)!r}.{hint} Give the file that ns-train wrote "
        "beside nerfstudio_models, or its folder."
    )
    raise RunError(msg)


def read_config(path: Path) -> TrainerConfig:
    """Reads a run's configuration.

    Args:
        path: The file.

    Raises:
        RunError: If it cannot be read, is no configuration of a run, or has options of f3rm that
            this version does not have.
    """
    try:
        # Nerfstudio's runs name Python classes, which only this loader reads. It can execute code:
        # as with ns-eval, open only runs that you trust.
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)  # noqa: S506
    except FileNotFoundError as error:
        raise RunError(f"No such file: {str(path)!r}.") from error
    except _UNREADABLE as error:
        raise not_a_run(path, f"it cannot be read: {error}") from error
    if not isinstance(config, TrainerConfig):
        raise not_a_run(path, f"it holds a {type(config).__name__}")
    unknown = sorted(name for part in _parts(config) for name in _unknown_options(part))
    if unknown:
        msg = (
            f"{str(path)!r} has options that this version of f3rm does not have: "
            f"{', '.join(unknown)}. Another version wrote it: open it with that one, or remove "
            "these lines if the run does not depend on them."
        )
        raise RunError(msg)
    return config


def not_a_run(path: Path, reason: str) -> RunError:
    """Returns the error for a file that is no configuration of a run that can be opened."""
    return RunError(
        f"{str(path)!r} is not the {CONFIG_FILE} of a run of f3rm (or nerfacto, where the command "
        f"takes one): {reason}. Give the file that ns-train wrote beside nerfstudio_models."
    )


def _parts(config: Any) -> Iterator[Any]:
    """Yields a configuration and those inside of it, after setting missing options.

    Raises:
        RunError: If a missing option has no default.
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
        f"The run's {CONFIG_FILE} lacks the option {option.name}, which has no default. Open it "
        "with the version that wrote it, or train again."
    )
    raise RunError(msg)


def _unknown_options(config: Any) -> list[str]:
    if not type(config).__module__.startswith("f3rm."):
        return []
    known = {option.name for option in fields(config)}
    return [f"{type(config).__name__}.{name}" for name in vars(config) if name not in known]
