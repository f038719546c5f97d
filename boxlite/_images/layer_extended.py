"""What extended headers say about the member that follows them: pax, and maps of holes.

Sources: POSIX.1-2024, pax, "pax Header Block"; the GNU tar manual, "Storing Sparse
Files"; for xattrs star(5), whose records SCHILY.xattr.NAME all image builders write.
What counts when records contradict each other is as in Go's ``archive/tar``, which
Docker, containerd and umoci read layers with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .layer_limits import LayerError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where a file has data, and how much.
Segments = tuple[tuple[int, int], ...]

_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = b"GNU.sparse."
_TEXTS: Final = frozenset({b"path", b"linkpath", b"GNU.sparse.name"})
_KEPT: Final = _TEXTS | {b"size", b"uid", b"gid", b"mtime"}
_DIGITS_MAX: Final = 20
#: A piece of data in a map is at least two digits and what ends them.
_PIECE_BYTES: Final = 4


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header that mean something to us.

    The two that GNU's format 0.0 repeats for each piece of data become one of its
    format 0.1, ``GNU.sparse.map``.

    Raises:
        LayerError: It is damaged.
    """
    records: dict[bytes, bytes] = {}
    places: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + _DIGITS_MAX)
        digits = data[at:space] if space > 0 else b""
        stop = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, stop)
        if not (space < equals < stop <= end) or data[stop - 1 : stop] != b"\n":
            raise LayerError(records.get(b"path", b""), "its pax header is damaged")
        key, value = data[space + 1 : equals], data[equals + 1 : stop - 1]
        at = stop
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(places) % 2 == 0):
                raise LayerError(records.get(b"path", b""), "the map of its holes is damaged")
            places.append(value)
        elif key in _KEPT or key.startswith((_XATTR, _SPARSE)):
            if (key in _TEXTS and b"\0" in value) or b"\0" in key:
                raise LayerError(records.get(b"path", b""), "its pax header has a NUL in a name")
            records[key] = value
    if places:
        records[b"GNU.sparse.map"] = b",".join(places)
    # POSIX: an empty value undoes the record, and the field of the header counts.
    return {key: value for key, value in records.items() if value}


def xattrs_of(
    records: dict[bytes, bytes], most: int, member: bytes
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes among some records, sorted by name.

    Raises:
        LayerError: They have more bytes than the most.
    """
    found = sorted(
        (key[len(_XATTR) :], value) for key, value in records.items() if key.startswith(_XATTR)
    )
    size = sum(len(name) + len(value) for name, value in found)
    if size > most:
        raise LayerError(member, f"it has {size} bytes of extended attributes, more than {most}")
    return tuple(found)


def decimal(value: bytes, what: str, member: bytes) -> int:
    """Return a number of a record; of one with a fraction, the whole number below it.

    Raises:
        LayerError: It is none.
    """
    whole, point, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if (
        not digits.isdigit()
        or len(digits) > _DIGITS_MAX
        or (point and fraction and not fraction.isdigit())
    ):
        raise LayerError(member, f"its {what} is not a number")
    number = int(digits)
    if negative:
        return -number - (1 if fraction.strip(b"0") else 0)
    return number


def sparse_format(records: dict[bytes, bytes], member: bytes) -> str:
    """Return how the map of a file's holes is written: ``""`` if it has none, 0.1 or 1.0.

    Raises:
        LayerError: It is in a format that is not known.
    """
    if not any(key.startswith(_SPARSE) for key in records):
        return ""
    version = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if version == (b"1", b"0"):
        return "1.0"
    if version in ((None, None), (b"0", b"0"), (b"0", b"1")) and b"GNU.sparse.map" in records:
        return "0.1"
    raise LayerError(member, "it has holes in a format that is not known")


def sparse_size(records: dict[bytes, bytes], member: bytes) -> int:
    """Return the size of a file with its holes.

    Raises:
        LayerError: It is not among the records.
    """
    for key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
        if key in records:
            return decimal(records[key], "size with holes", member)
    raise LayerError(member, "it has holes and no size")


def parse_map(numbers: Sequence[bytes], member: bytes) -> Segments:
    """Return the map of a file's holes.

    Raises:
        LayerError: It is not made of pairs of numbers.
    """
    if len(numbers) % 2 or not all(each.isdigit() and len(each) <= _DIGITS_MAX for each in numbers):
        raise LayerError(member, "the map of its holes is not made of pairs of numbers")
    values = [int(each) for each in numbers]
    return tuple(zip(values[::2], values[1::2], strict=True))


def take_map(data: bytes, member: bytes) -> tuple[Segments, int] | None:
    """Return the map before a file's data in format 1.0, and its bytes without padding.

    None if there must be more of it.

    Args:
        data: As many bytes as were read.
        member: Whose it is.

    Raises:
        LayerError: It is none.
    """
    end = data.find(b"\n", 0, _DIGITS_MAX + 1)
    if end < 0 or not data[:end].isdigit():
        raise LayerError(member, "the map of its holes does not begin with a number")
    count = 2 * int(data[:end])
    if len(data) < end + count * (_PIECE_BYTES // 2):
        return None
    lines = data[end + 1 :].split(b"\n", count)
    if len(lines) <= count:
        return None
    numbers = lines[:count]
    return parse_map(numbers, member), end + 1 + sum(len(each) + 1 for each in numbers)


def check_map(segments: Segments, size: int, packed: int, member: bytes) -> Segments:
    """Return a map of holes without empty pieces, if it is one.

    Args:
        segments: The map.
        size: The size of the file with its holes.
        packed: The bytes of data that are in the layer.
        member: Whose it is.

    Raises:
        LayerError: Pieces overlap, are out of order or out of the file, or are not what
            is in the layer.
    """
    last = total = 0
    for offset, length in segments:
        if offset < last:
            raise LayerError(member, "the pieces of its data are not in order")
        last = offset + length
        total += length
    if last > size or total != packed:
        raise LayerError(member, "the map of its holes does not fit its size")
    return tuple(pair for pair in segments if pair[1])
