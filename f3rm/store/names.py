"""Safe output paths for names that come from a dataset, a list or a manifest.

A file may be read from such a name: datasets may use photographs outside their folder, as
Nerfstudio's do. But whatever is written under a name goes below the folder that the user gave:

- ``..``, drive letters and the leading slash of an absolute path are dropped, and a backslash
  separates like a slash: ``../images/a.jpg`` and ``C:/images/a.jpg`` become ``images/a.jpg``;
- control characters, and those that Windows forbids, become ``_``;
- a part of more than 200 bytes is cut and gets a hash of the whole part;
- two names that give one path are refused, and so is a name of which nothing is left;
- a link in the output folder that leads out of it is refused.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import xxhash

from f3rm.errors import F3rmError

_DRIVE = re.compile(r"^[A-Za-z]:")
_FORBIDDEN = frozenset('<>:"|?*\\/')
_LONGEST_PART = 200
"""In bytes: file systems allow 255, and temporary files have a longer name."""


class UnsafeNameError(F3rmError):
    """A name gives no safe output path."""


def safe_part(text: str) -> str:
    """Turns any text into one part of a path: a file name without folders."""
    plain = "".join(
        letter if letter.isprintable() and letter not in _FORBIDDEN else "_" for letter in text
    )
    plain = plain.strip().rstrip(".") if plain.strip(". ") else "_"
    encoded = plain.encode()
    if len(encoded) <= _LONGEST_PART:
        return plain
    digest = xxhash.xxh3_64(encoded).hexdigest()
    return f"{encoded[: _LONGEST_PART - 17].decode(errors='ignore')}-{digest}"


def safe_path(name: str) -> PurePosixPath:
    """Returns the relative output path of a named image or video.

    Args:
        name: Its path in the dataset or list.

    Raises:
        UnsafeNameError: If nothing is left of the name.
    """
    parts = re.split(r"[/\\]", _DRIVE.sub("", name, count=1))
    kept = [part for part in parts if part.strip(". ")]
    if not kept:
        raise UnsafeNameError(
            f"A name must have a part other than '.' and '..', got {name!r}. Rename it."
        )
    return PurePosixPath(*(safe_part(part) for part in kept))


def safe_paths(names: Iterable[str]) -> dict[str, PurePosixPath]:
    """Returns the relative output path of every name, each given once.

    Raises:
        UnsafeNameError: If two give the same path, or nothing is left of one.
    """
    paths: dict[str, PurePosixPath] = {}
    owners: dict[PurePosixPath, str] = {}
    for name in names:
        path = safe_path(name)
        other = owners.setdefault(path, name)
        if other != name:
            raise UnsafeNameError(
                f"Names must give different files, but {other!r} and {name!r} both give "
                f"{str(path)!r}. Rename one."
            )
        paths[name] = path
    return paths


def place_below(folder: Path, relative: PurePosixPath) -> Path:
    """Returns a file's path in an output folder after checking that no link leads out of it.

    Args:
        folder: The output folder; it need not exist, and may itself be a link.
        relative: A path of :func:`safe_path`.

    Raises:
        UnsafeNameError: If a folder on the way is a link that leads elsewhere.
    """
    path = folder / relative
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UnsafeNameError(
            f"{str(path)!r} must be inside {str(folder)!r}, but a link on the way leads out of it. "
            "Remove the link, or choose another folder."
        )
    return path
