"""Tars for tests: of honest trees, and of every attack that is known of."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from boxlite._tree.format import BLOCK, END, Kind, Member, _record, encode, padding
from boxlite._tree.pack import Span, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = Member(b"copy", Kind.DIRECTORY, 0o755)


def tar(*parts: Member | tuple[Member, bytes] | bytes, end: bytes = END) -> bytes:
    """Return an archive of members, of files with their data, and of bytes as they are."""
    out = b""
    for part in parts:
        match part:
            case bytes():
                out += part
            case Member():
                out += encode(part)
            case (member, data):
                out += encode(member) + data + bytes(padding(len(data)))
    return out + end


def file(name: bytes, data: bytes = b"x", mode: int = 0o644) -> tuple[Member, bytes]:
    """Return a file that has data."""
    return Member(name, Kind.FILE, mode, size=len(data)), data


def link(name: bytes, target: bytes) -> Member:
    """Return a symbolic link."""
    return Member(name, Kind.SYMLINK, target=target)


def hard(name: bytes, target: bytes) -> Member:
    """Return a hard link."""
    return Member(name, Kind.HARD_LINK, target=target)


def directory(name: bytes, mode: int = 0o755) -> Member:
    """Return a directory."""
    return Member(name, Kind.DIRECTORY, mode)


def header(member: Member, change: Callable[[bytearray], object]) -> bytes:
    """Return a member's header, changed, with the checksum that it then has."""
    block = bytearray(encode(member))
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def typed(flag: bytes, name: bytes = b"copy/x", size: int = 0) -> bytes:
    """Return the header of a member of any type."""

    def change(block: bytearray) -> None:
        block[156:157] = flag
        block[124:136] = b"%011o\0" % size

    return header(Member(name, Kind.FILE), change)


def pax(*records: bytes, announced: int | None = None, flag: bytes = b"x") -> bytes:
    """Return a pax header with these records, which need not be any."""
    data = b"".join(records)
    size = len(data) if announced is None else announced
    return typed(flag, b"pax", size) + data + bytes(padding(len(data)))


def record(key: str, value: bytes) -> bytes:
    """Return one record of a pax header."""
    return _record(key, value)


def packed(path: Path, skip: Callable[[bytes, str], object] = lambda path, why: None) -> bytes:
    """Return the tar that is made of a path."""
    return b"".join(_bytes_of(pack(os.fsencode(path), skip)))


def _bytes_of(parts: Iterator[Member | bytes | Span]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, Span):
            yield os.pread(part.fd, part.size, part.offset)
        elif isinstance(part, bytes):
            yield part


def with_records(*records: bytes) -> bytes:
    """Return an archive with a file that has a pax header."""
    return tar(ROOT, pax(*records), typed(b"0"))


def sparse(content: bytes, realsize: bytes = b"100", major: bytes = b"1") -> bytes:
    """Return a file with holes whose map and data are these bytes."""
    content += bytes(padding(len(content)))
    return (
        pax(
            record("GNU.sparse.major", major),
            record("GNU.sparse.minor", b"0"),
            record("GNU.sparse.name", b"copy/x"),
            record("GNU.sparse.realsize", realsize),
        )
        + typed(b"0", size=len(content))
        + content
    )


def _gnu_long_name() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("copy/" + "x" * 200))
    return made.getvalue()


