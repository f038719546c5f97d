"""The tar of copies: every member arrives, any tar reads it, and any bytes end well."""

from __future__ import annotations

import io
import itertools
import tarfile

from hypothesis import given, strategies as st
from tars import attacks

from boxlite._tree.format import END, Kind, Member, TarError, encode, padding
from boxlite._tree.reader import TarReader

names = st.lists(
    st.binary(min_size=1, max_size=120).map(lambda name: name.translate(None, b"\0/") or b"n"),
    min_size=1,
    max_size=4,
).map(b"/".join)
ids = st.integers(0, (1 << 32) - 2)
modes = st.integers(0, 0o7777)
times = st.integers(0, 8**11 - 1)


@st.composite
def files(draw: st.DrawFn) -> Member:
    """Draw a file, now and then one with holes, the last of which may be at its end."""
    member = Member(draw(names), Kind.FILE, draw(modes), draw(ids), draw(ids))
    member = member._replace(size=draw(st.integers(0, 2000)), mtime=draw(times))
    if draw(st.booleans()):
        return member
    places = sorted(draw(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=20, unique=True)))
    if len(places) % 2:
        places.pop()
    segments = tuple(
        (begin, min(end - begin, 700)) for begin, end in zip(places[::2], places[1::2], strict=True)
    )
    return member._replace(size=places[-1] + draw(st.integers(0, 1000)), segments=segments)


directories = st.tuples(names, modes, ids, ids, times).map(
    lambda of: Member(of[0], Kind.DIRECTORY, of[1], of[2], of[3], mtime=of[4])
)
links = st.tuples(names, st.sampled_from([Kind.SYMLINK, Kind.HARD_LINK]), modes, names).map(
    lambda of: Member(of[0], of[1], of[2], target=of[3])
)
members = st.lists(files() | directories | links, max_size=6)


def archive(sent: list[Member]) -> bytes:
    """Return the members with data that can be told apart."""
    out = b""
    for number, member in enumerate(sent):
        size = member.data_size
        out += encode(member) + bytes([65 + number]) * size + bytes(padding(size))
    return out + END


def read(data: bytes, places: list[int]) -> list[tuple[Member, bytes]]:
    """Read an archive that comes in pieces."""
    reader = TarReader()
    found: list[tuple[Member, bytes]] = []
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for begin, end in itertools.pairwise(edges):
        for part in reader.feed(data[begin:end]):
            if isinstance(part, Member):
                found.append((part, b""))
            else:
                assert part
                found[-1] = found[-1][0], found[-1][1] + bytes(part)
    reader.finish()
    return found


@given(sent=members, places=st.lists(st.integers(0, 100_000), max_size=20))
def test_what_is_written_is_read(sent: list[Member], places: list[int]) -> None:
    """Wherever the bytes are cut: long names, large numbers and holes included."""
    found = read(archive(sent), places)

    assert [member for member, _ in found] == sent
    assert [data for _, data in found] == [
        bytes([65 + number]) * member.data_size for number, member in enumerate(sent)
    ]


@given(sent=members)
def test_pythons_tar_reads_what_is_written(sent: list[Member]) -> None:
    """It is a tar, not something like one."""
    with tarfile.open(fileobj=io.BytesIO(archive(sent)), errors="surrogateescape") as made:
        found = made.getmembers()

    assert [info.name.encode(errors="surrogateescape") for info in found] == [
        member.name for member in sent
    ]
    assert [(info.mode, info.uid, info.gid, info.mtime) for info in found] == [
        (member.mode, member.uid, member.gid, member.mtime) for member in sent
    ]
    assert [info.size for info in found] == [member.size for member in sent]
    assert [info.type for info in found if info.sparse is None] == [
        member.kind.value for member in sent if member.segments is None
    ]


@given(data=st.binary(max_size=3000), places=st.lists(st.integers(0, 3000), max_size=5))
def test_any_bytes_are_members_or_an_error(data: bytes, places: list[int]) -> None:
    """No other exception, and a sentence that can be printed."""
    try:
        read(data, places)
    except TarError as error:
        assert error.problem.isprintable()  # noqa: PT017 - either outcome is right


@given(
    sent=members.filter(bool),
    place=st.integers(0, 100_000),
    byte=st.integers(0, 255),
    places=st.lists(st.integers(0, 100_000), max_size=5),
)
def test_a_damaged_archive_is_members_or_an_error(
    sent: list[Member], place: int, byte: int, places: list[int]
) -> None:
    """One byte changed, anywhere."""
    data = bytearray(archive(sent))
    data[place % len(data)] = byte
    try:
        read(bytes(data), places)
    except TarError as error:
        assert error.problem.isprintable()  # noqa: PT017 - either outcome is right


@given(
    name=st.sampled_from(sorted(attacks(b"/out"))),
    place=st.integers(0, 5000),
    byte=st.integers(0, 255),
)
def test_a_damaged_attack_is_members_or_an_error(name: str, place: int, byte: int) -> None:
    """What is nearly right reaches further than noise does."""
    data = bytearray(attacks(b"/out")[name][0] or END)
    data[place % len(data)] = byte
    try:
        read(bytes(data), [])
    except TarError as error:
        assert error.problem.isprintable()  # noqa: PT017 - either outcome is right
