"""A real agent in a process of its own, and a plain gRPC client in the test's."""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import termios
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, TypeVar, Unpack

from grpclib.client import Channel, Handler
from grpclib.const import Cardinality
from grpclib.protocol import H2Protocol

from boxlite import _bulk as bulk
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._wire import CONNECTION_OPENING, STDIN_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from betterproto2 import Message
    from grpclib.client import Stream

T = TypeVar("T")

#: No scenario takes long; one that hangs ends here.
SECONDS: Final = 20
NONCE: Final = "0123456789abcdef" * 2
MACHINE_ID: Final = "fedcba9876543210" * 2
#: What a connection begins with.
OPENING: Final = CONNECTION_OPENING.format(nonce=NONCE).encode()
PLENTY: Final = 1 << 30
ENVIRONMENT: Final = {b"PATH": b"/usr/bin:/bin"}


class _Protocol(H2Protocol):
    """A client's connection whose bulk frames go to those who listen."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.splitter = bulk.Splitter()
        self.listeners: dict[int, Callable[[bulk.Frame], None]] = {}
        assert isinstance(transport, asyncio.WriteTransport)
        self.abort = transport.abort
        transport.write(OPENING)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        for part in self.splitter.feed(data):
            if isinstance(part, bytes):
                super().data_received(part)
            elif part.call in self.listeners:
                self.listeners[part.call](part)


class _Channel(Channel):
    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(Handler(), self._config, self._h2_config)

    def close(self) -> None:
        protocol = self._protocol
        super().close()
        if isinstance(protocol, _Protocol):
            # What the agent does not read any more would keep the socket open.
            protocol.abort()


class AgentUnderTest:
    """A running agent that has been through the handshake.

    Attributes:
        process: The agent; its stdout is a pipe.
        control: The host's end of the control port.
        port: The host's end of a port on which hosts come and go, packet by packet.
        announcement: The first line on the control port.
    """

    def __init__(
        self,
        process: subprocess.Popen[str],
        control: socket.socket,
        port: socket.socket,
        path: str,
    ) -> None:
        self.process = process
        self.control = control
        self.port = port
        self._path = path
        with control.makefile("rb") as lines:
            self.announcement = json.loads(lines.readline())
            hello = {
                "type": "hello",
                "nonce": NONCE,
                "unix_time_ns": 0,
                "entropy": "00" * 64,
                "hostname": "box-1",
                "machine_id": MACHINE_ID,
            }
            control.sendall(json.dumps(hello).encode() + b"\n")
            assert json.loads(lines.readline()) == {"type": "ready", "nonce": NONCE}

    def run(self, scenario: Callable[[Channel], Awaitable[T]]) -> T:
        """Run a scenario on a connection of its own, in a plain asyncio loop."""

        async def bounded() -> T:
            async with asyncio.timeout(SECONDS):
                channel = self.connect()
                try:
                    return await scenario(channel)
                finally:
                    channel.close()

        # trio-asyncio, which other tests import, replaces what asyncio.run would make.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(bounded())

    def connect(self) -> Channel:
        """Return a new connection."""
        return _Channel(path=self._path)

    def open_descriptors(self) -> int:
        """Count the agent's open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def running_agent() -> Iterator[AgentUnderTest]:
    """Start an agent, and end it with all that it started."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        path = f"{directory}/agent.sock"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        control, their_control = socket.socketpair()
        port, their_port = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (control, their_control, port, their_port):
            stack.enter_context(end)
        control.settimeout(SECONDS)
        port.settimeout(SECONDS)
        fds = [their_control.fileno(), listener.fileno(), their_port.fileno()]
        program = str(Path(__file__).with_name("guest_agent_program.py"))
        process = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    program,
                    sysconfig.get_path("purelib"),
                    *map(str, fds),
                ],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        their_control.close()
        yield AgentUnderTest(process, control, port, path)


async def unary(channel: Channel, method: str, request: Message, answer: type[T]) -> T:
    """Make one call."""
    async with channel.request(
        f"/boxlite.v1.{method}", Cardinality.UNARY_UNARY, type(request), answer
    ) as stream:
        await stream.send_message(request, end=True)
        message = await stream.recv_message()
        assert message is not None
        return message


async def ping(channel: Channel, payload: bytes = b"") -> wire.PingResponse:
    """Call ``Guest.Ping``."""
    return await unary(channel, "Guest/Ping", wire.PingRequest(payload=payload), wire.PingResponse)


class StartOptions(TypedDict, total=False):
    """What a start may say besides the program and its arguments."""

    env: dict[bytes, bytes]
    cwd: bytes
    terminal: wire.TerminalSize
    stdout_window: int
    stderr_window: int
    merge_stderr: bool


def start_request(*argv: str | bytes, **options: Unpack[StartOptions]) -> wire.ExecStart:
    """Return the question that starts an execution; its windows have room for everything."""
    return wire.ExecStart(
        argv=[os.fsencode(argument) for argument in argv],
        env=[
            wire.EnvironmentVariable(name=name, value=value)
            for name, value in options.get("env", ENVIRONMENT).items()
        ],
        cwd=options.get("cwd", b""),
        terminal=options.get("terminal"),
        stdout_window=options.get("stdout_window", PLENTY),
        stderr_window=options.get("stderr_window", PLENTY),
        merge_stderr=options.get("merge_stderr", False),
    )


class Call:
    """The host's side of one execution."""

    def __init__(self, stream: Stream[wire.ExecStart, wire.ExecResponse]) -> None:
        assert stream._stream.id is not None
        self._stream = stream
        self.number = stream._stream.id
        self._transport = stream._stream._transport
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        protocol = self._transport.get_protocol()
        assert isinstance(protocol, _Protocol)
        protocol.listeners[self.number] = self._hear
        self.pid = 0
        self.stdin_window = STDIN_WINDOW_BYTES
        self.stdout = b""
        self.stderr = b""
        self.refused: wire.ExecRefused | None = None
        self.exited: wire.ExecExited | None = None

    def send_frame(self, frame: bytes) -> None:
        """Send a bulk frame as it is."""
        self._transport.write(frame)

    def send_data(self, channel: bulk.Channel, data: bytes) -> None:
        """Send one frame of data."""
        self.send_frame(bulk.data_header(self.number, channel, len(data)) + data)

    def stdin(self, data: bytes) -> None:
        """Send one piece of stdin."""
        self.stdin_window -= len(data)
        self.send_data(bulk.Channel.STDIN, data)

    def stdin_end(self) -> None:
        """Say that there is no more stdin."""
        self.send_data(bulk.Channel.STDIN, b"")

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self.send_frame(bulk.signal_frame(self.number, number))

    def resize(self, rows: int, columns: int) -> None:
        """Give the command's terminal another size."""
        self.send_frame(bulk.resize_frame(self.number, rows, columns))

    def grant(self, channel: bulk.Channel, size: int) -> None:
        """Give more room."""
        self.send_frame(bulk.room_frame(self.number, channel, size))

    def _hear(self, frame: bulk.Frame) -> None:
        assert self.exited is None, "a frame after ExecExited"
        match frame:
            case bulk.Room():
                assert frame.channel is bulk.Channel.STDIN
                self.stdin_window += frame.size
            case bulk.Piece(channel=bulk.Channel.STDOUT):
                self.stdout += frame.data
            case bulk.Piece():
                assert frame.channel is bulk.Channel.STDERR
                self.stderr += frame.data
        self._news.set()

    async def _receive(self) -> None:
        try:
            while (message := await self._stream.recv_message()) is not None:
                assert self.exited is None, "a message after ExecExited"
                assert self.refused is None, "a message after ExecRefused"
                if message.started is not None:
                    assert not self.pid
                    self.pid = message.started.pid
                elif message.refused is not None:
                    self.refused = message.refused
                else:
                    assert self.pid, "ExecExited before ExecStarted"
                    self.exited = message.exited
                self._news.set()
        finally:
            self._news.set()

    async def next(self) -> bool:
        """Wait for a message or a frame; false when the guest has ended the stream."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._receive())
        await self._news.wait()
        if self._pump.done():
            self._pump.result()
            return False
        self._news.clear()
        return True

    def close(self) -> None:
        """Take nothing more."""
        if self._pump is not None:
            self._pump.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Take messages until something holds."""
        while not condition():
            assert await self.next() or condition(), "the stream ended early"

    async def finish(self) -> tuple[int, bytes, bytes]:
        """Take everything; return the exit code (or minus the signal), stdout and stderr."""
        while await self.next():
            pass
        assert self.exited is not None
        code = -self.exited.signal if self.exited.signal else self.exited.exit_code
        return code, self.stdout, self.stderr

    async def exhaust(self) -> None:
        """Take everything of a call that the guest ends; leaving the call raises its status."""
        while await self.next():
            pass