def attacks(outside: bytes) -> dict[str, tuple[bytes, str]]:
    """Return archives that must be refused, by name, with a part of what is said of each.

    Args:
        outside: The absolute path of a directory that the archives try to write to.
    """
    up = b"../../../../../../../.." + outside
    x = b"copy/x"
    deep = [directory(b"copy" + b"/d" * depth) for depth in range(1, 129)]
    return {
        # Names.
        "an absolute name": (tar(ROOT, file(outside + b"/f")), "does not begin with copy/"),
        "an absolute root": (tar(file(b"/copy")), "does not begin with copy/"),
        "another root": (tar(ROOT, file(b"other/f")), "does not begin with copy/"),
        "a root that begins alike": (tar(ROOT, file(b"copyx/f")), "does not begin with copy/"),
        "dots": (tar(ROOT, file(b"copy/" + up + b"/f")), "empty component, . or .."),
        "dots at the end": (tar(ROOT, file(b"copy/a/..")), "empty component, . or .."),
        "dots before the root": (tar(ROOT, file(b"../copy/f")), "does not begin with copy/"),
        "a dot": (tar(ROOT, file(b"copy/./f")), "empty component, . or .."),
        "two slashes": (tar(ROOT, file(b"copy//f")), "empty component, . or .."),
        "a slash at the end of a file": (tar(ROOT, file(b"copy/f/")), "empty component"),
        "an empty name": (tar(ROOT, file(b"")), "does not begin with copy/"),
        "a directory of dots": (tar(ROOT, directory(b"copy/..")), "empty component, . or .."),
        "a name that is not UTF-8": (tar(ROOT, file(b"copy/\xff\xfe")), "is not UTF-8"),
        "half a character": (tar(ROOT, file(b"copy/\xc3")), "is not UTF-8"),
        "a surrogate": (tar(ROOT, file(b"copy/\xed\xb2\x80")), "is not UTF-8"),
        "a component of 256 bytes": (tar(ROOT, file(b"copy/" + b"n" * 256)), "more than 255"),
        "a name of 5,000 bytes": (tar(ROOT, file(b"copy/" + b"n/" * 2500)), "more than 4096"),
        "128 directories deep": (tar(ROOT, *deep), "more than 128 directories deep"),
        # What comes twice, or through something else.
        "a file twice": (tar(ROOT, file(x), file(x)), "there twice"),
        "a directory twice": (tar(ROOT, directory(x), directory(x)), "there twice"),
        "the root twice": (tar(ROOT, ROOT), "there twice"),
        "a file over a directory": (tar(ROOT, directory(x), file(x)), "there twice"),
        "a directory over a file": (tar(ROOT, file(x), directory(x)), "there twice"),
        "a file over a link": (tar(ROOT, link(x, b"y"), file(x)), "there twice"),
        "a link over a file": (tar(ROOT, file(x), link(x, b"y")), "there twice"),
        "a file in a file": (tar(ROOT, file(x), file(x + b"/f")), "is no directory"),
        "a file through a link": (
            tar(ROOT, directory(b"copy/d"), link(x, b"d"), file(x + b"/f")),
            "is no directory",
        ),
        "a directory through a link": (
            tar(ROOT, directory(b"copy/d"), link(x, b"d"), directory(x + b"/e")),
            "is no directory",
        ),
        "a file without its directory": (tar(ROOT, file(b"copy/a/b/f")), "come before it"),
        "a file without the root": (tar(file(b"copy/f")), "come before it"),
        # Links that lead out.
        "a link to an absolute path": (tar(ROOT, link(x, outside)), "may be outside"),
        "a link up": (tar(ROOT, link(x, b"..")), "may be outside"),
        "a link up and down": (tar(ROOT, link(x, up + b"/f")), "may be outside"),
        "a link up after a component": (
            tar(ROOT, directory(b"copy/d"), link(b"copy/d/l", b".."), link(x, b"d/l/../..")),
            "may be outside",
        ),
        "a link up by dots and slashes": (tar(ROOT, link(x, b".//./..//./..")), "may be outside"),
        "a root that is a link": (tar(link(b"copy", outside), file(b"copy/f")), "may be outside"),
        "a root that is a link nearby": (tar(link(b"copy", b"../f")), "may be outside"),
        "a link and a file through it": (
            tar(ROOT, link(x, outside), file(x + b"/f")),
            "may be outside",
        ),
        "a link to nothing": (tar(ROOT, typed(b"2")), "link to nothing"),
        # Hard links.
        "a hard link to an absolute path": (
            tar(ROOT, hard(x, outside + b"/canary")),
            "does not begin with copy/",
        ),
        "a hard link up": (tar(ROOT, hard(x, b"copy/" + up)), "empty component, . or .."),
        "a hard link to what is not there": (tar(ROOT, hard(x, b"copy/n")), "no file before it"),
        "a hard link to itself": (tar(ROOT, hard(x, x)), "no file before it"),
        "a hard link to a directory": (
            tar(ROOT, directory(b"copy/d"), hard(x, b"copy/d")),
            "no file before it",
        ),
        "a hard link to a link": (
            tar(ROOT, link(b"copy/l", b"y"), hard(x, b"copy/l")),
            "no file before it",
        ),
        "a hard link through a link": (
            tar(ROOT, directory(b"copy/d"), link(b"copy/l", b"d"), hard(x, b"copy/l/f")),
            "is no directory",
        ),
        "a hard link to the root": (tar(ROOT, hard(x, b"copy")), "no file before it"),
        # Types.
        "a character device": (tar(ROOT, typed(b"3")), "character device"),
        "a block device": (tar(ROOT, typed(b"4")), "block device"),
        "a fifo": (tar(ROOT, typed(b"6")), "fifo"),
        "a contiguous file": (tar(ROOT, typed(b"7")), "type"),
        "a global header": (tar(pax(record("path", x), flag=b"g"), ROOT), "global header"),
        "GNU's long name": (_gnu_long_name(), "not one of ustar"),
        "GNU's old sparse file": (tar(ROOT, typed(b"S")), "type"),
        "GNU's volume label": (tar(ROOT, typed(b"V")), "type"),
        "a type that is none": (tar(ROOT, typed(b"\xff")), "type"),
        "a directory with data": (tar(ROOT, typed(b"5", size=512), bytes(512)), "is no file"),
        "a file with a target": (
            tar(ROOT, header(Member(x, Kind.FILE), lambda b: b.__setitem__(157, 65))),
            "it is no link",
        ),
        # Sizes.
        "a file of 8 EiB": (
            with_records(record("size", b"%d" % ((1 << 63) - 1))),
            "more than",
        ),
        "a file of more": (
            with_records(record("size", b"%d" % (1 << 63))),
            "more than",
        ),
        "a size of 5,000 digits": (
            with_records(record("size", b"9" * 5000)),
            "not a number",
        ),
        "a size below zero": (with_records(record("size", b"-1")), "not a number"),
        "a size in base 256": (
            tar(
                ROOT,
                header(
                    Member(x, Kind.FILE), lambda b: b.__setitem__(slice(124, 136), b"\x80" * 12)
                ),
            ),
            "size is not an octal number",
        ),
        "an owner that is none": (
            with_records(record("uid", b"4294967295")),
            "more than",
        ),
        "holes of 1 TiB": (tar(ROOT, sparse(b"0\n", b"%d" % (1 << 40))), "more than"),
        "more data than its holes have": (tar(ROOT, sparse(b"1\n0\n10\n")), "does not fit"),
        "holes in no order": (tar(ROOT, sparse(b"2\n50\n1\n0\n1\n" + bytes(504))), "not in order"),
        "holes beyond the end": (tar(ROOT, sparse(b"1\n99\n2\n" + bytes(505))), "does not fit"),
        "a map of letters": (tar(ROOT, sparse(b"one\n")), "not made of numbers"),
        "a map of less than it counts": (tar(ROOT, sparse(b"9\n0\n1\n")), "not whole"),
        "a map of a million": (tar(ROOT, sparse(b"1000000\n")), "too long"),
        "a map without end": (tar(ROOT, sparse(b"9" * 5000)), "not whole"),
        "a map of nothing": (tar(ROOT, sparse(b"")), "not whole"),
        "holes of another format": (tar(ROOT, sparse(b"0\n", major=b"9")), "another format"),
        "holes in a directory": (
            tar(ROOT, pax(record("GNU.sparse.major", b"1")), typed(b"5")),
            "is no file",
        ),
        # Pax.
        "pax: a path out": (
            with_records(record("path", outside + b"/f")),
            "does not begin",
        ),
        "pax: a path up": (
            with_records(record("path", b"copy/../f")),
            "empty component",
        ),
        "pax: a NUL in a path": (with_records(record("path", x + b"\0y")), "NUL"),
        "pax: a NUL in a target": (tar(ROOT, pax(record("linkpath", b"a\0b")), typed(b"2")), "NUL"),
        "pax: a path twice": (
            tar(ROOT, pax(record("path", x), record("path", x)), typed(b"0")),
            "path twice",
        ),
        "pax: an unknown record": (
            with_records(record("SCHILY.xattr.user.x", b"1")),
            "SCHILY",
        ),
        "pax: another encoding": (
            with_records(record("hdrcharset", b"BINARY")),
            "hdrcharset",
        ),
        "pax: a time": (with_records(record("mtime", b"1e309")), "mtime"),
        "pax: a length that is too long": (
            with_records(b"99 path=copy/x\n"),
            "damaged",
        ),
        "pax: a length of zero": (with_records(b"0 path=copy/x\n"), "damaged"),
        "pax: no length": (with_records(b"path=copy/x\n"), "damaged"),
        "pax: no newline": (with_records(b"13 path=copy/x"), "damaged"),
        "pax: two headers": (tar(ROOT, pax(record("path", x)), pax(record("path", x))), "two pax"),
        "pax: a header of 4 GiB": (tar(ROOT, pax(announced=1 << 32)), "more than 12288"),
        "pax: a header of nothing": (tar(ROOT, pax()), "more than 12288"),
        "pax: a header and no member": (tar(ROOT, pax(record("path", x))), "zeros where"),
        # The archive as a whole.
        "nothing": (b"", "ends before its end"),
        "an end and nothing before it": (END, "nothing in it"),
        "no end": (tar(ROOT, file(x), end=b""), "ends before its end"),
        "half an end": (tar(ROOT, end=bytes(BLOCK)), "ends before its end"),
        "an end within a file": (
            tar(ROOT, encode(Member(x, Kind.FILE, size=5000)), end=b""),
            "ends before its end",
        ),
        "a member after the end": (tar(ROOT) + tar(file(x)), "after its end"),
        "zeros for ever": (tar(ROOT) + bytes(1 << 20), "zeros"),
        "a checksum that is wrong": (tar(encode(ROOT).replace(b"0000755", b"0000777")), "checksum"),
        "noise": (bytes(range(256)) * 8, "not one of ustar|octal"),
        "gzip": (b"\x1f\x8b\x08" + bytes(range(1, 250)) * 3, "not one of ustar|octal"),
    }
