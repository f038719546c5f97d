"""JSON of anybody's: bounded before and after it is parsed, and read field by field.

Each function raises ValueError with a sentence that says which field is wrong.
What a value is never goes into it at full length.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

#: An honest manifest nests 5 deep. The decoder itself gives up at about 1,000.
DEPTH_MAX: Final = 32
#: Each costs some 100 bytes of memory, and two bytes of JSON. 500 layers have some 10,000.
VALUES_MAX: Final = 200_000

_SHOWN: Final = 60


def parse_object(data: bytes, what: str, *, max_bytes: int) -> dict[str, Any]:
    """Return a JSON object.

    Args:
        data: The text, in UTF-8.
        what: What it is, for the error.
        max_bytes: The most that it may be.

    Raises:
        ValueError: It is too large, too deep, not JSON, or not an object.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{what} has more than {max_bytes} bytes")
    # Counted in strings as well, which no honest document has so many of.
    if sum(map(data.count, (b",", b"[", b"{"))) > VALUES_MAX:
        raise ValueError(f"{what} has more than {VALUES_MAX} values")
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"{what} is nested more than {DEPTH_MAX} deep") from None
    except ValueError as exc:
        raise ValueError(f"{what} is not JSON: {str(exc)[:_SHOWN]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    _check_depth(value, what)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_depth(value: object, what: str) -> None:
    level: list[object] = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"{what} is nested more than {DEPTH_MAX} deep")


def take_text(parent: dict[str, Any], name: str, *, max_length: int = 4096) -> str:
    """Return a text; empty if it is missing or null.

    Raises:
        ValueError: It is no text, too long, or not fit for a system call.
    """
    value = parent.get(name)
    return "" if value is None else check_text(value, name, max_length=max_length)


def check_text(value: object, name: str, *, max_length: int = 4096) -> str:
    """Return a value that is a text without NUL, and with nothing that UTF-8 cannot have.

    Raises:
        ValueError: It is none, or too long.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {_show(value)}, and not a text")
    if len(value) > max_length:
        raise ValueError(f"{name!r} has more than {max_length} characters")
    if "\0" in value:
        raise ValueError(f"{name!r} has a NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} has half of a surrogate pair") from None
    return value


def take_object(parent: dict[str, Any], name: str, *, max_entries: int) -> dict[str, Any]:
    """Return an object; empty if it is missing or null.

    Raises:
        ValueError: It is no object, or has too many entries.
    """
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is {_show(value)}, and not an object")
    if len(value) > max_entries:
        raise ValueError(f"{name!r} has more than {max_entries} entries")
    return value


def take_list(parent: dict[str, Any], name: str, *, max_entries: int) -> list[Any]:
    """Return a list; empty if it is missing or null.

    Raises:
        ValueError: It is no list, or has too many entries.
    """
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is {_show(value)}, and not a list")
    if len(value) > max_entries:
        raise ValueError(f"{name!r} has more than {max_entries} entries")
    return value


def take_texts(
    parent: dict[str, Any], name: str, *, max_entries: int, max_length: int = 4096
) -> tuple[str, ...]:
    """Return a list of texts; empty if it is missing or null.

    Raises:
        ValueError: It is none, or too long.
    """
    found = take_list(parent, name, max_entries=max_entries)
    return tuple(check_text(text, name, max_length=max_length) for text in found)


def _show(value: object) -> str:
    # Not repr() of the whole: a list may have 200,000 entries.
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
