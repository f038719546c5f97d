"""The shim's conversation with QEMU's monitor, with the test in QEMU's place."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from boxlite.shim._monitor import Monitor
from boxlite.shim._reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
OK = b'{"return": {}}\r\n'


class Conversation:
    """A monitor, what it told, and QEMU's end."""

    def __init__(self) -> None:
        ours, self.qemu = socket.socketpair()
        self.qemu.settimeout(5)
        self.reactor = Reactor()
        self.saved = 0
        self.resumed = 0
        self.failures: list[str] = []
        self.monitor = Monitor(
            ours.detach(),
            self.reactor,
            on_resumed=self._see_resumed,
            on_saved=self._see_saved,
            on_failure=self.failures.append,
        )

    def _see_resumed(self) -> None:
        self.resumed += 1

    def _see_saved(self) -> None:
        self.saved += 1

    def heard(self) -> list[dict[str, Any]]:
        """Return the commands that have been sent."""
        return [json.loads(line) for line in self.qemu.recv(65536).splitlines()]

    def say(self, data: bytes) -> None:
        """Answer, and let the monitor hear it."""
        self.qemu.sendall(data)
        self.turn()

    def turn(self) -> None:
        """Have the loop turn once, even when there is nothing left to watch."""
        self.reactor.after(0.0, lambda: None)
        self.reactor.turn()


@pytest.fixture
def talk() -> Iterator[Conversation]:
    """A conversation."""
    talk = Conversation()
    yield talk
    talk.qemu.close()
    talk.turn()


def test_a_restore_is_three_commands_at_once(talk: Conversation) -> None:
    """Nothing waits for QEMU; its answers, in any portions, are no failure."""
    talk.monitor.restore(9)

    assert talk.heard() == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {
            "execute": "migrate-set-capabilities",
            "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
        },
        {"execute": "migrate-incoming", "arguments": {"uri": "fd:9"}},
    ]
    for byte in GREETING + OK * 3:
        talk.say(bytes([byte]))
    assert talk.resumed == 0
    talk.say(b'{"event": "RESUME"}\r\n')
    assert talk.resumed == 1
    assert talk.failures == []
    assert talk.saved == 0


def test_a_save_hands_the_file_over_and_ends_with_qemus_word(talk: Conversation) -> None:
    """The file comes as a descriptor; this side closes its own."""
    reading, writing = os.pipe()
    talk.monitor.save(writing)
    data, fds, _, _ = socket.recv_fds(talk.qemu, 65536, 4)
    data += b"".join(json.dumps(command).encode() + b"\n" for command in talk.heard())
    commands = [json.loads(line) for line in data.splitlines()]

    assert [command["execute"] for command in commands] == [
        "qmp_capabilities",
        "migrate-set-capabilities",
        "getfd",
        "migrate",
    ]
    assert {entry["capability"] for entry in commands[1]["arguments"]["capabilities"]} == {
        "x-ignore-shared",
        "events",
    }
    assert commands[3]["arguments"]["uri"] == f"fd:{commands[2]['arguments']['fdname']}"
    for fd in fds:
        os.close(fd)
    assert os.read(reading, 1) == b"", "somebody else still has the file open"
    os.close(reading)

    talk.say(GREETING + OK * 4 + b'{"event": "MIGRATION", "data": {"status": "active"}}\r\n')
    assert talk.saved == 0
    talk.say(b'{"event": "MIGRATION", "data": {"status": "completed"}}\r\n')
    assert talk.saved == 1
    assert talk.failures == []


def test_a_machine_that_was_restored_can_be_saved(talk: Conversation) -> None:
    """QEMU takes the negotiation once; the state that it loaded is not taken for saved."""
    talk.monitor.restore(9)
    commands = talk.heard()
    talk.say(GREETING + OK * 3 + b'{"event": "RESUME"}\r\n')
    assert (talk.resumed, talk.saved) == (1, 0)
    reading, writing = os.pipe()
    os.close(reading)
    talk.monitor.save(writing)
    data, fds, _, _ = socket.recv_fds(talk.qemu, 65536, 4)
    commands += [json.loads(line) for line in data.splitlines()] + talk.heard()
    for fd in fds:
        os.close(fd)

    assert [command["execute"] for command in commands] == [
        *("qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"),
        *("migrate-set-capabilities", "getfd", "migrate"),
    ]
    talk.say(OK * 3 + b'{"event": "STOP"}\r\n')
    talk.say(b'{"event": "MIGRATION", "data": {"status": "completed"}}\r\n')
    assert (talk.resumed, talk.saved, talk.failures) == (1, 1, [])


@pytest.mark.parametrize(
    "line",
    [
        b'{"error": {"class": "GenericError", "desc": "Parameter unknown"}}\r\n',
        b'{"event": "MIGRATION", "data": {"status": "failed"}}\r\n',
    ],
)
def test_what_qemu_refuses_is_told_in_its_words(talk: Conversation, line: bytes) -> None:
    """Otherwise nothing would happen until the deadline."""
    talk.monitor.restore(9)
    talk.say(GREETING + line)

    assert len(talk.failures) == 1
    assert "Parameter unknown" in talk.failures[0] or "state" in talk.failures[0]


@pytest.mark.parametrize(
    "noise", [b"\n\n", b"[]\n", b"{\n", b'"error"\n', b"[" * 3000 + b"\n", b"\xff\n"]
)
def test_noise_is_passed_over(talk: Conversation, noise: bytes) -> None:
    """QEMU says many things that are of no concern, and a guest may have taken it over."""
    talk.say(noise)
    talk.say(b'{"event": "MIGRATION", "data": {"status": "completed"}}\n')

    assert talk.failures == []
    assert talk.saved == 1


def test_an_endless_line_is_not_kept(talk: Conversation) -> None:
    """The connection is closed instead."""
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(64):
            talk.say(b"x" * 4096)


def test_a_qemu_that_is_gone_is_no_failure_of_the_template(talk: Conversation) -> None:
    """How it died shows elsewhere, and is the better story."""
    talk.qemu.close()
    talk.monitor.restore(9)

    assert talk.failures == []
