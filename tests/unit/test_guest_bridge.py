"""Connections on a port whose hosts come and go.

A ``SOCK_SEQPACKET`` pair plays the port: one read returns at most one packet, as
one read of the device returns at most one buffer, and an empty packet is what
the guest reads while no host is connected. After one of these the guest waits for
an edge, so what the next host sends comes in a step of its own.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from guest_under_test import SECONDS
from hypothesis import given, strategies as st

from boxlite.guest.bridge import AgentPort
from boxlite.guest.edges import EdgePoller
from boxlite.guest.transport import PortTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

ABSENT = b""
OPENING = b"boxlite 0123456789abcdef\n"
WRITE_BYTES = 32_768  # What the virtio_console driver takes at once.


class Recorder(asyncio.Protocol):
    """Notes what a connection tells its protocol."""

    def __init__(self) -> None:
        self.transport: PortTransport
        self.data = b""
        self.lost: BaseException | str | None = "not lost"
        self._paused = False

    def has_room(self) -> bool:
        """Whether the transport wants more."""
        return not self._paused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, PortTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Note the data, or fail if that is what it says."""
        if data == b"trouble":
            raise ValueError("a bug in the protocol")
        self.data += data

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end, which comes once."""
        assert self.lost == "not lost"
        self.lost = exc

    def pause_writing(self) -> None:
        """Note it."""
        self._paused = True

    def resume_writing(self) -> None:
        """Note it."""
        self._paused = False


class PortUnderTest:
    """A port with a loop of its own, and the host's end of it."""

    def __init__(self) -> None:
        self.connections: list[Recorder] = []
        loop = asyncio.get_running_loop()
        self.host, self._guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host.setblocking(False)
        self._guest.setblocking(False)
        self._poller = EdgePoller(loop)
        self.port = AgentPort("port", self._guest.fileno(), self._connect, self._poller, loop)
        self.port.admit(OPENING)

    def _connect(self) -> Recorder:
        self.connections.append(Recorder())
        return self.connections[-1]

    async def send(self, *packets: bytes) -> None:
        """Have the guest read these packets, all of them at once."""
        for packet in packets:
            self.host.send(packet)
        await self.settle()

    async def settle(self) -> None:
        """Let the loop run until it has nothing more to do."""
        for _ in range(10):
            await asyncio.sleep(0)

    def received(self) -> list[bytes]:
        """Return the packets that the guest has written."""
        packets = []
        while True:
            try:
                packets.append(self.host.recv(1 << 20))
            except BlockingIOError:
                return packets

    def close(self) -> None:
        """Close everything."""
        self._poller.close()
        self.host.close()
        self._guest.close()


def with_port(scenario: Callable[[PortUnderTest], Awaitable[None]]) -> None:
    """Run a scenario in a plain asyncio loop."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            port = PortUnderTest()
            try:
                await scenario(port)
            finally:
                port.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(bounded())


def test_a_connection_begins_with_the_opening() -> None:
    """Whatever came before it belongs to a host that has gone."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(b"remains", b"more remains")
        assert not port.connections
        await port.send(OPENING + b"one", b"two")
        assert [each.data for each in port.connections] == [b"onetwo"]

    with_port(scenario)


def test_an_opening_may_come_in_pieces() -> None:
    """As long as it begins the first of them."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(b"remains", OPENING[:5], OPENING[5:20], OPENING[20:] + b"x")
        assert [each.data for each in port.connections] == [b"x"]

    with_port(scenario)


def test_a_host_that_goes_away_ends_its_connection() -> None:
    """What it sent last is delivered before; the next host gets a connection of its own."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING, b"last words", ABSENT)
        assert port.connections[0].data.endswith(b"last words")
        assert port.connections[0].lost is None
        await port.send(ABSENT)
        await port.send(b"remains", OPENING + b"second")
        assert [each.data for each in port.connections[1:]] == [b"second"]
        assert port.connections[1].lost == "not lost"

    with_port(scenario)


def test_a_host_that_replaces_another_unseen_ends_its_connection() -> None:
    """Nothing was read in between, but the new host's opening begins a buffer."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING + b"first", b"half a fra", OPENING + b"second")
        assert [each.data for each in port.connections] == [
            b"firsthalf a fra",
            b"second",
        ]
        assert [each.lost for each in port.connections] == [None, "not lost"]

    with_port(scenario)


def test_http2s_preface_is_data_like_any_other() -> None:
    """A file may be made of it, and so begin a buffer with it; it is no secret."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING, b"a frame of ", preface, preface)
        assert [each.data for each in port.connections] == [b"a frame of " + 2 * preface]

    with_port(scenario)


