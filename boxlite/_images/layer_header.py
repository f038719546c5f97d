"""One header of a tar: the fields that every format has, at the same places.

Sources: POSIX.1-2024, pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar
Format".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .layer_extended import decimal
from .layer_limits import LayerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE_MAX: Final = (1 << 63) - 1
_ID_MAX: Final = (1 << 32) - 2  # -1 means "leave it" to chown(2).
_DEVICE_MAX: Final = (1 << 12) - 1, (1 << 20) - 1  # As Linux has them.


def old_pieces(block: bytes, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of data in one of GNU's old maps of holes, at most so many."""
    for place in range(at, at + 24 * count, 24):
        if not block[place]:
            return
        yield (
            number_at(block, place, 12, "map of holes"),
            number_at(block, place + 12, 12, "map of holes"),
        )


def name_of(block: bytes) -> bytes:
    """Return the name in a header."""
    name = block[:100].partition(b"\0")[0]
    # GNU's magic ends with spaces: it has other things where ustar has the prefix.
    if block[257:263] != b"ustar\0":
        return name
    # Joerg Schilling's star says so at the end, and its prefix is shorter.
    prefix = block[345 : 476 if block[508:512] == b"tar\0" else 500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def has_checksum(block: bytes) -> bool:
    """Tell whether a header is whole."""
    try:
        given = number_at(block, 148, 8, "checksum")
    except LayerError:
        return False
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * ord(" ")
    # Some old tars added them up as signed.
    return given == unsigned or given == unsigned - 256 * sum(byte > 127 for byte in rest)


def number_at(
    block: bytes, at: int, size: int, what: str, high: int = _SIZE_MAX, *, negative: bool = False
) -> int:
    """Return a number of a header.

    Raises:
        LayerError: It is none, or none that is allowed.
    """
    field = block[at : at + size]
    if field[0] & 0x80:  # GNU: the rest is a number in base 256, with its sign.
        bits = 8 * size - 1
        number = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if number >> (bits - 1):
            number -= 1 << bits
    else:
        digits = field.strip(b"\0 ").partition(b"\0")[0].rstrip(b" ") or b"0"
        if digits.strip(b"01234567"):
            raise LayerError(name_of(block), f"its {what} is not an octal number")
        number = int(digits, 8)
    if not (-_SIZE_MAX if negative else 0) <= number <= high:
        raise LayerError(name_of(block), f"its {what} is {number}, which cannot be")
    return number


def id_at(block: bytes, at: int, records: dict[bytes, bytes], key: bytes, name: bytes) -> int:
    """Return a user or a group: the record of it, or what the header has."""
    if key not in records:
        return number_at(block, at, 8, key.decode(), _ID_MAX)
    number = decimal(records[key], key.decode(), name)
    if not 0 <= number <= _ID_MAX:
        raise LayerError(name, f"its {key.decode()} is {number}, which cannot be")
    return number


def device_of(block: bytes, name: bytes) -> tuple[int, int]:
    """Return the device number in a header, major and minor."""
    major, minor = (number_at(block, at, 8, "device number") for at in (329, 337))
    if major > _DEVICE_MAX[0] or minor > _DEVICE_MAX[1]:
        raise LayerError(name, f"it is the device {major}:{minor}, which Linux cannot have")
    return major, minor
