"""The whole agent behind a port on which hosts come and go, spoken to in HTTP/2 frames."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import pytest
from guest_under_test import (
    OPENING,
    AgentUnderTest,
    ProcessWatch,
    leave,
    running_agent,
    start_request,
)
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, StreamEnded

from boxlite._rpc._generated.boxlite import v1 as wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from betterproto2 import Message

T = TypeVar("T", bound=Event)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentUnderTest]:
    """One agent for all tests here: that they follow each other on its port is the point."""
    with running_agent() as running:
        yield running


class Host:
    """A host process that has just connected to the port."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self._events: deque[Event] = deque()
        self._h2.initiate_connection()
        self._port.send(OPENING)
        self.flush()

    def flush(self) -> None:
        """Send what is due."""
        if data := self._h2.data_to_send():
            self._port.send(data)

    def call(self, method: str, request: Message, *, end: bool) -> None:
        """Begin a call and send its first message."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/boxlite.v1.{method}"),
            (":authority", "guest"),
            ("te", "trailers"),
            ("content-type", "application/grpc+proto"),
        ]
        self._h2.send_headers(stream, headers)
        body = bytes(request)
        self._h2.send_data(stream, struct.pack(">?I", False, len(body)) + body, end_stream=end)
        self.flush()

    def next(self, kind: type[T]) -> T:
        """Return the next event of a kind; the port's own time limit ends the wait."""
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, kind):
                    return event
            self._events += self._h2.receive_data(self._port.recv(1 << 20))
            self.flush()

    def message(self) -> bytes:
        """Return the next message, which is in one frame."""
        return self.next(DataReceived).data[5:]

    def ping(self) -> wire.PingResponse:
        """Make one whole call."""
        self.call("Guest/Ping", wire.PingRequest(payload=b"hello"), end=True)
        answer = wire.PingResponse.parse(self.message())
        self.next(StreamEnded)
        return answer

    def start(self, *argv: str) -> int:
        """Start a command and return its process id."""
        self.call("Execution/Exec", start_request(*argv), end=False)
        started = wire.ExecResponse.parse(self.message()).started
        assert started is not None
        return started.pid


def test_hosts_follow_each_other_on_one_port(agent: AgentUnderTest) -> None:
    """Each finds the same boot of the same agent."""
    boots = set()
    for _ in range(5):
        boots.add(Host(agent.port).ping().boot_id)
        leave(agent.port)

    assert len(boots) == 1


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_the_commands_of_a_host_that_went_away_are_killed(
    agent: AgentUnderTest, seen: bool
) -> None:
    """Also if the next host is there before the guest has noticed that the first is gone."""
    host = Host(agent.port)
    watch = ProcessWatch(host.start("sleep", "1000"))
    if seen:
        leave(agent.port)

    assert Host(agent.port).ping().payload == b"hello"
    watch.wait()


def test_a_host_that_breaks_http2_is_told(agent: AgentUnderTest) -> None:
    """It gets GOAWAY and is not listened to any more; the next host is."""
    host = Host(agent.port)
    host.ping()
    agent.port.send(bytes(9))  # A DATA frame of the connection itself.

    assert host.next(ConnectionTerminated).error_code

    assert Host(agent.port).ping().payload == b"hello"
