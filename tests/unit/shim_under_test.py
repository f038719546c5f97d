"""A real shim over a fake QEMU, with the test in the place of host program and guest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from boxlite._layout import BoxLayout
from boxlite._process import read_pid_file
from boxlite._sockets import bind_unix
from boxlite._vm.shim_command import GuestIdentity, shim_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from boxlite._process import ProcessIdentity

NONCE: Final = "0123456789abcdef0123456789abcdef"
IDENTITY: Final = GuestIdentity(hostname="box-1", machine_id="ab" * 16)
#: No test takes long; one that hangs ends here.
SECONDS: Final = 30


def python(program: str) -> list[str]:
    """Return the command line of a fake QEMU in Python, which finds its descriptors in argv."""
    return [sys.executable, "-I", "-S", "-c", program, "{control}", "{alive}"]


#: A VM that says that it is up, and then is until somebody ends it.
LASTING: Final = python(
    "import os, sys, time\nos.write(int(sys.argv[2]), b'up')\nwhile True: time.sleep(1000)"
)


class ShimUnderTest:
    """One running shim.

    Attributes:
        process: The shim.
        layout: The files of its box.
        control: The guest's end of the control port.
        console: The guest's end of the serial console.
        vm_fds: The descriptors that were for QEMU.
    """

    def __init__(
        self,
        process: trio.Process,
        layout: BoxLayout,
        control: trio.SocketStream,
        console: trio.SocketStream,
        alive: trio.lowlevel.FdStream,
        lifeline: int,
        vm_fds: Sequence[int],
    ) -> None:
        self.process = process
        self.layout = layout
        self.control = control
        self.console = console
        self.vm_fds = vm_fds
        self._alive = alive
        self._lifeline: int | None = lifeline

    async def vm_up(self) -> None:
        """Return when the VM has said that it is up."""
        assert await self._alive.receive_some(2) == b"up"

    async def vm_says_number(self) -> int:
        """Return a number that the VM writes, followed by a newline."""
        said = b""
        while not said.endswith(b"\n"):
            said += await self._alive.receive_some(1)
        return int(said)

    async def vm_gone(self) -> None:
        """Return when no process of the VM is left."""
        while await self._alive.receive_some():
            pass

    async def say(self, message: dict[str, Any] | bytes) -> None:
        """Send a line as the guest."""
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self.control.send_all(line + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Receive a line as the guest."""
        line = b""
        while not line.endswith(b"\n"):
            received = await self.control.receive_some(1)
            assert received, "the shim closed the control port"
            line += received
        message: dict[str, Any] = json.loads(line)
        return message

    async def greet(self) -> dict[str, Any]:
        """Say ``waiting`` and return the ``hello``: afterwards, the loop is known to turn."""
        await self.say({"type": "waiting", "version": "1"})
        return await self.hear()

    async def become_ready(self) -> None:
        """Go through the handshake, up to what the host accepts on its ready socket."""
        with listening(self.layout) as listener:
            hello = await self.greet()
            await self.say({"type": "ready", "nonce": hello["nonce"]})
            assert await announcement(listener) == f"ready {NONCE}\n".encode()

    def tell(self, data: bytes) -> None:
        """Send more as the host."""
        assert self._lifeline is not None
        os.write(self._lifeline, data)

    def hang_up(self) -> None:
        """End the host program, as far as the shim can tell."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def ended(self) -> dict[str, Any]:
        """Return the exit file of a shim that has ended by itself, after checking the two codes."""
        exit_code = await self.process.wait()
        record: dict[str, Any] = json.loads(self.layout.exit.read_text())
        assert record["exit_code"] == exit_code
        return record

    @property
    def vm(self) -> ProcessIdentity:
        """Who the VM is, by its pid file."""
        identity = read_pid_file(self.layout.vm_pid)
        assert identity is not None
        return identity

    @property
    def stderr(self) -> str:
        """What is in ``shim.stderr``."""
        return self.layout.shim_stderr.read_text()


def listening(layout: BoxLayout) -> trio.socket.SocketType:
    """Listen on a box's ready socket."""
    return trio.socket.from_stdlib_socket(bind_unix(layout.ready_socket, backlog=8))


async def announcement(listener: trio.socket.SocketType) -> bytes:
    """Accept one connection and return all that is sent on it."""
    connection, _ = await listener.accept()
    received = b""
    with connection:
        while more := await connection.recv(100):
            received += more
    return received


def after(program: str) -> Callable[[list[str]], list[str]]:
    """Return a ``wrap`` that has the shim's interpreter run a program before the shim."""
    runner = (
        f"{program}\n"
        "import runpy, sys\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )

    def wrap(command: list[str]) -> list[str]:
        at = next(n for n, word in enumerate(command) if word.endswith("__main__.py"))
        return [*command[:at], "-c", runner, *command[at:]]

    return wrap


@asynccontextmanager
async def running_shim(
    box: Path,
    vm: Sequence[str] = LASTING,
    *,
    detach: bool = False,
    first_line: bytes = NONCE.encode() + b"\n",
    options: Sequence[str] = (),
    wrap: Callable[[list[str]], list[str]] = list,
    strangers: Sequence[int] = (),
) -> AsyncIterator[ShimUnderTest]:
    """Run a shim, and leave no process of it behind.

    Args:
        box: The box's directory; made here.
        vm: The fake QEMU. ``{control}`` and ``{alive}`` in it become descriptors.
        detach: As for :func:`shim_command`.
        first_line: What the host sends.
        options: More options of the shim.
        wrap: Changes the shim's command line.
        strangers: Descriptors that are passed on without being named.
    """
    layout = BoxLayout(box)
    layout.sockets.mkdir(parents=True, exist_ok=True)
    with ExitStack() as passed:

        def pair() -> tuple[socket.socket, trio.SocketStream]:
            shims, guests = socket.socketpair()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(guests))
            return passed.enter_context(shims), stream

        control, guest_control = pair()
        console, guest_console = pair()
        vm_control = os.dup(guest_control.socket.fileno())
        passed.callback(os.close, vm_control)
        alive, vm_alive = os.pipe()
        passed.callback(os.close, vm_alive)
        stdin, lifeline = os.pipe()
        passed.callback(os.close, stdin)
        os.write(lifeline, first_line)
        vm_fds = [vm_control, vm_alive]
        command = shim_command(
            box_dir=box,
            control_fd=control.fileno(),
            console_fd=console.fileno(),
            vm_fds=vm_fds,
            identity=IDENTITY,
            detach=detach,
            vm_argv=[
                word.replace("{control}", str(vm_control)).replace("{alive}", str(vm_alive))
                for word in vm
            ],
        )
        at = command.index("--control")
        command[at:at] = options
        stderr = passed.enter_context(layout.shim_stderr.open("ab"))
        process = await trio.lowlevel.open_process(
            wrap(command),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[control.fileno(), console.fileno(), *vm_fds, *strangers],
            start_new_session=True,
            cwd="/",
        )
        passed.close()
        shim = ShimUnderTest(
            process,
            layout,
            guest_control,
            guest_console,
            trio.lowlevel.FdStream(alive),
            lifeline,
            vm_fds,
        )
        try:
            with trio.fail_after(SECONDS):
                yield shim
        finally:
            with trio.move_on_after(SECONDS, shield=True):
                process.kill()
                await process.wait()
                await shim.vm_gone()
            shim.hang_up()
            await trio.aclose_forcefully(shim._alive)
            await trio.aclose_forcefully(guest_control)
            await trio.aclose_forcefully(guest_console)
