"""The journal of an unfinished cache: a folder with what is being made and a note per chunk done.

``progress/run.json`` says what is being made; ``progress/chunk_0000.json`` appears, at once and
whole, when that chunk is. Each file has one writer, so that any number of workers on any number of
machines can keep the journal together.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import xxhash

from f3rm.errors import CacheError
from f3rm.extract.plan import ChunkPlan
from f3rm.store import json_fields as fields
from f3rm.store.chunks import write_atomically
from f3rm.store.manifest import SCHEMA_VERSION
from f3rm.store.records import ChunkRecord, chunk_of

PROGRESS = "progress"
_RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """What is being made.

    Attributes:
        key: Hash of the specification.
        plan: Hash of which images are in which chunk.
        fresh: Whether no chunk of an older cache may be used (``--force``).
        chunks: Names of the images of every chunk.
        token: Tells this run from another of the same task.
    """

    key: str
    plan: str
    fresh: bool
    chunks: tuple[tuple[str, ...], ...]
    token: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)

    @classmethod
    def of(cls, key: str, plans: Sequence[ChunkPlan], *, fresh: bool) -> "Run":
        """Describes the run that makes these chunks."""
        text = "\n".join(f"{plan.file} {plan.inputs}" for plan in plans)
        names = tuple(tuple(info.item.name for info in plan.images) for plan in plans)
        return cls(key, xxhash.xxh3_128(text.encode()).hexdigest(), fresh, names)

    def serves(self, wanted: "Run") -> bool:
        """Returns whether taking part in this run gives what is wanted."""
        same = (self.key, self.plan) == (wanted.key, wanted.plan)
        return same and (self.fresh or not wanted.fresh)

    def feeds(self, wanted: "Run") -> bool:
        """Returns whether chunks of this run may be used in another."""
        return self.key == wanted.key and (self.fresh or not wanted.fresh)


class Journal:
    """Reads and extends the journal in one folder.

    Attributes:
        folder: The journal's own folder, which workers and claims share.
    """

    def __init__(self, building: Path) -> None:
        """Looks into the folder in which a cache is being built; writes nothing."""
        self.folder = building / PROGRESS

    def begin(self, run: Run) -> None:
        """Writes down what is being made.

        Raises:
            CacheError: If the file system refuses.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = (
                f"Journal: {str(self.folder)!r} must be writable, got: {error}. Pass --cache-dir "
                "with a folder that is."
            )
            raise CacheError(msg) from error
        self._write(_RUN, {"schema_version": SCHEMA_VERSION, **asdict(run)})

    def run(self) -> Run | None:
        """Returns what is being made; None if that is unknown or was begun by another f3rm."""
        plain = _read(self.folder / _RUN)
        try:
            if fields.integer(plain, "schema_version") != SCHEMA_VERSION:
                return None
            chunks = fields.items_of(plain, "chunks")
            if not all(_is_texts(names) for names in chunks):
                return None
            return Run(
                key=fields.text(plain, "key"),
                plan=fields.text(plain, "plan"),
                fresh=fields.boolean(plain, "fresh"),
                chunks=tuple(tuple(names) for names in chunks),
                token=fields.text(plain, "token"),
            )
        except fields.InvalidFieldError:
            return None

    def add(self, inputs: str, chunk: ChunkRecord) -> None:
        """Notes a finished chunk, durably.

        Raises:
            CacheError: If the file system refuses.
        """
        self._write(_note(chunk.file), {"inputs": inputs, "chunk": asdict(chunk)})

    def find(self, plan: ChunkPlan) -> ChunkRecord | None:
        """Returns the record of a planned chunk if its note says that it is done."""
        note = _parse(_read(self.folder / _note(plan.file)))
        return note[1] if note and (note[0], note[1].file) == (plan.inputs, plan.file) else None

    def notes(self) -> Iterator[tuple[str, ChunkRecord]]:
        """Yields inputs and record of every chunk noted; a torn note is a chunk not done."""
        for path in sorted(self.folder.glob("chunk_*.json")):
            if note := _parse(_read(path)):
                yield note

    def other(self, name: str) -> str:
        """Returns the text of a note about something else than a chunk; empty if there is none."""
        try:
            return (self.folder / f"{name}.json").read_text(encoding="utf-8")
        except OSError:
            return ""

    def add_other(self, name: str, plain: dict[str, object]) -> None:
        """Notes something else than a chunk, durably.

        Raises:
            CacheError: If the file system refuses.
        """
        self._write(f"{name}.json", plain)

    def _write(self, name: str, plain: dict[str, object]) -> None:
        text = json.dumps(plain, ensure_ascii=False).encode()
        write_atomically(self.folder / name, lambda stream: stream.write(text))


def _note(file: str) -> str:
    return f"{Path(file).stem}.json"


def _read(path: Path) -> fields.Plain:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(fields.Plain, plain) if isinstance(plain, dict) else {}


def _parse(plain: fields.Plain) -> tuple[str, ChunkRecord] | None:
    try:
        return fields.text(plain, "inputs"), chunk_of(plain.get("chunk"))
    except fields.InvalidFieldError:
        return None


def _is_texts(names: object) -> bool:
    return isinstance(names, list) and all(
        isinstance(name, str) for name in cast(list[object], names)
    )
