"""Layers: what is in a blob, which tars are read, and how bombs and broken ones are refused."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import zstandard
from layers import (
    MTIME,
    Part,
    compressed,
    digest_of,
    directory,
    file,
    hard,
    layer,
    symlink,
)

from boxlite._images.descriptor import Descriptor
from boxlite._images.layer_codec import PIECE_BYTES, pieces
from boxlite._images.layer_limits import Budget, LayerError, Limits
from boxlite._images.layer_member import Kind, Member
from boxlite._images.layer_spool import Spooler
from boxlite._images.layer_tar import LayerReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = bytes(range(256)) * 5000


def decompressed(data: bytes) -> bytes:
    """Return what is in some bytes; no piece of it is too large."""
    found = list(pieces(io.BytesIO(data)))
    assert all(len(piece) <= PIECE_BYTES for piece in found)
    return b"".join(found)


def members_of(data: bytes, limits: Limits | None = None) -> list[Member]:
    """Return the members of a layer."""
    fd = os.memfd_create("layer")
    try:
        os.write(fd, data)
        budget = Budget((limits or Limits()).metadata_bytes, "bytes of names")
        return list(LayerReader(fd, limits or Limits(), budget).members())
    finally:
        os.close(fd)


def header(change: Callable[[bytearray], object], part: Part | None = None) -> bytes:
    """Return the header of a file, changed, with the checksum that it then has."""
    block = bytearray(layer(part or file(b"x", b""))[:512])
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def typed(flag: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    """Return a member of any type, with data, and with any size that it says it has."""

    def change(block: bytearray) -> None:
        block[156:157] = flag
        block[124:136] = b"%011o\0" % (len(data) if size is None else size)

    return header(change) + data + bytes(-len(data) % 512)


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    """Return an extended header with some records."""
    lines = b""
    for record in records:
        rest = b" " + record + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        lines += b"%d" % length + rest
    return typed(flag, lines)


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        b"",
        gzip.compress(DATA),
        gzip.compress(DATA[:7]) + gzip.compress(b"") + gzip.compress(DATA[7:]),
        gzip.compress(DATA) + bytes(5000),
        zstandard.compress(DATA),
        zstandard.compress(DATA[:7])
        + b"\x50\x2a\x4d\x18\x03\0\0\0abc"
        + zstandard.compress(DATA[7:]),
        b"\x53\x2a\x4d\x18\x01\0\0\0a" + zstandard.compress(DATA),
        lzma.compress(DATA),
    ],
    ids=["plain", "empty", "gzip", "members", "zeros", "zstd", "frames", "skippable", "xz"],
)
def test_what_is_in_a_blob_is_told_by_its_first_bytes(data: bytes) -> None:
    """Registries hold layers of every compression, in one piece or several, mislabelled too."""
    assert decompressed(data) == (b"" if not data else DATA)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (gzip.compress(DATA)[:-1], "ends early"),
        (gzip.compress(DATA)[:12], "ends early"),
        (gzip.compress(DATA)[:-8] + bytes(8), "damaged"),
        (gzip.compress(DATA) + b"garbage", "damaged"),
        (gzip.compress(DATA) + bytes(70_000) + b"x", "something follows"),
        (b"\x1f\x8b" + b"x" * 50, "damaged"),
        (zstandard.compress(DATA) + b"garbage", "damaged"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "damaged"),
        (lzma.compress(DATA)[:-9], "ends early"),
        (lzma.compress(DATA) + b"x", "something follows"),
        (lzma.compress(DATA)[:40] + b"x" * 50, "damaged"),
    ],
)
def test_damaged_compression_is_refused(data: bytes, problem: str) -> None:
    """Half a layer is not a layer."""
    with pytest.raises(LayerError, match=problem):
        decompressed(data)


def test_a_bomb_is_decompressed_in_small_pieces() -> None:
    """What 100 MB become in memory is decided here, not by who made them."""
    bomb = compressed(bytes(100 << 20), "gzip")
    tracemalloc.start()
    try:
        assert sum(map(len, pieces(io.BytesIO(bomb)))) == 100 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_window_that_is_too_large_is_refused() -> None:
    """A frame of zstd can ask for gigabytes of memory before it says anything."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3]) + b"\x01\0\0"

    with pytest.raises(LayerError, match="damaged"):
        decompressed(frame)


async def open_layer(
    tmp_path: Path, data: bytes, diff_id: str, limits: Limits | None = None
) -> bytes:
    """Return what a spool holds, after it was opened as builds do."""
    blob = tmp_path / "blob"
    blob.write_bytes(data)
    descriptor = Descriptor(media_type="any", digest=digest_of(data), size=len(data))
    limits = limits or Limits()
    advanced: list[int] = []
    spooler = Spooler(
        scratch=tmp_path,
        limits=limits,
        unpacked=Budget(limits.image_bytes, "bytes"),
        advance=advanced.append,
    )
    with await spooler.open(descriptor, blob, diff_id) as spool:
        assert sum(advanced) == len(data)
        return os.pread(spool.fileno(), 1 << 30, 0)


