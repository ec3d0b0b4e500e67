"""Files from the Hugging Face hub, the local cache first."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError


def fetch_file(repository: str, names: Sequence[str]) -> Path:
    """Finds the first of several files in a hub repository, downloading it if it is not cached.

    A cached file is used as it is: no request is sent, so that a machine without a network starts
    at once.

    Args:
        repository: ``"org/name"``.
        names: File names, the preferred one first.

    Returns:
        The file in the local cache.

    Raises:
        OSError: If the hub cannot be reached (or ``HF_HUB_OFFLINE`` is set), or has no such
            repository or file.
        ValueError: If the repository's name is malformed.
    """
    cached = [try_to_load_from_cache(repository, name) for name in names]
    for path in cached:
        if isinstance(path, str):
            return Path(path)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    msg = f"the hub repository {repository!r} holds none of {', '.join(names)}"
    raise FileNotFoundError(msg)
