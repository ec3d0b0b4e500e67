"""Files from the Hugging Face hub, the local cache first; without a network it is asked once.

Without a network the hub's own clients repeat every request for up to half a minute, and a model
has several files. Call :func:`require_hub` before the first of them.
"""

import contextlib
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import TypeVar

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError

READ_ERRORS = (OSError, ValueError, RuntimeError, TypeError, SafetensorError)
"""Errors of the hub's clients on missing, damaged or unfitting files."""

_PATIENCE_SECONDS = 2.5

Read = TypeVar("Read")


class HubUnreachableError(OSError):
    """The hub does not answer: there is no network, or a proxy or firewall blocks it."""


def require_hub() -> None:
    """Sends the hub one request; waits for at most 2.5 seconds.

    Raises:
        HubUnreachableError: If it does not answer, or ``HF_HUB_OFFLINE`` forbids asking.
    """
    if constants.HF_HUB_OFFLINE:
        msg = "the hub cannot be reached: HF_HUB_OFFLINE is set, and its cache lacks the files"
        raise HubUnreachableError(msg)
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Looking up a name ignores the timeout where the name server is away, hence the thread.
    threading.Thread(target=lambda: answer.put(_ask(constants.ENDPOINT)), daemon=True).start()
    try:
        trouble = answer.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
        trouble = f"no answer in {_PATIENCE_SECONDS} s"
    if trouble:
        msg = (
            f"the hub cannot be reached, this machine seems to be offline ({constants.ENDPOINT}: "
            f"{trouble}), and the hub's cache lacks the files"
        )
        raise HubUnreachableError(msg)


def reason_of(error: Exception) -> str:
    """Returns why fetching failed, as a clause without a final stop."""
    if isinstance(error, HubUnreachableError):
        return str(error)
    return f"the hub cannot be reached or has no such model ({error})"


@contextlib.contextmanager
def cache_only() -> Generator[None]:
    """Lets the hub's clients use the cache and send nothing, for the duration of the block."""
    before = constants.HF_HUB_OFFLINE
    # The clients look this constant up at each call; the environment is read only at import.
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def cache_first(read: Callable[[], Read]) -> Read:
    """Reads a model with a client of the hub: from the cache without a request, else online.

    Args:
        read: Calls the client; called a second time if the cache lacks files.

    Raises:
        HubUnreachableError: If the model is not cached and the hub does not answer.
    """
    # Even for cached files, transformers and diffusers ask the hub whether there are newer ones.
    with contextlib.suppress(*READ_ERRORS), cache_only():
        return read()
    require_hub()
    return read()


def fetch_file(repository: str, names: Sequence[str]) -> Path:
    """Finds the first of several files in a hub repository, downloading it if it is not cached.

    A cached file is used without a request, so that a machine without a network starts at once.

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
    cached = cached_file(repository, names)
    if cached is not None:
        return cached
    require_hub()
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:  # a kind of EntryNotFoundError, but means "no connection"
            raise
        except EntryNotFoundError:
            continue
    msg = f"the hub repository {repository!r} holds none of {', '.join(names)}"
    raise FileNotFoundError(msg)


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """Finds the first of several files of a hub repository in the local cache; sends nothing.

    Raises:
        ValueError: If the repository's name is malformed.
    """
    for name in names:
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def _ask(endpoint: str) -> str:
    """Sends one request; returns why there was no answer, or nothing if there was one."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        # The hub's own client may trust certificates that urllib does not: let it try.
        return "" if isinstance(cause, SSLError) else str(cause) or type(cause).__name__
    return ""