@asynccontextmanager
async def execution(channel: Channel, request: wire.ExecStart) -> AsyncIterator[Call]:
    """Start a command; its stream is reset at the end if it is still there."""
    stream = channel.request(
        "/boxlite.v1.Execution/Exec",
        Cardinality.UNARY_STREAM,
        wire.ExecStart,
        wire.ExecResponse,
    )
    async with stream:
        await stream.send_request()
        call = Call(stream)
        await stream.send_message(request, end=True)
        try:
            yield call
        finally:
            call.close()
            if stream._stream.closable:
                await stream.cancel()


async def run(
    channel: Channel, *argv: str | bytes, **options: Unpack[StartOptions]
) -> tuple[int, bytes, bytes]:
    """Run one command to its end without any stdin."""
    async with execution(channel, start_request(*argv, **options)) as call:
        call.stdin_end()
        return await call.finish()


async def refusal(
    channel: Channel, *argv: str | bytes, **options: Unpack[StartOptions]
) -> tuple[wire.RefusalReason, str]:
    """Start a command that cannot be started; return the reason and the sentence."""
    async with execution(channel, start_request(*argv, **options)) as call:
        while await call.next():
            pass
        assert call.refused is not None
        return call.refused.reason, call.refused.detail


class ProcessWatch:
    """Sees the end of a process that is not a child.

    Made while the process is there, or has just gone: then it has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None

    def wait(self) -> None:
        """Block until the process has ended."""
        if self._fd is None:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        ended = poll.poll(SECONDS * 1000)
        os.close(self._fd)
        assert ended, f"process {self.pid} did not end"

    def kill(self) -> None:
        """Kill the process, which is there."""
        assert self._fd is not None
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)


def leave(port: socket.socket) -> None:
    """Have a guest at the other end of a packet port see that no host is connected.

    Returns when it has read that: what the next host sends is an edge of its own.
    """
    port.send(b"")
    unread = array.array("i", [1])
    while unread[0]:
        os.sched_yield()
        fcntl.ioctl(port, termios.TIOCOUTQ, unread)
