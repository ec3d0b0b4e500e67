"""The journal of an unfinished cache, ``progress.jsonl``: a line for every finished chunk.

The first line says what is being made; a journal of anything else is not used. A torn last line is
a chunk not done.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from f3rm._types import CacheError
from f3rm.features.manifest import SCHEMA_VERSION, chunk_from_dict
from f3rm.features.records import ChunkRecord

JOURNAL = "progress.jsonl"


class Journal:
    """Reads and extends the journal of one folder."""

    def __init__(self, folder: Path, key: str, *, fresh: bool) -> None:
        """Opens the journal; one that was written for something else is put away.

        Args:
            folder: The cache being made; it exists.
            key: Hash of the specification; chunks of another key are not used.
            fresh: Whether every chunk must be computed anew (``--force``); then only a journal of
                such a run is used.
        """
        self.path = folder / JOURNAL
        lines = self._read()
        header = lines[0] if lines else {}
        same = header.get("schema_version") == SCHEMA_VERSION and header.get("key") == key
        if same and (header.get("fresh") is True or not fresh):
            self._done = {str(line.get("inputs")): line.get("chunk") for line in lines[1:]}
            return
        self._done: dict[str, object] = {}
        self.path.unlink(missing_ok=True)
        self._append({"schema_version": SCHEMA_VERSION, "key": key, "fresh": fresh})

    def find(self, inputs: str) -> ChunkRecord | None:
        """Returns the record of the chunk made from these inputs, or None; its file may be gone."""
        try:
            return chunk_from_dict(self._done.get(inputs))
        except CacheError:
            return None

    def add(self, inputs: str, chunk: ChunkRecord) -> None:
        """Notes a finished chunk, durably.

        Raises:
            CacheError: If the file system refuses.
        """
        self._append({"inputs": inputs, "chunk": asdict(chunk)})

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines: list[dict[str, Any]] = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict):
                break
            lines.append(cast(dict[str, Any], line))
        return lines

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            msg = (
                f"Journal: {str(self.path)!r} must be writable, got: {error}. Make room or pass "
                "--cache-dir, then run again."
            )
            raise CacheError(msg) from error