async def test_a_spool_has_what_the_diff_id_says(tmp_path: Path) -> None:
    """It is decompressed once, and a plain blob that begins like gzip is what it is."""
    assert await open_layer(tmp_path, gzip.compress(DATA), digest_of(DATA)) == DATA
    odd = b"\x1f\x8b" + DATA
    assert await open_layer(tmp_path, odd, digest_of(odd)) == odd
    assert os.listdir(tmp_path) == ["blob"]


@pytest.mark.parametrize("data", [gzip.compress(DATA), zstandard.compress(DATA)[:-50], DATA])
async def test_other_data_than_the_diff_id_says_is_refused(data: bytes, tmp_path: Path) -> None:
    """A registry can send a blob of any content that has the right digest, and no other content."""
    with pytest.raises(LayerError, match="digest sha256:.*, and it should be sha256:00"):
        await open_layer(tmp_path, data, "sha256:" + "0" * 64)
    assert os.listdir(tmp_path) == ["blob"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(ratio=100, ratio_floor_bytes=1 << 20), "bytes has more than .* in it"),
        (Limits(layer_bytes=1 << 20), "bytes has more than 1048576 in it"),
        (Limits(image_bytes=1 << 20), "the image has more than 1048576 bytes"),
    ],
)
async def test_bombs_are_refused_while_they_are_small(
    compression: str, limits: Limits, problem: str, tmp_path: Path
) -> None:
    """A thousandfold is not what tars of programs have."""
    bomb = compressed(bytes(40 << 20), compression)  # type: ignore[arg-type]

    with pytest.raises(LayerError, match=problem):
        await open_layer(tmp_path, bomb, "sha256:" + "0" * 64, limits)
    assert os.listdir(tmp_path) == ["blob"]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(format_: int) -> None:
    """They have the same members."""
    first, *others = members_of(
        layer(
            directory(b"d" * 60, 0o1777, uid=1, gid=2),
            file(b"d" * 60 + b"/" + b"f" * 60, b"data", 0o4755),
            symlink(b"l", b"t" * 90),
            hard(b"h", b"d" * 60),
            format=format_,
        )
    )

    assert first == Member(b"d" * 60 + b"/", Kind.DIRECTORY, 0o1777, 1, 2, MTIME)
    assert others == [
        Member(
            b"d" * 60 + b"/" + b"f" * 60,
            Kind.FILE,
            0o4755,
            mtime=MTIME,
            size=4,
            offset=others[0].offset,
        ),
        Member(b"l", Kind.SYMLINK, 0o777, mtime=MTIME, target=b"t" * 90),
        Member(b"h", Kind.HARD_LINK, mtime=MTIME, target=b"d" * 60),
    ]


def test_a_v7_tar_is_read() -> None:
    """It has no magic, and a directory is a file whose name ends with a slash."""

    def v7(block: bytearray) -> None:
        block[156:512] = bytes(356)

    def v7_directory(block: bytearray) -> None:
        v7(block)
        block[0:2] = b"d/"

    found = members_of(header(v7) + header(v7_directory))

    assert [(each.name, each.kind) for each in found] == [
        (b"x", Kind.FILE),
        (b"d/", Kind.DIRECTORY),
    ]


def test_numbers_in_base_256_are_read() -> None:
    """GNU tar writes those that octal has no room for, negative times too."""

    def change(block: bytearray) -> None:
        block[108:116] = b"\x80" + (3_000_000_000).to_bytes(7, "big")
        block[136:148] = (-5 + (1 << 96)).to_bytes(12, "big")

    (member,) = members_of(header(change))

    assert (member.uid, member.mtime) == (3_000_000_000, -5)


def test_records_win_over_fields_and_empty_ones_do_not() -> None:
    """POSIX: an empty record is none. Times lose their fraction downwards."""
    (member,) = members_of(
        pax(
            b"path=long", b"uid=7", b"gid=", b"mtime=-1.5", b"SCHILY.xattr.user.a=\0=\n", b"other=1"
        )
        + header(lambda block: block.__setitem__(slice(116, 124), b"0000005\0"))
    )

    assert (member.name, member.uid, member.gid, member.mtime) == (b"long", 7, 5, -2)
    assert member.xattrs == ((b"user.a", b"\0=\n"),)


def test_global_headers_are_skipped() -> None:
    """What git archive writes has one, with the commit in its comment."""
    assert len(members_of(pax(b"comment=abc", b"path=no", flag=b"g") + layer(file(b"x")))) == 1


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_only_files_have_data(flag: bytes) -> None:
    """Whatever their size says, as in Go: some tools write the linked file's size."""

    def change(block: bytearray) -> None:
        block[156:157] = flag
        block[157:158] = b"t"
        block[124:136] = b"%011o\0" % 4096

    assert len(members_of(header(change) + layer(file(b"next")))) == 2


