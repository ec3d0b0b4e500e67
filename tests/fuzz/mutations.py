"""Documents that are nearly valid: plain values, texts and bytes, changed here and there.

Everything depends on the random generator that is passed in, so that a case can be made again.
"""

import copy
import json
import random
from typing import Any

Place = tuple[Any, Any]
"""A list or object, and an index or key in it."""

TEXTS = (
    "",
    ".",
    "..",
    "../../evil",
    "/etc/passwd",
    "/dev/zero",
    "C:\\evil",
    "a\0b",
    "\x1b[2J\x1b]0;evil\x07",
    "two\nlines",
    "\u202eevil",
    "\ud800",
    "x" * 5000,
    "é" * 300,
    "{0.__class__}",
    "%s%n",
    "nan",
    "[" * 500,
    "chunk_0001.npy",
    "codec_mean.npy",
    "int8",
    "float32",
    "final",
    "pca99999",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    255,
    2**31,
    2**48 - 1,
    2**48,
    2**63,
    -(2**63),
    10**40,
    0.5,
    -0.5,
    1e-300,
    1e300,
    float("inf"),
    float("nan"),
)
OTHERS = (None, True, False, [], {}, [[]], {"a": 1}, [0], [1, 2], [""])


def odd_value(rng: random.Random) -> Any:
    """Returns a value that nobody expects."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice(NUMBERS)
    return deep(rng.choice((20, 300)), rng) if rng.random() < 0.1 else copy.copy(rng.choice(OTHERS))


def deep(levels: int, rng: random.Random) -> Any:
    """Returns lists or objects in one another."""
    value: Any = 0
    for _ in range(levels):
        value = [value] if rng.random() < 0.5 else {"deep": value}
    return value


def mutated(plain: Any, rng: random.Random) -> Any:
    """Returns a copy of a JSON value with one to four changes."""
    plain = copy.deepcopy(plain)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        places = list(_places(plain))
        if not places:
            return odd_value(rng)
        _change(*rng.choice(places), places, rng)
    return plain


def _places(value: Any) -> list[Place]:
    found: list[Place] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else list(range(len(one)))
            found += [(one, key) for key in keys]
            waiting += [one[key] for key in keys]
    return found


def _change(owner: Any, key: Any, places: list[Place], rng: random.Random) -> None:
    value = owner[key]
    kind = rng.randrange(9)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(value))
    elif kind == 1:
        owner[rng.choice(TEXTS)] = odd_value(rng)
    elif kind == 2:
        other, name = rng.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            owner[key] = copy.deepcopy(other[name])
    elif kind == 3:
        owner[key] = [value]
    elif kind in (4, 5) and isinstance(value, int | float) and not isinstance(value, bool):
        owner[key] = rng.choice((value + 1, value - 1, -value, value * 2, value / 2, str(value)))
    elif kind in (4, 5) and isinstance(value, str):
        owner[key] = edited(value, rng)
    else:
        owner[key] = odd_value(rng)


def edited(text: str, rng: random.Random) -> str:
    """Returns a text with a piece put in, taken out or doubled."""
    start, stop = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    piece = rng.choice((rng.choice(TEXTS), chr(rng.randrange(256)), text[start:stop] * 2, ""))
    return text[:start] + piece + text[stop if rng.random() < 0.5 else start :]


def spoiled(content: bytes, rng: random.Random) -> bytes:
    """Returns bytes that are cut off, longer, or flipped and overwritten in places."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(min(len(changed), 200) if rng.random() < 0.7 else len(changed) or 1)
        kind = rng.randrange(6)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed += rng.randbytes(rng.choice((1, 8, 4096)))
        elif kind == 2:
            changed[place : place + 4] = rng.randbytes(4)
        elif kind == 3:
            changed[place:place] = rng.choice((b"9" * 12, b"-", b"(", b"'O'", b"\0", b"L"))
        elif changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        if not changed:
            return b""
    return bytes(changed)


def written(plain: Any) -> bytes:
    """Returns a JSON text as hostile software would write it: NaN and halves of letters stay."""
    return json.dumps(plain).encode()


def changed_json(plain: Any, rng: random.Random) -> bytes:
    """Returns a document with changed values; one in ten has its bytes spoiled instead."""
    if rng.random() < 0.1:
        return spoiled(written(plain), rng)
    return written(mutated(plain, rng))
