"""The session with one guest: what boxlite can ask of it.

Importing this module imports trio-asyncio, which changes asyncio for the whole
process. So nothing imports it before a box is started.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio
import trio_asyncio  # type: ignore[import-untyped]
from grpclib.const import Cardinality

from boxlite._errors import GuestProtocolError, GuestTimeoutError, InternalError, InvalidOptionError
from boxlite._scopes import open_nursery_unwrapped
from boxlite._wire import CONNECTION_OPENING, PING_PAYLOAD_BYTES

from ._generated.boxlite import v1 as wire
from .channel import GuestChannel
from .convert import (
    GuestInfo,
    Pong,
    copy_in,
    copy_out,
    exec_start,
    executions_ended,
    guest_info,
    pong,
    set_up,
)
from .execution import open_execution
from .files import FileCalls
from .link import Link
from .lost import Lost
from .transport import StreamTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    import betterproto2

    from boxlite._command import Command
    from boxlite._volume import Volume

    from .execution import RawExecution

INFO_SECONDS: Final = 10.0
PING_SECONDS: Final = 5.0
#: Growing a file system of terabytes takes some of them.
SET_UP_SECONDS: Final = 30.0
#: On top of the grace period.
SHUTDOWN_SECONDS: Final = 5.0
#: The most that the guest takes (``guest.proto``).
GRACE_SECONDS_MAX: Final = 10.0
#: How long calls that were cut off may take to unwind before the loop closes.
SETTLE_SECONDS: Final = 1.0

AnswerT = TypeVar("AnswerT", bound="betterproto2.Message")


class GuestSession:
    """Makes calls to one guest over one connection.

    Made by :func:`open_session` or :func:`serve_session`. Any number of tasks
    may use it at once, whatever nursery they run in. Each call has a deadline
    and may be cancelled; neither disturbs another call.

    Attributes:
        files: The calls about files.
        lost: Set when the connection has ended, with the cause. It never comes
            back: from then on each call raises that cause.
    """

    def __init__(self, link: Link) -> None:
        self.lost = link.lost
        self.files = FileCalls(self._call)
        self._link = link

    def __repr__(self) -> str:
        return f"<GuestSession {'lost' if self.lost.is_set() else 'open'}>"

    @property
    def open_calls(self) -> int:
        """The calls that hold a stream of the connection, for diagnosis."""
        return self._link.channel.open_streams

    async def info(self, *, timeout: float = INFO_SECONDS) -> GuestInfo:
        """Ask the guest what it is.

        Args:
            timeout: Seconds. Default 10.

        Raises:
            GuestTimeoutError, GuestLostError, GuestProtocolError: As for every call.
        """
        return guest_info(
            await self._call("Guest/Info", wire.InfoRequest(), wire.InfoResponse, timeout)
        )

    async def ping(self, payload: bytes = b"", *, timeout: float = PING_SECONDS) -> Pong:
        """Ask the guest for a sign of life.

        Args:
            payload: Comes back with the answer; at most 1,024 bytes.
            timeout: Seconds. Default 5.

        Raises:
            GuestTimeoutError, GuestLostError, GuestProtocolError: As for every call.
        """
        if len(payload) > PING_PAYLOAD_BYTES:
            allowed = f"at most {PING_PAYLOAD_BYTES} bytes"
            raise InvalidOptionError("payload", f"{len(payload)} bytes", allowed)
        request = wire.PingRequest(payload=payload)
        return pong(await self._call("Guest/Ping", request, wire.PingResponse, timeout), payload)

    async def set_up(
        self,
        *,
        working_directory: str | None,
        volumes: Sequence[tuple[str, Volume, str]] = (),
        limits: Sequence[tuple[int, int, int]] = (),
        timeout: float = SET_UP_SECONDS,
    ) -> None:
        """Give the guest's commands their root file system, volumes and limits. Once.

        Args:
            working_directory: A directory of the image; None if the box has no image.
            volumes: The tag of each, what it is, and the name of the file if it is a
                single one.
            limits: Number, soft and hard value of each.
            timeout: Seconds. Default 30.

        Raises:
            GuestFailedError: The guest could not; says what.
            GuestTimeoutError, GuestLostError, GuestProtocolError: As for every call.
        """
        request = set_up(working_directory=working_directory, volumes=volumes, limits=limits)
        await self._call("Guest/SetUp", request, wire.SetUpResponse, timeout)

    async def shutdown(self, *, grace: float, timeout: float | None = None) -> int:
        """Have the guest end its commands and power off; return how many commands it ended.

        Args:
            grace: Seconds that commands have to end after SIGTERM, 0 to 10.
            timeout: Seconds for all of it. Default: 5 more than ``grace``.

        Raises:
            GuestTimeoutError, GuestLostError, GuestProtocolError: As for every call.
        """
        if not 0 <= grace <= GRACE_SECONDS_MAX:
            raise InvalidOptionError("grace", grace, f"0 to {GRACE_SECONDS_MAX:g} seconds")
        request = wire.ShutdownRequest(grace_ms=round(grace * 1000))
        limit = grace + SHUTDOWN_SECONDS if timeout is None else timeout
        answer = await self._call("Guest/Shutdown", request, wire.ShutdownResponse, limit)
        return executions_ended(answer)

    def execute(self, command: Command) -> AbstractAsyncContextManager[RawExecution]:
        """Run a command for as long as the block lasts.

        Leaving the block before the command has ended kills it; see
        :func:`~boxlite._rpc.execution.open_execution`. An error of the block,
        or of a method of the execution, leaves it as itself, not in a group.

        Raises:
            InvalidOptionError: The command is too large for one message.
        """
        return open_execution(self._link, exec_start(command))

    def copy_out(self, path: bytes) -> AbstractAsyncContextManager[RawExecution]:
        """Have what is at a path packed: an execution whose standard output is the tar."""
        return open_execution(self._link, copy_out(path))

    def copy_in(
        self, path: bytes, *, replace: bool, keep_owners: bool
    ) -> AbstractAsyncContextManager[RawExecution]:
        """Have a tar unpacked: an execution whose standard input it is.

        Args:
            path: What the root of the archive is to be.
            replace: Replace files that are there.
            keep_owners: Keep the archive's numeric owners.
        """
        return open_execution(self._link, copy_in(path, replace=replace, keep_owners=keep_owners))

    async def _call(
        self,
        route: str,
        request: betterproto2.Message,
        answer_type: type[AnswerT],
        timeout: float,
    ) -> AnswerT:
        name = route.partition("/")[2]
        with trio.move_on_after(timeout):
            return await self._link.run(name, self._ask, route, request, answer_type)
        raise GuestTimeoutError(f"{name}: the guest did not answer within {timeout:g} s")

    async def _ask(
        self, route: str, request: betterproto2.Message, answer_type: type[AnswerT]
    ) -> AnswerT:
        """Make a call of one question and one answer. Runs in asyncio."""
        async with self._link.channel.request(
            f"/boxlite.v1.{route}", Cardinality.UNARY_UNARY, type(request), answer_type
        ) as call:
            await call.send_message(request, end=True)
            answer = await call.recv_message()
        if answer is None:
            name = route.partition("/")[2]
            raise GuestProtocolError(f"{name}: the guest ended the call without an answer")
        return answer


@asynccontextmanager
async def open_session(stream: trio.abc.Stream, *, nonce: str) -> AsyncIterator[GuestSession]:
    """Speak to a guest over a stream for as long as the block lasts.

    Leaving the block closes the stream. The loss of the connection does not
    end the block: see :attr:`GuestSession.lost`.

    Args:
        stream: Connected to an agent port.
        nonce: That of the guest's start.
    """
    async with open_nursery_unwrapped() as nursery:
        session: GuestSession = await nursery.start(
            serve_session, stream, nonce, name="guest session"
        )
        try:
            yield session
        finally:
            nursery.cancel_scope.cancel()


async def serve_session(
    stream: trio.abc.Stream,
    nonce: str,
    *,
    task_status: trio.TaskStatus[GuestSession] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a session as a task: ``session = await nursery.start(serve_session, stream, nonce)``.

    Starting it says nothing to the guest but what a connection begins with, and waits for
    nothing. It returns when the connection has ended, however that came, with
    ``session.lost`` set; being cancelled ends the connection. The stream is
    closed then. It raises nothing on account of the guest.
    """
    lost = Lost()
    try:
        async with trio_asyncio.open_loop() as loop:
            transport = StreamTransport(stream, lost)
            transport.write(CONNECTION_OPENING.format(nonce=nonce).encode())
            loop.set_exception_handler(partial(_loop_failed, transport))
            channel = GuestChannel(transport, lost)
            channel.connect()
            link = Link(loop, channel, lost)
            task_status.started(GuestSession(link))
            try:
                await transport.run()
            finally:
                # The calls have been told, and need the loop to unwind in. A
                # loop that closes under them would leave their tasks waiting.
                with trio.move_on_after(SETTLE_SECONDS, shield=True):
                    await link.wait_quiet()
                channel.close()
    finally:
        await trio.aclose_forcefully(stream)


def _loop_failed(
    transport: StreamTransport, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """End the session, and it alone, when a callback of its event loop has raised.

    trio-asyncio's own answer is to raise the error from the loop, and so into
    the program's nursery.
    """
    asyncio.BaseEventLoop.default_exception_handler(cast("asyncio.BaseEventLoop", loop), context)
    error = InternalError(f"the event loop of a guest session failed: {context.get('message')}")
    error.__cause__ = context.get("exception")
    transport.fail(error)
