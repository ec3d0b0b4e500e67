"""The journal of an unfinished cache: ``run.json``, and one note per finished chunk.

``progress/run.json`` describes the run; ``progress/chunk_0000.json`` appears, at once and whole,
when that chunk is finished. Workers write with the lock of the feature type held, so that any
number of them, on any number of machines, can keep the journal together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from f3rm.errors import CacheError
from f3rm.extract.plan import ChunkPlan
from f3rm.store.chunks import publish, write_atomically
from f3rm.store.manifest import SCHEMA_VERSION, ChunkRecord, CodecRecord

Record = TypeVar("Record")

PROGRESS = "progress"
"""The journal's folder, inside the folder in which a cache is built."""

CODEC = "codec"
"""Name of the note, and of the lock, of a run's codec."""

_RUN = "run"


@dataclass(frozen=True)
class Run:
    """One extraction into one cache folder, which any number of workers may share.

    Attributes:
        key: Hash of the specification.
        plan: Hash of which images are in which chunk.
        fresh: Whether chunks of an older cache must not be used (``--force``).
        chunks: Names of the images of every chunk.
        schema_version: Version of the files.
    """

    key: str
    plan: str
    fresh: bool
    chunks: tuple[tuple[str, ...], ...]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(cls, key: str, plans: Sequence[ChunkPlan], *, fresh: bool) -> "Run":
        """Describes the run that makes these chunks."""
        text = "\n".join(f"{plan.file} {plan.inputs}" for plan in plans)
        names = tuple(tuple(info.item.name for info in plan.images) for plan in plans)
        return cls(key, xxhash.xxh3_128(text.encode()).hexdigest(), fresh, names)

    def satisfies(self, wanted: "Run") -> bool:
        """Returns whether a worker that wants ``wanted`` can join this run."""
        return self.plan == wanted.plan and self.can_supply(wanted)

    def can_supply(self, wanted: "Run") -> bool:
        """Returns whether finished chunks of this run may be reused in ``wanted``."""
        return self.key == wanted.key and (self.fresh or not wanted.fresh)


@dataclass(frozen=True)
class _Note:
    inputs: str
    chunk: ChunkRecord


class Journal:
    """Reads and extends the journal in one folder.

    Attributes:
        folder: The journal's own folder, which also holds the files that workers lock.
    """

    def __init__(self, building: Path) -> None:
        """Remembers the folder in which a cache is built; reads and writes nothing."""
        self.folder = building / PROGRESS

    def begin(self, run: Run) -> None:
        """Writes ``run.json``, which makes a run visible to other workers.

        Raises:
            CacheError: If the file system refuses.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._write(f"{_RUN}.json", run)

    def run(self) -> Run | None:
        """Returns the run; None if there is none, or another version of f3rm began it."""
        run = self._read(_RUN, Run)
        return run if run and run.schema_version == SCHEMA_VERSION else None

    def draft(self, inputs: str, chunk: ChunkRecord, worker: str) -> Path:
        """Writes the note of a chunk under a name of the worker's; :meth:`add` makes it count.

        Raises:
            CacheError: If the file system refuses.
        """
        name = f"{Path(chunk.file).stem}.{worker}.draft"
        return self._write(name, _Note(inputs, chunk))

    def add(self, draft: Path) -> None:
        """Records the finished chunk of a note; a power failure may cost those of some seconds.

        Raises:
            CacheError: If the file system refuses.
        """
        publish(draft, draft.with_name(f"{draft.name.split('.')[0]}.json"), sync=False)

    def find(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Returns the record of a planned chunk if its note says that it is finished."""
        note = self._read(Path(plan.file).stem, _Note)
        # The inputs are compared too: another run may have cut its chunks differently.
        found = note and (note.inputs, note.chunk.file) == (plan.inputs, plan.file)
        return note.chunk if note and found else None

    def notes(self) -> Iterator[tuple[str, ChunkRecord]]:
        """Yields inputs and record of every finished chunk; unreadable notes do not count."""
        for path in sorted(self.folder.glob("chunk_*.json")):
            if note := self._read(path.stem, _Note):
                yield note.inputs, note.chunk

    def codec(self) -> CodecRecord | None:
        """Returns the codec of the run; None before one is recorded."""
        return self._read(CODEC, CodecRecord)

    def add_codec(self, record: CodecRecord) -> None:
        """Records the codec for all workers of the run, durably.

        Raises:
            CacheError: If the file system refuses.
        """
        self._write(f"{CODEC}.json", record)

    def _read(self, name: str, kind: type[Record]) -> Record | None:
        try:
            return msgspec.json.decode((self.folder / f"{name}.json").read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def _write(self, name: str, record: Run | _Note | CodecRecord) -> Path:
        content, path = msgspec.json.encode(record), self.folder / name
        write_atomically(path, lambda stream: stream.write(content))
        return path


def unwritable(path: Path, error: OSError) -> CacheError:
    """Returns the error about a file that cannot be written."""
    return CacheError(
        f"Cannot write {str(path)!r}: {error}. Make room, or pass --cache-dir with another folder, "
        "then run again."
    )
