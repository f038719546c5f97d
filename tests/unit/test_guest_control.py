"""The control port: what the agent takes for a message, and what it makes of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest
from guest_under_test import NONCE, SECONDS, leave
from hypothesis import given, strategies as st

from boxlite._wire import CONTROL_LINE_BYTES, ENTROPY_BYTES
from boxlite.guest.control import (
    ControlError,
    ControlPort,
    Hello,
    LineSplitter,
    Stop,
    parse_line,
)
from boxlite.guest.edges import EdgePoller

ENTROPY = bytes(range(ENTROPY_BYTES))


def hello(**changes: object) -> bytes:
    """Return a greeting with some fields changed; ``None`` leaves one out."""
    message = {
        "type": "hello",
        "nonce": NONCE,
        "unix_time_ns": 17,
        "entropy": ENTROPY.hex(),
        "hostname": "box-1",
        "machine_id": NONCE,
    }
    message |= changes
    return json.dumps({key: value for key, value in message.items() if value is not None}).encode()


def test_a_greeting_is_understood() -> None:
    """All of its fields arrive."""
    assert parse_line(hello()) == Hello(NONCE, 17, ENTROPY, "box-1", NONCE)


def test_a_stop_is_understood() -> None:
    """It has no fields, and others do not disturb it."""
    assert parse_line(b'{"type": "stop", "later": 1}') == Stop()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * CONTROL_LINE_BYTES, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", '"type"'),
        (hello(type="waiting"), '"type"'),
        (hello(nonce=None), '"nonce"'),
        (hello(nonce=NONCE.upper()), '"nonce"'),
        (hello(nonce=NONCE + "\n"), '"nonce"'),
        (hello(nonce=17), '"nonce"'),
        (hello(unix_time_ns=None), '"unix_time_ns"'),
        (hello(unix_time_ns=True), '"unix_time_ns"'),
        (hello(unix_time_ns=1.5), '"unix_time_ns"'),
        (hello(unix_time_ns=-1), '"unix_time_ns"'),
        (hello(unix_time_ns=1 << 63), '"unix_time_ns"'),
        (hello(entropy="00"), '"entropy"'),
        (hello(hostname=""), '"hostname"'),
        (hello(hostname="a" * 64), '"hostname"'),
        (hello(hostname="dot.ted"), '"hostname"'),
        (hello(hostname="new\nline"), '"hostname"'),
        (hello(machine_id="F" * 32), '"machine_id"'),
        (hello(machine_id=None), '"machine_id"'),
    ],
)
def test_a_line_that_is_no_message_is_named(line: bytes, complaint: str) -> None:
    """The complaint says which part of it is wrong."""
    with pytest.raises(ControlError, match=complaint):
        parse_line(line)


FIELDS = st.sampled_from(["type", "nonce", "unix_time_ns", "entropy"]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=8,
)
TYPES = st.sampled_from(["hello", "stop", "ready"])


@given(
    st.binary(max_size=200)
    | st.builds(lambda value: json.dumps(value).encode(), JSON)
    | st.builds(
        lambda kind, rest: json.dumps(rest | {"type": kind}).encode(),
        TYPES,
        st.dictionaries(FIELDS, JSON, max_size=4),
    )
)
def test_any_line_is_a_message_or_a_complaint(line: bytes) -> None:
    """Nothing else comes out, whatever goes in."""
    try:
        message = parse_line(line)
    except ControlError:
        return
    assert isinstance(message, Stop | Hello)


@given(
    lengths=st.lists(
        st.integers(min_value=0, max_value=20)
        | st.sampled_from([CONTROL_LINE_BYTES + extra for extra in (-1, 0, 1, 10_000)]),
        max_size=8,
    ),
    cuts=st.lists(st.integers(min_value=1, max_value=2 * CONTROL_LINE_BYTES), min_size=1),
)
def test_lines_do_not_depend_on_how_they_arrive(lengths: list[int], cuts: list[int]) -> None:
    """Lines that are too long are dropped, the others come out whole and in order."""
    lines = [b"%c" % (ord("a") + number) * length for number, length in enumerate(lengths)]
    data = b"".join(line + b"\n" for line in lines)
    splitter = LineSplitter()
    found = []
    while data:
        cut = cuts[0]
        cuts = [*cuts[1:], cut]
        found += splitter.feed(data[:cut])
        data = data[cut:]

    assert found == [line for line in lines if len(line) <= CONTROL_LINE_BYTES]


def test_an_endless_line_takes_bounded_memory() -> None:
    """What cannot become a line any more is not kept."""
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * CONTROL_LINE_BYTES) == []
    assert len(splitter._partial) <= CONTROL_LINE_BYTES

    assert splitter.feed(b"x\nshort\n") == [b"short"]


def packet_port() -> tuple[socket.socket, ControlPort, socket.socket]:
    """Return the host's end of a port, the port, and what must stay open for it."""
    host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host.settimeout(SECONDS)
    guest.setblocking(False)
    return host, ControlPort(guest.fileno()), guest


def test_the_agent_waits_for_a_greeting_through_anything_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hosts that go away, half lines and nonsense neither end the wait nor spoil the greeting."""
    host, control, guest = packet_port()
    with host, guest:
        greeted: list[Hello] = []
        prepared: list[str] = []
        waiting = threading.Thread(
            target=lambda: greeted.append(control.wait_hello(prepared.append))
        )
        waiting.start()
        assert json.loads(host.recv(4096))["type"] == "waiting"
        host.send(b"\0\xff{\n")
        host.send(hello()[:20])
        leave(host)  # This host goes, and its half line with it.
        host.send(b'{"type": "stop"}\n')
        assert json.loads(host.recv(4096))["type"] == "waiting"  # The next one is told as well.
        host.send(b'{"type": "prepare", "directory": "/srv"}\n')
        assert json.loads(host.recv(4096))["type"] == "waiting"  # It has done so, and waits again.
        assert prepared == ["/srv"]
        host.send(hello(unix_time_ns=18) + b"\n")
        waiting.join(SECONDS)
        control.send_ready(NONCE)

        assert greeted == [Hello(NONCE, 18, ENTROPY, "box-1", NONCE)]
        assert json.loads(host.recv(4096)) == {"type": "ready", "nonce": NONCE}
    assert "ignored a line on the control port: it is not JSON" in capsys.readouterr().out


def test_a_stop_right_behind_the_greeting_is_not_lost() -> None:
    """It may be in the same read, before anybody watches the port."""
    host, control, guest = packet_port()
    stops: list[object] = []

    async def watch() -> None:
        poller = EdgePoller(asyncio.get_running_loop())
        control.watch(poller, lambda: stops.append(True))
        poller.close()

    with host, guest:
        host.send(hello() + b'\n{"type": "stop"}\n')
        assert control.wait_hello(stops.append) == Hello(NONCE, 17, ENTROPY, "box-1", NONCE)
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(watch())

    assert stops == [True]