def test_nobody_connects_before_it_is_known_who_may() -> None:
    """A template's agent waits for a host that it has no nonce of."""

    async def scenario(port: PortUnderTest) -> None:
        port.port.admit(b"")
        await port.send(OPENING, b"x", OPENING)
        assert not port.connections

    with_port(scenario)


def test_an_opening_within_a_buffer_is_data() -> None:
    """A command's input may contain one."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING, b"x" + OPENING)
        assert [each.data for each in port.connections] == [b"x" + OPENING]

    with_port(scenario)


@given(hosts=st.lists(st.lists(st.binary(min_size=1, max_size=50), max_size=5), max_size=5))
def test_each_host_reaches_a_connection_of_its_own(hosts: list[list[bytes]]) -> None:
    """However they follow each other, no byte of one gets into the connection of another."""
    hosts = [[part for part in host if not part.startswith(OPENING)] for host in hosts]

    async def scenario(port: PortUnderTest) -> None:
        for number, host in enumerate(hosts):
            await port.send(OPENING, *host, *([ABSENT] if number % 2 else []))
        assert [each.data for each in port.connections] == [b"".join(host) for host in hosts]

    with_port(scenario)


def test_an_error_in_the_protocol_ends_that_connection_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is reported with its traceback, and the port is there for the next host."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        await port.send(b"trouble")
        await port.send(b"more of the same connection")
        assert isinstance(port.connections[0].lost, ValueError)
        assert port.connections[0].data == b""
        await port.send(OPENING + b"next")
        assert port.connections[1].data == b"next"

    with_port(scenario)
    captured = capsys.readouterr()
    assert "port: dropped the connection: ValueError: a bug in the protocol" in captured.out
    assert "Traceback" in captured.err


def test_a_host_that_goes_while_something_is_written_ends_its_connection_only() -> None:
    """The write that fails is what ends it."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        transport = port.connections[0].transport
        port.host.close()
        transport.write(b"nobody hears this")
        await port.settle()
        assert port.connections[0].lost != "not lost"
        assert transport.get_write_buffer_size() == 0

    with_port(scenario)


def test_writes_of_one_turn_leave_together() -> None:
    """Each write of the port wakes the host: an answer of several frames is one."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        for part in (b"one", b"two", b"three"):
            port.connections[0].transport.write(part)
        await port.settle()
        assert port.received() == [b"onetwothree"]

    with_port(scenario)


def test_a_port_that_takes_no_more_pauses_the_protocol() -> None:
    """Nothing is lost, what is queued is bounded by the pause, and writes fit the driver."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        connection = port.connections[0]
        data = b"".join(b"%08d" % number for number in range(1 << 17))
        at = 0
        while connection.has_room():
            connection.transport.write(data[at : at + 10_000])
            at += 10_000
            await port.settle()
        assert connection.transport.get_write_buffer_size() <= 1 << 18
        packets: list[bytes] = []
        while not connection.has_room():
            packets += port.received()
            await port.settle()
        while connection.transport.get_write_buffer_size():
            packets += port.received()
            await port.settle()
        packets += port.received()
        assert b"".join(packets) == data[:at]
        assert max(map(len, packets)) <= WRITE_BYTES

    with_port(scenario)


def test_a_connection_that_is_closed_sends_what_is_queued_and_hears_nothing_more() -> None:
    """The host learns why before the connection ends."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        connection = port.connections[0]
        connection.transport.write(b"goodbye")
        connection.transport.close()
        assert connection.transport.is_closing()
        assert connection.lost == "not lost"
        await port.send(b"too late")
        connection.transport.write(b"too late as well")
        await port.settle()
        assert port.received() == [b"goodbye"]
        assert connection.data == b""
        assert connection.lost is None

    with_port(scenario)


def test_a_blocked_connection_leaves_nothing_to_its_successor() -> None:
    """What the last host did not read must not reach the next one."""

    async def scenario(port: PortUnderTest) -> None:
        await port.send(OPENING)
        first = port.connections[0]
        while first.has_room():
            first.transport.write(b"1" * 10_000)
            await port.settle()
        await port.send(ABSENT)
        assert first.transport.get_write_buffer_size() == 0
        port.received()
        await port.send(OPENING)
        port.connections[1].transport.write(b"2")
        await port.settle()
        assert port.received() == [b"2"]

    with_port(scenario)