HOSTILE = {
    "the tar ends within a header": layer(file(b"x"))[:300],
    "the tar ends within its data": layer(file(b"x", b"y" * 600))[:1000],
    "its data, by a size": typed(b"0", size=8**11 - 1),
    "size of 2^63 - 1": pax(b"size=9223372036854775807") + typed(b"0"),
    "size of 10^20": pax(b"size=99999999999999999999") + typed(b"0"),
    "size that is negative": pax(b"size=-512") + typed(b"0"),
    "size in base 256": header(
        lambda block: block.__setitem__(slice(124, 136), b"\x80" + b"\xff" * 11)
    ),
    "size in base 256 that is negative": header(
        lambda block: block.__setitem__(slice(124, 136), b"\xff" * 12)
    ),
    "size that is no number": header(
        lambda block: block.__setitem__(slice(124, 136), b"0x000000100\0")
    ),
    "an owner of -1": pax(b"uid=4294967295") + typed(b"0"),
    "an owner below 0": pax(b"gid=-1") + typed(b"0"),
    "an owner that is no number": pax(b"uid=1e3") + typed(b"0"),
    "a time that is no number": pax(b"mtime=now") + typed(b"0"),
    "a checksum": b"x" * 512,
    "no tar": os.urandom(10_000),
    "an unknown type": typed(b"V"),
    "zeros in the middle": bytes(512) + layer(file(b"x")),
    "the end after an extended header": pax(b"path=x"),
    "a huge pax header": typed(b"x", size=1 << 30),
    "a huge long name": typed(b"L", size=2 << 20),
    "an extended header that is cut short": typed(b"x", size=1 << 19),
    "a path that is too long": pax(b"path=" + b"x/" * 2048) + typed(b"0"),
    "10,000 directories": pax(b"path=" + b"d/" * 10_000) + typed(b"5"),
    "a target that is too long": pax(b"linkpath=" + b"x" * 4096) + typed(b"2"),
    "a NUL in a path": pax(b"path=a\0b") + typed(b"0"),
    "a NUL in a target": pax(b"linkpath=a\0b") + typed(b"2"),
    "a record that is too long": typed(b"x", b"99 path=x\n") + typed(b"0"),
    "a record that is too short": typed(b"x", b"3 path=x\n") + typed(b"0"),
    "a record without a length": typed(b"x", b"path=x\n") + typed(b"0"),
    "a record with a huge length": typed(b"x", b"9" * 5000 + b" path=x\n") + typed(b"0"),
    "too many attributes": pax(b"SCHILY.xattr.user.a=" + b"x" * 65_536) + typed(b"0"),
    "a device that Linux cannot have": header(
        lambda block: (
            block.__setitem__(slice(156, 157), b"3"),
            block.__setitem__(slice(329, 337), b"7777777\0"),
        )
    ),
    "holes of an unknown format": pax(b"GNU.sparse.major=2", b"GNU.sparse.minor=0") + typed(b"0"),
    "holes and no size": pax(b"GNU.sparse.map=0,1") + typed(b"0", b"x"),
    "holes in no order": pax(b"GNU.sparse.map=5,1,0,1", b"GNU.sparse.size=9") + typed(b"0", b"xx"),
    "holes over the end": pax(b"GNU.sparse.map=5,9", b"GNU.sparse.size=9") + typed(b"0", b"x" * 9),
    "holes and less data": pax(b"GNU.sparse.map=0,9", b"GNU.sparse.size=9") + typed(b"0", b"x"),
    "holes that are no pairs": pax(b"GNU.sparse.map=0,9,1", b"GNU.sparse.size=9") + typed(b"0"),
    "half a pair": pax(b"GNU.sparse.offset=0", b"GNU.sparse.offset=5") + typed(b"0"),
    "a map that does not end": pax(
        b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9"
    )
    + typed(b"0", b"9999\n0\n1\n"),
    "a map of 10^15": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9")
    + typed(b"0", b"999999999999999\n" + b"0\n" * 300),
    "an old map that does not end": header(
        lambda block: (
            block.__setitem__(slice(156, 157), b"S"),
            block.__setitem__(482, 1),
        )
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused(name: str) -> None:
    """None of them is read half, or makes us read backwards, or allocate what it says."""
    tracemalloc.start()
    try:
        with pytest.raises(LayerError) as caught:
            members_of(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.problem


def test_names_and_attributes_are_counted_over_the_whole_image() -> None:
    """Each of them is small; together they may not fill the memory."""
    data = layer(*(file(b"%0200d" % number, b"") for number in range(100)))

    with pytest.raises(LayerError, match="more than 10000 bytes of names"):
        members_of(data, Limits(metadata_bytes=10_000))
