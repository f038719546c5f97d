"""Calls about files: what a lying guest may answer, and what the agent does with bad questions."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from guest_under_test import AgentUnderTest, running_agent, unary

from boxlite import GuestProtocolError
from boxlite._path import BoxPath
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc.files import FileCalls
from boxlite._wire import FILE_PIECE_BYTES, NAMES_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from betterproto2 import Message
    from grpclib.client import Channel


def lying(answer: object) -> FileCalls:
    """Return the calls to a guest that always gives this answer."""

    async def call(*_args: object) -> Any:  # noqa: ANN401
        return answer

    return FileCalls(call)


def joined(*names: bytes) -> bytes:
    """Return names as the wire has them."""
    return b"".join(name + b"\0" for name in names)


async def test_more_than_was_asked_for_is_refused() -> None:
    """It would be taken for what is there."""
    with pytest.raises(GuestProtocolError, match="11 bytes came, and 10"):
        await lying(wire.ReadResponse(data=bytes(11))).read(b"/x", 0, 10)
    assert await lying(wire.ReadResponse(data=bytes(10))).read(b"/x", 0, 10) == bytes(10)


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (joined(b"a", b"a"), False, "not in order"),
        (joined(b"b", b"a"), False, "not in order"),
        (joined(b"."), False, "not the name of an entry"),
        (joined(b".."), False, "not the name of an entry"),
        (joined(b"../../etc"), False, "is not a name"),
        (joined(b"x" * 256), False, "is not a name"),
        (b"\0", False, "not in order"),
        (b"a", False, "has no end"),
        (b"", True, "none came"),
        (joined(*(b"%05d" % number for number in range(NAMES_AT_ONCE + 1))), True, "at once"),
    ],
)
async def test_names_that_cannot_be_are_refused(names: bytes, *, more: bool, words: str) -> None:
    """None of them could do harm as a path of the host, and none is to be taken for one."""
    with pytest.raises(GuestProtocolError, match=words):
        await lying(wire.ListResponse(names=names, more=more)).list(b"/x", b"")


async def test_a_listing_that_does_not_go_on_is_refused() -> None:
    """Otherwise it would be asked for again and again."""
    calls = lying(wire.ListResponse(names=joined(b"a"), more=True))

    async def through(what: Callable[[FileCalls], Awaitable[Any]]) -> Any:  # noqa: ANN401
        return await what(calls)

    with pytest.raises(GuestProtocolError, match="not in order"):
        await BoxPath(through, "/x").iterdir()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
async def test_an_errno_is_the_error_of_the_kernel(number: int) -> None:
    """Of the class that Python gives it."""
    with pytest.raises(OSError, match="/x") as caught:
        await lying(wire.StatResponse(error=number)).stat(b"/x", follow=True)
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))
    assert caught.value.filename == "/x"


async def test_an_errno_that_does_not_exist_is_refused() -> None:
    """There is nothing that it could mean."""
    with pytest.raises(GuestProtocolError, match="77777 is not an errno"):
        await lying(wire.ChangeResponse(error=77_777)).unlink(b"/x")


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentUnderTest]:
    """A real agent, in a process of its own."""
    with running_agent() as running:
        yield running


@pytest.mark.parametrize(
    ("method", "request_", "answer", "number"),
    [
        ("Read", wire.ReadRequest(path=b"etc", size=1), wire.ReadResponse, errno.EINVAL),
        ("Read", wire.ReadRequest(path=b"/etc\0x", size=1), wire.ReadResponse, errno.EINVAL),
        ("Read", wire.ReadRequest(path=b"/etc", size=0), wire.ReadResponse, errno.EINVAL),
        (
            "Read",
            wire.ReadRequest(path=b"/etc", size=FILE_PIECE_BYTES + 1),
            wire.ReadResponse,
            errno.EINVAL,
        ),
        ("Read", wire.ReadRequest(path=b"/etc", size=1), wire.ReadResponse, errno.EISDIR),
        ("Stat", wire.StatRequest(path=b""), wire.StatResponse, errno.EINVAL),
        ("List", wire.ListRequest(path=b"/nowhere"), wire.ListResponse, errno.ENOENT),
        ("Change", wire.ChangeRequest(path=b"/etc"), wire.ChangeResponse, errno.EINVAL),
        (
            "Write",
            wire.WriteRequest(path=b"/x", data=bytes(FILE_PIECE_BYTES + 1)),
            wire.WriteResponse,
            errno.EINVAL,
        ),
    ],
)
def test_a_question_that_breaks_a_rule_is_refused(
    agent: AgentUnderTest, method: str, request_: Message, answer: type[Message], number: int
) -> None:
    """With an errno, and nothing is left open."""
    before = agent.open_descriptors()

    async def scenario(channel: Channel) -> int:
        said: Any = await unary(channel, f"Files/{method}", request_, answer)
        error: int = said.error
        return error

    assert agent.run(scenario) == number
    assert agent.open_descriptors() <= before + 1


def test_a_fifo_holds_up_nobody(agent: AgentUnderTest, tmp_path: Path) -> None:
    """Opening it would wait for somebody at the other end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def scenario(channel: Channel) -> tuple[int, int]:
        path = os.fsencode(fifo)
        read = wire.ReadRequest(path=path, size=1)
        write = wire.WriteRequest(path=path, data=b"x")
        return (
            (await unary(channel, "Files/Read", read, wire.ReadResponse)).error,
            (await unary(channel, "Files/Write", write, wire.WriteResponse)).error,
        )

    assert agent.run(scenario) == (errno.EINVAL, errno.ENXIO)
