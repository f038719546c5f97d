"""What the agent does when files are copied: its windows, its reports, and what it leaves."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest
from grpclib.exceptions import GRPCError
from guest_under_test import AgentUnderTest, Call, execution, ping, running_agent
from tars import ROOT, directory, file, link, packed, tar

from boxlite._bulk import DATA_BYTES, Channel as Stream, Piece
from boxlite._rpc._generated.boxlite.v1 import Copy, CopyReport, ExecStart
from boxlite._tree.format import Kind, Member, encode
from boxlite._wire import OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES
from boxlite.guest.copying import CopyIn
from boxlite.guest.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grpclib.client import Channel


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentUnderTest]:
    """One agent for all tests here."""
    with running_agent() as running:
        yield running


def out(path: Path | str, window: int = OUTPUT_WINDOW_BYTES) -> ExecStart:
    """Return the question that has something packed."""
    return ExecStart(copy=Copy(path=os.fsencode(path), out=True), stdout_window=window)


def into(path: Path | str, *, replace: bool = True) -> ExecStart:
    """Return the question that has something unpacked."""
    return ExecStart(copy=Copy(path=os.fsencode(path), replace=replace))


def report_of(call: Call) -> CopyReport:
    """Return what became of a copy that has ended."""
    assert call.exited is not None
    assert call.exited.copy is not None
    assert call.exited.exit_code == bool(call.exited.copy.error)
    return call.exited.copy


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files and large ones, whose data goes another way."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(50):
        (root / f"{number}").write_text(str(number) * 100)
    (root / "large").write_bytes(os.urandom(3_000_000))
    (root / "larger than a window").write_bytes(bytes(OUTPUT_WINDOW_BYTES + 1))
    return root


def test_a_tree_is_packed_within_the_window(agent: AgentUnderTest, tree: Path) -> None:
    """However small that is: what was not granted is not sent."""
    expected = packed(tree)

    async def scenario(channel: Channel) -> None:
        async with execution(channel, out(tree, window=70_000)) as call:
            granted = 70_000
            while call.exited is None:
                await call.next()
                assert len(call.stdout) <= granted
                if len(call.stdout) == granted:
                    call.grant(Stream.STDOUT, 300_000)
                    granted += 300_000
            assert call.stdout == expected
            assert report_of(call) == CopyReport()

    agent.run(scenario)


def test_a_copy_that_is_cut_off_leaves_nothing_open(agent: AgentUnderTest, tree: Path) -> None:
    """Each way, in the middle; the agent goes on."""

    async def scenario(channel: Channel) -> None:
        async def both() -> None:
            async with execution(channel, out(tree, window=200_000)) as call:
                await call.until(lambda: len(call.stdout) == 200_000)
            async with execution(channel, into(tree / "in")) as other:
                await other.until(lambda: other.pid != 0)
                half = tar(ROOT, directory(b"copy/d"), file(b"copy/d/f", bytes(9999)))[:9000]
                other.stdin(half)
                await ping(channel)

        await both()  # The connection has its pipe from here on.
        await ping(channel)
        before = agent.open_descriptors()
        for _ in range(5):
            await both()
        while agent.open_descriptors() > before:
            await ping(channel)

    agent.run(scenario)


def test_a_tree_is_unpacked_and_room_is_given(agent: AgentUnderTest, tmp_path: Path) -> None:
    """For what is written, so that a tree of any size fits the window."""
    data = tar(ROOT, *(file(b"copy/%d" % number, os.urandom(500_000)) for number in range(12)))

    async def scenario(channel: Channel) -> None:
        async with execution(channel, into(tmp_path / "a" / "b" / "copy")) as call:
            await call.until(lambda: call.pid != 0)
            sent = 0
            while sent < len(data):
                size = min(100_000, call.stdin_window, len(data) - sent)
                if size:
                    call.stdin(data[sent : sent + size])
                    sent += size
                else:
                    assert await call.next()
            call.stdin_end()
            await call.finish()
            assert report_of(call) == CopyReport()

    agent.run(scenario)
    assert packed(tmp_path / "a" / "b" / "copy").count(b"copy/11") == 1


def test_more_than_was_granted_ends_the_copy(tmp_path: Path) -> None:
    """As with a command."""
    copy = CopyIn(Copy(path=os.fsencode(tmp_path / "copy")), Place())
    header = encode(Member(b"copy", Kind.FILE, size=1 << 30))
    copy.hear(Piece(1, Stream.STDIN, memoryview(header)))
    for _ in range(STDIN_WINDOW_BYTES // DATA_BYTES):
        copy.hear(Piece(1, Stream.STDIN, memoryview(bytes(DATA_BYTES))))

    async def send(_: object) -> None:
        raise AssertionError("the copy has not ended in order")

    with pytest.raises(GRPCError, match="more than was granted"):
        asyncio.run(copy.report(send, None))  # type: ignore[arg-type] # nothing is granted
    copy.close()


@pytest.mark.parametrize(
    ("data", "number", "path", "problem"),
    [
        (b"x" * 512, errno.EINVAL, b"x" * 100, "not one of ustar"),
        (tar(file(b"copy/../f")), errno.EINVAL, b"copy/../f", "empty component"),
        (tar(ROOT, end=b""), errno.EINVAL, b"", "ends before its end"),
        (tar(ROOT, link(b"copy/l", b"/"), file(b"copy/l/f")), errno.EINVAL, b"copy/l/f", "is no"),
        (tar(ROOT, directory(b"copy/there")), errno.EEXIST, b"copy/there", ""),
    ],
)
def test_what_cannot_be_unpacked_is_reported(
    agent: AgentUnderTest, tmp_path: Path, data: bytes, number: int, path: bytes, problem: str
) -> None:
    """At once, with the member; nothing is written elsewhere."""
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "there").touch()

    async def scenario(channel: Channel) -> None:
        async with execution(channel, into(tmp_path / "copy")) as call:
            await call.until(lambda: call.pid != 0)
            call.stdin(data)
            call.stdin_end()
            await call.finish()
            report = report_of(call)
            assert (report.error, report.path[:100]) == (number, path)
            assert problem in report.problem

    agent.run(scenario)


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (out("relative"), errno.EINVAL),
        (out("/a\0b"), errno.EINVAL),
        (out("/no/such/file"), errno.ENOENT),
        (out("/dev/null"), errno.EINVAL),
        (into("relative"), errno.EINVAL),
        (into("/"), errno.EINVAL),
        (into("/dev/null/x"), errno.ENOTDIR),
    ],
)
def test_a_path_that_cannot_be_is_reported(
    agent: AgentUnderTest, request_: ExecStart, number: int
) -> None:
    """Instead of a tar, or before any of it has come."""

    async def scenario(channel: Channel) -> None:
        async with execution(channel, request_) as call:
            await call.finish()
            assert report_of(call).error == number
            assert call.stdout == b""

    agent.run(scenario)


def test_what_is_left_out_is_reported(agent: AgentUnderTest, tmp_path: Path) -> None:
    """All are counted, and the first hundred named."""
    for number in range(120):
        os.mkfifo(tmp_path / f"{number:03}")

    async def scenario(channel: Channel) -> None:
        async with execution(channel, out(tmp_path)) as call:
            await call.finish()
            report = report_of(call)
            *names, rest = report.skipped_names.split(b"\0")
            assert report.skipped == 120
            assert len(names) == 100
            assert names[0] == os.fsencode(tmp_path) + b"/000: it is a fifo"
            assert rest == b""

    agent.run(scenario)
