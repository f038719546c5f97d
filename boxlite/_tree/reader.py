"""Taking a tar apart that a guest may have made. No I/O.

Nothing is read but what :func:`~.format.encode` writes: every count is bounded,
every record is known and occurs once, and a number is digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .format import (
    BLOCK,
    END,
    MAGIC,
    NAME_BYTES,
    NAME_FIELD,
    PREFIX_FIELD,
    SEGMENTS_MAX,
    Kind,
    Member,
    TarError,
    padding,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE_MAX: Final = (1 << 63) - 1
_ID_MAX: Final = (1 << 32) - 2  # -1 means "leave it" to chown(2).
_PAX_BYTES: Final = 3 * NAME_BYTES
_DIGITS_MAX: Final = 20
_TRAILING_BYTES: Final = 10_240  # Other tars fill their last record of 20 blocks.
_PAX_KEYS: Final = frozenset(
    {"path", "linkpath", "size", "uid", "gid"}
    | {f"GNU.sparse.{key}" for key in ("major", "minor", "name", "realsize")}
)


class TarReader:
    """Takes an archive apart as its bytes come in.

    It holds at most one header, or the records of one member.
    """

    def __init__(self) -> None:
        self._held = b""
        self._need = BLOCK
        self._data_left = 0
        self._skip = 0
        self._zeros = 0  # Blocks of zeros at the end.
        self._records: dict[str, bytes] | None = None
        self._records_size = 0  # Of those that come next.
        self._sparse: tuple[Member, int] | None = None  # Whose map is read, and its data's size.
        self._map: list[int] = []
        self._tail = b""

    def feed(self, data: bytes | memoryview) -> Iterator[Member | memoryview]:
        """Take the next bytes; yield each member, and after a file all of its data in pieces.

        Nothing of a file's data is copied. Take all that it yields before the next call.

        Raises:
            TarError: It is not what :func:`encode` makes.
        """
        if self._held:
            data, self._held = self._held + bytes(data), b""
        view = memoryview(data)
        at, end = 0, len(view)
        while at < end:
            if self._data_left:
                size = min(self._data_left, end - at)
                self._data_left -= size
                yield view[at : at + size]
                at += size
            elif self._skip:
                size = min(self._skip, end - at)
                self._skip -= size
                at += size
            elif end - at < self._need:
                break
            else:
                taken = bytes(view[at : at + self._need])
                at += self._need
                member = self._take(taken)
                if member is not None:
                    yield member
        self._held = bytes(view[at:])

    def finish(self) -> None:
        """Say that there is nothing more.

        Raises:
            TarError: There must be.
        """
        if self._zeros < len(END) // BLOCK or self._held:
            raise TarError(b"", "it ends before its end")

    def _take(self, block: bytes) -> Member | None:
        """Take a block, or as many as are needed at once."""
        if self._sparse is not None:
            return self._take_map(block)
        if self._records_size:
            self._records = _parse_records(block[: self._records_size])
            self._need, self._records_size = BLOCK, 0
            return None
        if not any(block):
            self._zeros += 1
            if self._zeros * BLOCK > _TRAILING_BYTES or self._records is not None:
                raise TarError(b"", "there are zeros where a member is to be")
            return None
        if self._zeros:
            raise TarError(b"", "there is something after its end")
        return self._take_header(block)

    def _take_header(self, block: bytes) -> Member | None:
        name, flag = _raw_name(block), block[156:157]
        if block[257:265] != MAGIC:
            raise TarError(name, "its header is not one of ustar")
        size = _octal(block, 124, 12, "size")
        if _octal(block, 148, 8, "checksum") != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise TarError(name, "its header is damaged: the checksum is another")
        if flag == b"x":
            if self._records is not None:
                raise TarError(name, "it has two pax headers")
            if not 1 <= size <= _PAX_BYTES:
                raise TarError(name, f"its pax header has {size} bytes, more than {_PAX_BYTES}")
            self._need, self._records_size = size + padding(size), size
            return None
        records, self._records = self._records or {}, None
        return self._member(block, name, flag, size, records)

    def _member(
        self, block: bytes, name: bytes, flag: bytes, size: int, records: dict[str, bytes]
    ) -> Member | None:
        name = records.get("path", name)
        sparse = any(key.startswith("GNU.sparse.") for key in records)
        if sparse:
            name = records.get("GNU.sparse.name", name)
        try:
            kind = Kind(flag)
        except ValueError:
            raise TarError(name, f"it is of the type {_type_name(flag)}") from None
        if kind is Kind.DIRECTORY:
            name = name.removesuffix(b"/")
        target = records.get("linkpath", block[157:257].partition(b"\0")[0])
        for what, text in (("name", name), ("target", target)):
            if len(text) > NAME_BYTES:
                raise TarError(name, f"its {what} has {len(text)} bytes, more than {NAME_BYTES}")
            if b"\0" in text:
                raise TarError(name, f"its {what} has a NUL in it")
        size = _decimal(records, "size", name, size)
        member = Member(
            name=name,
            kind=kind,
            mode=_octal(block, 100, 8, "mode") & 0o7777,
            uid=_decimal(records, "uid", name, _octal(block, 108, 8, "uid"), _ID_MAX),
            gid=_decimal(records, "gid", name, _octal(block, 116, 8, "gid"), _ID_MAX),
            size=size,
            mtime=_octal(block, 136, 12, "time"),
            target=target,
        )
        if kind is not Kind.FILE and (size or sparse):
            raise TarError(name, f"it has {size} bytes of data and is no file")
        if bool(target) != (kind in (Kind.SYMLINK, Kind.HARD_LINK)):
            raise TarError(name, "it is a link to nothing" if not target else "it is no link")
        if sparse:
            self._begin_map(member, records)
            return None
        self._data_left, self._skip = size, padding(size)
        return member

    def _begin_map(self, member: Member, records: dict[str, bytes]) -> None:
        if (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) != (b"1", b"0"):
            raise TarError(member.name, "it has holes in another format than 1.0")
        real = _decimal(records, "GNU.sparse.realsize", member.name, -1)
        if real < 0:
            raise TarError(member.name, "it has holes and no size")
        self._sparse = member._replace(size=real), member.size

    def _take_map(self, block: bytes) -> Member | None:
        """Take one more block of a map; return the member when all of it is there."""
        assert self._sparse is not None
        member, size = self._sparse
        *lines, self._tail = (self._tail + block).split(b"\n")  # The last one may go on.
        self._sparse = member, size - BLOCK
        counted = 1 + 2 * self._map[0] if self._map else 0
        for line in lines:
            if counted and len(self._map) == counted:
                break
            if not line.isdigit() or len(line) > _DIGITS_MAX:
                raise TarError(member.name, "the map of its holes is not made of numbers")
            self._map.append(int(line))
            counted = 1 + 2 * self._map[0]
            if self._map[0] > SEGMENTS_MAX:
                raise TarError(member.name, "the map of its holes is too long")
        if not counted or len(self._map) < counted:
            if size <= BLOCK or len(self._tail) > _DIGITS_MAX:
                raise TarError(member.name, "the map of its holes is not whole")
            return None
        member = member._replace(segments=tuple(zip(self._map[1::2], self._map[2::2], strict=True)))
        self._sparse, self._map, self._tail = None, [], b""
        _check_segments(member, size - BLOCK)
        self._data_left, self._skip = member.data_size, padding(member.data_size)
        return member


def _check_segments(member: Member, size: int) -> None:
    assert member.segments is not None
    last = 0
    for offset, length in member.segments:
        if offset < last:
            raise TarError(member.name, "the pieces of its data are not in order")
        last = offset + length
    if last > member.size or member.data_size != size:
        raise TarError(member.name, "the map of its holes does not fit its size")


def _parse_records(data: bytes) -> dict[str, bytes]:
    """Read the records of a pax header: ``length key=value`` and a newline each."""
    records: dict[str, bytes] = {}
    while data:
        digits, _, _ = data[: _DIGITS_MAX + 1].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        name = records.get("path", b"")
        if len(record) < length or not equals or not record.endswith(b"\n"):
            raise TarError(name, "its pax header is damaged")
        text = key.decode("ascii", "replace")
        if text not in _PAX_KEYS:
            raise TarError(name, f"its pax header has the record {text[:50]!a}")
        if text in records:
            raise TarError(name, f"its pax header has {text} twice")
        records[text] = value[:-1]
    return records


def _raw_name(block: bytes) -> bytes:
    name = block[:NAME_FIELD].partition(b"\0")[0]
    prefix = block[345 : 345 + PREFIX_FIELD].partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _octal(block: bytes, at: int, size: int, what: str) -> int:
    digits = block[at : at + size].rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise TarError(_raw_name(block), f"its {what} is not an octal number")
    return int(digits, 8)


def _decimal(
    records: dict[str, bytes], key: str, name: bytes, default: int, high: int = _SIZE_MAX
) -> int:
    digits = records.get(key, b"%d" % default)
    if key in records and not (digits.isdigit() and len(digits) <= _DIGITS_MAX):
        raise TarError(name, f"its {key} is not a number")
    if int(digits) > high:
        raise TarError(name, f"its {key} is {int(digits)}, more than {high}")
    return int(digits)


def _type_name(flag: bytes) -> str:
    names = {b"3": "character device", b"4": "block device", b"6": "fifo", b"g": "global header"}
    return names.get(flag, ascii(flag.decode("latin-1")))
