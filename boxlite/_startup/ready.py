"""The race: the guest is ready, or its shim has died, or the deadline has passed.

Three contenders run in one nursery, and the first to finish cancels the others:

1. the *ready* contender accepts connections on the ready socket until one
   proves that this start's guest is ready;
2. the *exit* contender waits for the shim's pidfd;
3. the *deadline* contender sleeps.

**Precedence.** Of contenders that finish in the same tick of the scheduler, ready
beats exit and exit beats deadline. Then the facts are looked at once more,
whoever won: a shim that has ended by now is told as a death, because a guest that
signalled and died is a crash, not a broken pipe later on; and an announcement
that was proven before the deadline's victory was complete is a success. A
cancellation from outside that arrives before the race is decided beats them all.

**Authentication.** Any process of this user can connect to a socket in the
home. Only a connection from the same user that sends this start's nonce counts;
others are dropped, each within a second, while the listener goes on.
"""

from __future__ import annotations

import enum
import hmac
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from boxlite._errors import BoxStartError, BoxStartTimeoutError, HostError, InvalidOptionError
from boxlite._scopes import open_nursery_unwrapped
from boxlite._sockets import bind_unix

from .crash import Circumstances, crash_report, timeout_report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from boxlite._process import ExitWatch

_GREETING_BYTES: Final = 64
_STRANGER_SECONDS: Final = 1.0
_STRANGERS_AT_ONCE: Final = 16
_BACKLOG: Final = 16


class Outcome(enum.IntEnum):
    """How the race ended; a smaller one takes precedence."""

    READY = 1
    EXIT = 2
    DEADLINE = 3


@attrs.frozen
class UnixTransport:
    """A byte stream over a Unix socket at a path."""

    path: Path


@attrs.frozen
class VsockTransport:
    """A byte stream over a virtual socket: a guest's context id and a port."""

    cid: int
    port: int


class ReadySocket:
    """The listening socket on which the shim announces that the guest is ready.

    It is bound before the shim is started, so that no guest is too quick for
    it. A stale socket file is removed first. Closing it unlinks the file.

    Attributes:
        path: Where it listens.
        announced: A genuine announcement has come.

    Args:
        transport: Where to listen. Only a Unix socket can carry the signal.
        nonce: What a genuine announcement carries.

    Raises:
        InvalidOptionError: The transport is not a Unix socket.
        HostError: The socket could not be bound.
    """

    def __init__(self, transport: UnixTransport | VsockTransport, *, nonce: str) -> None:
        if not isinstance(transport, UnixTransport):
            allowed = "a UnixTransport: nothing else can carry the ready signal"
            raise InvalidOptionError("ready transport", transport, allowed)
        self.path = transport.path
        self.announced = False
        self._expected = f"ready {nonce}\n".encode()
        self._socket = trio.socket.from_stdlib_socket(bind_unix(self.path, backlog=_BACKLOG))

    async def wait_announced(self) -> None:
        """Return when a genuine announcement has come. Strangers do not matter.

        Raises:
            HostError: The system could not accept a connection.
        """
        # Taken before a connection is: a flood of them waits in the kernel's queue, and
        # not in descriptors of this program.
        free = trio.Semaphore(_STRANGERS_AT_ONCE)
        async with open_nursery_unwrapped() as nursery:

            async def greet(peer: trio.socket.SocketType) -> None:
                with peer, trio.move_on_after(_STRANGER_SECONDS):
                    if await self._is_genuine(peer):
                        self.announced = True
                        nursery.cancel_scope.cancel()
                free.release()

            while True:
                await free.acquire()
                peer = await self._accept()
                nursery.start_soon(greet, peer)

    async def _accept(self) -> trio.socket.SocketType:
        while True:
            try:
                peer, _ = await self._socket.accept()
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                raise HostError(
                    f"the ready socket {self.path} cannot accept a connection: {exc.strerror}",
                    fix="If descriptors ran out, raise the limit (ulimit -n).",
                ) from exc
            return peer

    async def _is_genuine(self, peer: trio.socket.SocketType) -> bool:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("3i", credentials)
        if uid != os.geteuid():
            return False
        received = b""
        with suppress(OSError):
            while len(received) < _GREETING_BYTES and not received.endswith(b"\n"):
                more = await peer.recv(_GREETING_BYTES - len(received))
                if not more:
                    break
                received += more
        return hmac.compare_digest(received, self._expected)

    def close(self) -> None:
        """Stop listening and remove the socket file. Idempotent."""
        self._socket.close()
        with suppress(OSError):
            self.path.unlink()


async def race(
    ready: Callable[[], Awaitable[None]],
    ended: Callable[[], Awaitable[None]],
    *,
    deadline: float,
) -> Outcome:
    """Run the three contenders and return the outcome that takes precedence.

    Args:
        ready: Returns when the guest is ready.
        ended: Returns when the shim has ended.
        deadline: When to give up, on Trio's clock.

    Raises:
        Exception: What a contender raised, unwrapped.
    """
    finished: set[Outcome] = set()
    failure: Exception | None = None

    async with trio.open_nursery() as nursery:

        async def contend(outcome: Outcome, run: Callable[[], Awaitable[None]]) -> None:
            nonlocal failure
            try:
                await run()
            except Exception as exc:  # noqa: BLE001 - raised again below, outside the nursery
                failure = failure or exc
            else:
                finished.add(outcome)
            # Whoever was woken in this very tick gets to finish in it.
            await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()

        nursery.start_soon(contend, Outcome.READY, ready)
        nursery.start_soon(contend, Outcome.EXIT, ended)
        nursery.start_soon(contend, Outcome.DEADLINE, lambda: trio.sleep_until(deadline))

    if finished:
        return min(finished)
    assert failure is not None
    raise failure


async def wait_until_ready(
    listener: ReadySocket,
    *,
    shim: ExitWatch | None,
    reap: Callable[[], int | None],
    seconds: float,
    about: Circumstances,
) -> None:
    """Return when the guest is ready; the race is the whole of it.

    Cancelling it leaves nothing behind: the listener stays the caller's.

    Args:
        listener: The bound ready socket.
        shim: The shim's exit, or None when no process is known: then only the
            announcement and the deadline count.
        reap: Called once the shim has ended; returns its exit code if known.
        seconds: How long the guest may take.
        about: What the reports should say of the box.

    Raises:
        BoxStartError: The shim ended first.
        BoxStartTimeoutError: Neither happened in time.
        HostError: The system could not accept a connection.
    """
    outcome = await race(
        listener.wait_announced,
        trio.sleep_forever if shim is None else shim.wait,
        deadline=trio.current_time() + seconds,
    )
    if shim is not None and shim.has_ended():
        raise BoxStartError(crash_report(about, phase="start", exit_code=reap()))
    if outcome is Outcome.DEADLINE and not listener.announced:
        raise BoxStartTimeoutError(
            timeout_report(about, seconds=seconds, shim_alive=None if shim is None else True)
        )
