"""Typed access to the fields of untrusted JSON: a value of the right type, or an error.

Readers of the manifest and the journal turn :class:`InvalidFieldError` into an error that names the
file.
"""

from collections.abc import Mapping
from typing import Any, cast

from f3rm.errors import printable
from f3rm.store.items import is_unicode

_LARGEST = 2**48

Plain = Mapping[str, Any]
"""A JSON object."""


class InvalidFieldError(Exception):
    """A field is missing, or has the wrong type or value; the message is a clause."""


def mapping(value: object, what: str) -> Plain:
    """Returns ``value`` if it is an object.

    Raises:
        InvalidFieldError: If it is not.
    """
    if not isinstance(value, dict):
        raise InvalidFieldError(f"{what} is missing or no object")
    return cast(Plain, value)


def items_of(plain: Plain, key: str) -> list[Any]:
    """Returns the list under ``key``.

    Raises:
        InvalidFieldError: If there is none.
    """
    value = plain.get(key)
    if not isinstance(value, list):
        raise InvalidFieldError(f"{key} is missing or no list")
    return cast(list[Any], value)


def text(plain: Plain, key: str) -> str:
    """Returns the text under ``key``.

    Raises:
        InvalidFieldError: If there is none.
    """
    value = plain.get(key)
    if not isinstance(value, str) or not is_unicode(value):
        raise InvalidFieldError(f"{key} is missing or no text")
    return value


def texts(plain: Plain, key: str) -> dict[str, str]:
    """Returns the object under ``key``, whose values are all texts.

    Raises:
        InvalidFieldError: If there is none, or a value is no text.
    """
    record = mapping(plain.get(key), key)
    return {name: text(record, name) for name in record}


def one_of(plain: Plain, key: str, allowed: tuple[str, ...]) -> str:
    """Returns the text under ``key``, one of ``allowed``.

    Raises:
        InvalidFieldError: If it is none of these.
    """
    value = text(plain, key)
    if value not in allowed:
        raise InvalidFieldError(f"{key} is {shown(value)!r}, not one of {', '.join(allowed)}")
    return value


def boolean(plain: Plain, key: str) -> bool:
    """Returns the boolean under ``key``.

    Raises:
        InvalidFieldError: If there is none.
    """
    value = plain.get(key)
    if not isinstance(value, bool):
        raise InvalidFieldError(f"{key} is {shown(value)}, not true or false")
    return value


def integer(plain: Plain, key: str) -> int:
    """Returns the whole number under ``key``, at least 0.

    Raises:
        InvalidFieldError: If there is none, or it is out of bounds.
    """
    return bounded(plain.get(key), key, 0)


def bounded(value: object, key: str, low: int, high: int = _LARGEST) -> int:
    """Returns ``value`` if it is a whole number with ``low <= value < high``.

    Raises:
        InvalidFieldError: If it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
        raise InvalidFieldError(f"{key} is {shown(value)}, not a whole number from {low}")
    return value


def number(value: object, key: str) -> float:
    """Returns ``value`` if it is a finite number of reasonable magnitude.

    Raises:
        InvalidFieldError: If it is not.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        raise InvalidFieldError(f"{key} is {shown(value)}, not a number")
    return float(value)


def numbers(plain: Plain, key: str, count: int) -> list[float]:
    """Returns the ``count`` numbers under ``key``.

    Raises:
        InvalidFieldError: If there are more or fewer, or one is no number.
    """
    values = [number(value, key) for value in items_of(plain, key)]
    if len(values) != count:
        raise InvalidFieldError(f"{key} has {len(values)} numbers, not {count}")
    return values


def shown(value: object) -> str:
    """Returns the beginning of a value for a message; of a list or object only its kind.

    Args:
        value: Anything that JSON can hold; the text of a deeply nested list may be without end.
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return printable(value[:40] if isinstance(value, str) else repr(value)[:40])
