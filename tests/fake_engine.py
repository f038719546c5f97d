"""Boxes without a virtual machine: the real runtime over an engine that is a few tasks.

What is replaced is the machine alone: finding QEMU, building a kit, and the shim
with its VM. Sockets, files, stages, race, session, supervision and undoing are the
real ones, and the guest speaks the real protocol.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from fake_guest import FakeGuest, serve_fake_guest, true

from boxlite._process import process_start_time
from boxlite._sockets import bind_unix, connect_unix
from boxlite._startup import attach, stages
from boxlite._startup.groundwork import Groundwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from boxlite._layout import BoxLayout


class FakeWatch:
    """The end of a process that does not exist."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    def has_ended(self) -> bool:
        """Tell whether it was ended."""
        return self.ended.is_set()

    async def wait(self) -> None:
        """Wait for that."""
        await self.ended.wait()


class FakeShim:
    """A shim and its VM: a task that announces its guest and serves it.

    Attributes:
        watch: Its end.
        argv: What QEMU would have been called with.
        layout: The files of its box.
    """

    def __init__(self, engine: FakeEngine, layout: BoxLayout, nonce: str) -> None:
        self.watch = FakeWatch()
        self.argv = ("qemu-system-fake",)
        self.layout = layout
        self._engine = engine
        self._nonce = nonce
        self._exit_code: int | None = None
        self._life = trio.CancelScope()
        self._listener = trio.socket.from_stdlib_socket(
            bind_unix(layout.agent_sockets[0], backlog=1)
        )
        self._owned = True
        engine.shims[layout.root.name] = self
        layout.shim_pid.write_text(f"{os.getpid()}\n{process_start_time(os.getpid())}\n")
        engine.nursery.start_soon(self._run)

    @property
    def pid(self) -> int:
        """Some process id."""
        return os.getpid()

    def reap(self) -> int | None:
        """Return the exit code if it is our child and has ended."""
        return self._exit_code if self._owned else None

    async def stop(self) -> None:
        """End it."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.end({"type": "exit", "exit_code": 0, "requested": True})

    def release(self) -> None:
        """Leave it running."""
        self._owned = False

    def end(self, record: dict[str, Any] | None, *, exit_code: int | None = None) -> None:
        """End it, with or without an exit file. What has ended stays as it is."""
        if self.watch.has_ended():
            return
        self._exit_code = exit_code if record is None else record["exit_code"]
        if record is not None:
            self.layout.exit.write_text(json.dumps(record))
        self.layout.shim_pid.unlink()
        self._engine.shims.pop(self.layout.root.name)
        self._life.cancel()
        self._listener.close()
        self.watch.ended.set()

    async def _run(self) -> None:
        with self._life:
            await self._engine.boot(self)
            async with await connect_unix(self.layout.ready_socket) as stream:
                await stream.send_all(f"ready {self._nonce}\n".encode())
            while True:
                connection, _ = await self._listener.accept()
                stream = trio.SocketStream(connection)
                await (self._engine.answer or self._serve)(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[FakeGuest]) -> None:
                await serve_fake_guest(stream, task_status=task_status)
                nursery.cancel_scope.cancel()

            guest: FakeGuest = await nursery.start(serve)
            guest.script = true
            guest.on_shutdown = lambda: self.end(
                {"type": "exit", "exit_code": 0, "requested": False, "ready": True}
            )
            self._engine.shape(guest)


class FakeEngine:
    """Makes shims.

    Attributes:
        nursery: Where they live.
        shims: Those that live, by the id of their box.
        boot: What a guest does before it is ready.
        answer: What guests do with a connection instead of serving it.
        shape: Changes each guest before it is asked anything.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.shims: dict[str, FakeShim] = {}
        self.boot: Callable[[FakeShim], Any] = _boot
        self.answer: Callable[[trio.SocketStream], Any] | None = None
        self.shape: Callable[[FakeGuest], None] = lambda _: None

    def spawn(self, layout: BoxLayout, *, nonce: str, **_: object) -> FakeShim:
        """Start a shim."""
        return FakeShim(self, layout, nonce)

    def find(self, layout: BoxLayout) -> FakeShim | None:
        """Find one again."""
        return self.shims.get(layout.root.name)


async def _boot(_shim: FakeShim) -> None:
    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def fake_engine(patch: pytest.MonkeyPatch) -> AsyncIterator[FakeEngine]:
    """Replace the machine under every runtime of this process while the block runs."""

    async def nothing(*_args: object, **_kwargs: object) -> Any:  # noqa: ANN401
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        engine = FakeEngine(nursery)
        with patch.context() as patched:
            patched.setattr(Groundwork, "host", nothing)
            patched.setattr(Groundwork, "kit", nothing)
            patched.setattr(stages, "Machine", lambda **_fields: None)
            patched.setattr(stages, "spawn_shim", engine.spawn)
            patched.setattr(attach, "running_shim", engine.find)
            yield engine
        for shim in list(engine.shims.values()):
            shim.end(None)
