"""QEMU's monitor: loading a saved machine state, or saving one for a template.

QMP is JSON, one object to a line (QEMU's docs/interop/qmp-spec). Commands are
answered in the order in which they were sent, so they are all sent at once: a
restore costs no round trip.
"""

from __future__ import annotations

import json
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._reactor import Reactor

_READ_BYTES: Final = 4096
#: The longest line of QEMU's that is due here has some hundred bytes.
_LINE_BYTES: Final = 64 << 10
_TEXT_CHARACTERS: Final = 500
_STATE_NAME: Final = "state"


class Monitor:
    """The shim's end of the monitor's socket pair.

    Args:
        fd: The socket; closed when the other end is.
        reactor: What calls back.
        on_resumed: Called when a restored machine has begun to run.
        on_saved: Called once the state has been saved; the VM then stands still.
        on_failure: Told in a sentence what QEMU refused.
    """

    def __init__(
        self,
        fd: int,
        reactor: Reactor,
        *,
        on_resumed: Callable[[], None],
        on_saved: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        os.set_blocking(fd, False)
        self._reactor = reactor
        self._on_resumed = on_resumed
        self._on_saved = on_saved
        self._on_failure = on_failure
        self._partial = b""
        self._negotiated = False
        reactor.watch(fd, select.POLLIN, self._receive)

    def restore(self, state_fd: int) -> None:
        """Have QEMU load a state, and run the machine when it has.

        The machine's memory is not in the state but in a file that QEMU maps.

        Args:
            state_fd: The state's descriptor in QEMU.
        """
        self._negotiate()
        self._send(
            _capabilities("x-ignore-shared"),
            _command("migrate-incoming", uri=f"fd:{state_fd}"),
        )

    def save(self, state_fd: int) -> None:
        """Have QEMU save its state, without the memory, and stand still.

        The machine is not stopped first: a state remembers whether its machine
        ran, and one that did goes on by itself when it is restored.

        Args:
            state_fd: An empty file's descriptor here; closed.
        """
        self._negotiate()
        self._send(_capabilities("x-ignore-shared", "events"))
        with suppress(OSError):
            socket.send_fds(self._socket, [_command("getfd", fdname=_STATE_NAME)], [state_fd])
        os.close(state_fd)
        self._send(_command("migrate", uri=f"fd:{_STATE_NAME}"))

    def _negotiate(self) -> None:
        # Once: QEMU refuses a second time.
        if not self._negotiated:
            self._negotiated = True
            self._send(_command("qmp_capabilities"))

    def _send(self, *commands: bytes) -> None:
        # A few hundred bytes, which a socket that was just made takes at once. If it does
        # not, QEMU has died, and how it died is the better story.
        with suppress(OSError):
            self._socket.sendall(b"".join(commands))

    def _receive(self, _events: int) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data or len(self._partial) > _LINE_BYTES:
            self._reactor.forget(self._socket.fileno())
            self._socket.close()
        for line in lines:
            self._hear(_parse(line))

    def _hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"error": {"desc": str(words)}}:
                self._on_failure(f"QEMU refused it: {words[:_TEXT_CHARACTERS]}")
            case {"event": "RESUME"}:
                self._on_resumed()
            case {"event": "MIGRATION", "data": {"status": "completed"}}:
                self._on_saved()
            case {"event": "MIGRATION", "data": {"status": "failed"}}:
                self._on_failure("QEMU could not save or load the machine's state")


def _command(name: str, **arguments: object) -> bytes:
    return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"


def _capabilities(*names: str) -> bytes:
    enabled = [{"capability": name, "state": True} for name in names]
    return _command("migrate-set-capabilities", capabilities=enabled)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
