"""The shim's loop and its control link, in this process."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from boxlite.shim._arguments import Arguments, UsageError, box_dir
from boxlite.shim._control import ControlLink
from boxlite.shim._reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    first, second = socket.socketpair()
    yield first, second
    second.close()
    first.detach()


def test_timers_run_in_the_order_of_their_times() -> None:
    """Two of the ladder's never run in one turn the wrong way round."""
    reactor = Reactor()
    ran: list[str] = []
    reactor.after(0.002, lambda: ran.append("later"))
    reactor.after(0, lambda: ran.append("first"))
    while len(ran) < 2:
        reactor.turn()

    assert ran == ["first", "later"]


def test_a_descriptor_that_is_forgotten_in_a_turn_is_not_served_in_it() -> None:
    """Its owner has closed it, and the number may be somebody else's."""
    reactor = Reactor()
    ran: list[int] = []
    pipes = [os.pipe() for _ in range(2)]
    readers = [reader for reader, _ in pipes]

    def forget_both(_events: int) -> None:
        ran.append(1)
        for reader in readers:
            reactor.forget(reader)

    for reader, writer in pipes:
        os.write(writer, b"x")
        reactor.watch(reader, select.POLLIN, forget_both)
    reactor.turn()

    assert ran == [1]
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_a_line_that_does_not_fit_is_dropped_as_a_whole(pair: Pair) -> None:
    """Half a line would spoil the next one; what was taken arrives, however late."""
    reactor = Reactor()
    link = ControlLink(pair[0].fileno(), reactor, lambda _: True)
    line = b"x" * 1023 + b"\n"
    taken = 0
    while link.send(line):
        taken += 1
    received = b""
    while len(received) < taken * len(line):
        received += pair[1].recv(1 << 20)
        if len(received) < taken * len(line):
            reactor.turn()

    assert received == line * taken
    assert link.send(line)
    os.close(pair[0].fileno())


def test_a_reader_that_has_had_enough_still_writes(pair: Pair) -> None:
    """A guest that floods must still be told to stop."""
    reactor = Reactor()
    link = ControlLink(pair[0].fileno(), reactor, lambda _: False)
    pair[1].send(b"flood")
    reactor.turn()
    pair[1].send(b"more")

    assert link.send(b"stop\n")
    assert pair[1].recv(100) == b"stop\n"
    assert pair[0].recv(100) == b"more"
    os.close(pair[0].fileno())


@pytest.mark.parametrize("reading", [True, False])
def test_a_closed_port_takes_nothing_and_is_not_polled(pair: Pair, reading: bool) -> None:
    """A descriptor that hangs up for ever would keep the loop spinning."""
    reactor = Reactor()
    link = ControlLink(pair[0].fileno(), reactor, lambda _: reading)
    pair[1].send(b"last words")
    reactor.turn()
    pair[1].close()
    reactor.turn()

    assert not link.send(b"stop\n")
    assert reactor._callbacks == {}


def test_the_command_line_is_read() -> None:
    """The values of the host's side, and QEMU's words untouched."""
    words = "--box-dir /b --control 4 --console 5 --close 7 --close 8 --detach -- q -- --control"
    arguments = Arguments(words.split())

    assert (arguments.control, arguments.console, arguments.vm_fds) == (4, 5, [7, 8])
    assert arguments.detach
    assert (arguments.guest_seconds, arguments.term_seconds) == (3.0, 2.0)
    assert arguments.vm_argv == ["q", "--", "--control"]
    assert box_dir(words.split()) == "/b"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--box-dir /b --control 4 --console 5",
        "--box-dir /b --control 4 --console 5 --",
        "--box-dir /b --console 5 -- q",
        "--box-dir /b --control 4 -- q",
        "--box-dir /b --control -- q",
        "--box-dir /b --control 4 --console five -- q",
        "--box-dir /b --control 4 --console 5 --guest-seconds -1 -- q",
        "--box-dir /b --control 4 --console 5 --term-seconds soon -- q",
    ],
)
def test_a_command_line_that_lacks_something_is_refused(words: str) -> None:
    """The error names the argument."""
    with pytest.raises(UsageError, match="--"):
        Arguments(words.split())


@pytest.mark.parametrize("words", ["", "--box-dir", "--box-dir -- q", "-- --box-dir /b"])
def test_a_missing_box_directory_is_refused(words: str) -> None:
    """QEMU's own words are not searched for it."""
    with pytest.raises(UsageError, match="--box-dir"):
        box_dir(words.split())
