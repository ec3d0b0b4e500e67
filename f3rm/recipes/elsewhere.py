"""Calls that were written for another machine: a GPU that is not here, files at an address."""

import importlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from f3rm.errors import F3rmError, StrPath

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
_CLIENT = ("endpoint_url", "region_name")


class RemoteError(F3rmError):
    """A file at an address cannot be copied."""


def present_device(device: str) -> str:
    """Returns the device, or the CPU with a warning if it is a GPU and this machine has none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %s: there is no GPU here, so the CPU computes.", device)
        return "cpu"
    return device


def is_address(path: StrPath) -> bool:
    """Returns whether a path is an address such as ``s3://bucket/clip.mp4``."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def fetch(address: str, folder: Path, credentials: StrPath = "") -> Path:
    """Copies a file or a folder to this machine.

    Args:
        address: Such as ``s3://bucket/clip.mp4``; fsspec's package for the scheme (``s3fs``) must
            be installed.
        folder: Folder of the copy; made if need be.
        credentials: JSON with the keys of S3; empty for the environment's.

    Returns:
        The copy.

    Raises:
        RemoteError: If a package is missing, or the address or the credentials cannot be read.
    """
    copy = folder / address.rstrip("/").rpartition("/")[2]
    try:
        options = _options(credentials) if credentials and address.startswith("s3://") else {}
        files, place = importlib.import_module("fsspec.core").url_to_fs(address, **options)
        if not files.exists(place):
            raise RemoteError(f"There is nothing at {address!r}. Check the address.")
        folder.mkdir(parents=True, exist_ok=True)
        files.get(place, str(copy), recursive=files.isdir(place))
    except (ImportError, OSError, ValueError) as error:
        raise RemoteError(
            f"{address!r} cannot be copied: {error}. Install fsspec's package for it (s3fs for "
            "s3://), check the credentials, or copy it by hand."
        ) from error
    return copy


def _options(credentials: StrPath) -> dict[str, Any]:
    """Returns the credentials of a JSON file in the words of s3fs."""
    plain = json.loads(Path(credentials).read_text(encoding="utf-8"))
    if not isinstance(plain, dict):
        raise ValueError(f"{str(credentials)!r} must hold a JSON object")
    client = {name: plain[name] for name in _CLIENT if plain.get(name)}
    return {ours: plain[name] for name, ours in _KEYS.items() if name in plain} | {
        "client_kwargs": client
    }
