"""Starting the shim of a box, and ending it for certain.

The host makes every descriptor that shim and QEMU need before the shim exists,
so the shim can start QEMU without importing anything that makes descriptors.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from boxlite._errors import HostError
from boxlite._process import ExitWatch, command_line, read_pid_file
from boxlite._sockets import bind_unix

from .argv import SocketChardev
from .shim_command import GuestIdentity, SavedState, shim_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from boxlite._layout import BoxLayout

    from .devices import DeviceFiles

#: The shim's own ladder: 3 s for the guest, 2 s for QEMU's SIGTERM, and some to spare.
TERM_SECONDS: Final = 6.0
KILL_SECONDS: Final = 5.0
_BURIAL_SECONDS: Final = 2.0


@attrs.frozen(kw_only=True)
class Chardevs:
    """The VM's ends of its sockets, named as QEMU will name them."""

    control: SocketChardev
    console: SocketChardev
    agents: Sequence[SocketChardev]
    monitor: SocketChardev | None = None


@attrs.frozen(kw_only=True)
class MachineFiles:
    """The two open files of a machine that is, or is to become, a template.

    Args:
        what: Restore the machine from them, or save it to them; or restore it, have the
            guest prepare its image, and save it again.
        memory_fd: Its memory.
        state_fd: The state of everything else: what is restored, or what is saved.
        saved_fd: What is saved, if something is restored first.
        prepare: The working directory of the image that the guest mounts in between.
    """

    what: Literal["restore", "save", "derive"]
    memory_fd: int
    state_fd: int
    saved_fd: int | None = None
    prepare: str | None = None


class Shim:
    """A running shim. Made by :func:`spawn_shim`, or found by :func:`running_shim`.

    Attributes:
        watch: Its end, through a pidfd.
        argv: QEMU's command line.

    Args:
        watch: Its end.
        layout: The files of its box.
        argv: QEMU's command line.
        child: The process, if it is our child.
        lifeline: The pipe whose end the shim takes for the end of this program.
    """

    def __init__(
        self,
        watch: ExitWatch,
        layout: BoxLayout,
        argv: Sequence[str],
        *,
        child: subprocess.Popen[bytes] | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._child = child
        self._lifeline = lifeline
        self._layout = layout
        self.watch = watch
        self.argv = tuple(argv)

    @property
    def pid(self) -> int:
        """The shim's process id."""
        return self.watch.pid

    def reap(self) -> int | None:
        """Collect the exit code of a child that has ended: -n when signal n ended it."""
        return None if self._child is None else self._child.poll()

    def release(self) -> None:
        """Let go of the shim: it ends itself, unless it was started to run on. Idempotent."""
        if self._child is not None and self._child.poll() is None:
            _left_running.add(self._child)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.watch.close()

    async def stop(self) -> None:
        """End the shim and its VM, reap the shim and release its descriptors.

        SIGTERM asks the shim for its own orderly ladder. When that takes too
        long the VM is killed, and the shim too unless it then ends by itself.
        Idempotent.

        Cancelling it moves straight on to the kill; it always returns within
        ``TERM_SECONDS + KILL_SECONDS``, shielded for the second part only.

        Raises:
            HostError: A process is still there after SIGKILL: it is stuck in
                the kernel. Or there is no descriptor to watch it with: then it
                ends itself a moment later.
        """
        try:
            if not self.watch.has_ended():
                self.watch.send_signal(signal.SIGTERM)
                with trio.move_on_after(TERM_SECONDS):
                    await self.watch.wait()
        finally:
            # Without the shield, a cancelled caller would leave the VM running.
            with trio.move_on_after(KILL_SECONDS, shield=True) as scope:
                try:
                    await self._kill()
                finally:
                    # Whatever is still there ends itself when its lifeline is closed.
                    self.release()
        if scope.cancelled_caught:
            raise HostError(
                f"the VM of {self._layout.root} is still there {KILL_SECONDS:g} s after SIGKILL"
                f" (shim {self.pid})",
                fix="It hangs in the kernel; look at dmesg.",
            )

    async def _kill(self) -> None:
        # The VM first: the shim then reaps it. The other way round, QEMU would
        # die an orphan, and become a zombie where process 1 does not reap.
        with ExitWatch.of(read_pid_file(self._layout.vm_pid)) as vm:
            if not self.watch.has_ended():
                vm.send_signal(signal.SIGKILL)
                with trio.move_on_after(_BURIAL_SECONDS):
                    await self.watch.wait()
                self.watch.send_signal(signal.SIGKILL)
                await self.watch.wait()
            self.reap()
            # A shim that was killed took its VM along; this makes sure of it.
            vm.send_signal(signal.SIGKILL)
            await vm.wait()


def spawn_shim(
    layout: BoxLayout,
    *,
    nonce: str,
    identity: GuestIdentity,
    make_argv: Callable[[Chardevs], Sequence[str]],
    files: MachineFiles | None = None,
    devices: DeviceFiles | None = None,
    detach: bool = False,
) -> Shim:
    """Start the shim of a box, and through it the VM.

    It does not block for longer than a fork and an exec take, and there is no
    checkpoint in it: either the caller has the shim in hand, or there is none.

    Args:
        layout: The box's directory, already made.
        nonce: 32 hexadecimal digits that the ready announcement must carry.
        identity: Who the guest is told it is.
        make_argv: Returns QEMU's command line for the sockets it is given.
        files: Those of a template; they stay open here.
        devices: Those behind the machine's devices; they stay open here.
        detach: Let the VM outlive this process.

    Raises:
        HostError: The sockets, the files or the process could not be made.
    """
    with ExitStack() as ours:
        try:
            vm_fds: list[int] = [*devices.fds] if devices is not None else []
            shim_fds: list[int] = []

            def pair(name: str) -> tuple[int, SocketChardev]:
                for_shim, for_vm = socket.socketpair()
                ours.enter_context(for_shim)
                ours.enter_context(for_vm)
                vm_fds.append(for_vm.fileno())
                shim_fds.append(for_shim.fileno())
                return for_shim.fileno(), SocketChardev(id=name, fd=for_vm.fileno())

            def listening(index: int) -> SocketChardev:
                listener = ours.enter_context(bind_unix(layout.agent_sockets[index], backlog=1))
                vm_fds.append(listener.fileno())
                return SocketChardev(id=f"agent{index}", fd=listener.fileno(), listening=True)

            control_fd, control = pair("control")
            console_fd, console = pair("console")
            agents = [listening(index) for index in range(len(layout.agent_sockets))]
            monitor: SocketChardev | None = None
            saved: SavedState | None = None
            if files is not None:
                monitor_fd, monitor = pair("monitor")
                restored = None if files.what == "save" else files.state_fd
                to_save = files.state_fd if files.what == "save" else files.saved_fd
                saved = SavedState(
                    monitor_fd=monitor_fd,
                    restore_fd=restored,
                    save_fd=to_save,
                    prepare=files.prepare,
                )
                vm_fds.append(files.memory_fd)
                if restored is not None:
                    vm_fds.append(restored)
                if to_save is not None:
                    # The shim hands it to QEMU through the monitor.
                    shim_fds.append(to_save)
            argv = make_argv(
                Chardevs(control=control, console=console, agents=agents, monitor=monitor)
            )
            stderr = ours.enter_context(layout.shim_stderr.open("ab", buffering=0))
            reader, writer = os.pipe()
            ours.callback(os.close, reader)
            lifeline = ours.enter_context(ExitStack())
            lifeline.callback(os.close, writer)
            os.write(writer, f"{nonce}\n".encode())
            child = subprocess.Popen(
                shim_command(
                    box_dir=layout.root,
                    control_fd=control_fd,
                    console_fd=console_fd,
                    vm_fds=vm_fds,
                    identity=identity,
                    detach=detach,
                    vm_argv=argv,
                    saved=saved,
                ),
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(*shim_fds, *vm_fds),
                cwd="/",
                env=_shim_environment(),
                # A ^C at the terminal is for the program, which then stops its boxes in order.
                start_new_session=True,
            )
        except OSError as exc:
            raise HostError(
                f"the shim of {layout.root} cannot be started: {exc}",
                fix="If descriptors or processes ran out, raise the limit (ulimit -n, ulimit -u).",
            ) from exc
        try:
            watch = ExitWatch(child.pid)
        except BaseException:
            child.kill()
            child.wait()
            raise
        lifeline.pop_all()
    _reap_left_running()
    return Shim(watch, layout, argv, child=child, lifeline=writer)


# Children that run on. One that ends stays a zombie until the next shim is started.
_left_running: Final[set[subprocess.Popen[bytes]]] = set()


def _reap_left_running() -> None:
    for child in [child for child in _left_running if child.poll() is not None]:
        _left_running.discard(child)


def running_shim(layout: BoxLayout) -> Shim | None:
    """Return the shim of a box if it runs: this very one, and not whoever has its pid.

    Raises:
        HostError: There is no descriptor to be had.
    """
    _reap_left_running()
    watch = ExitWatch.of(read_pid_file(layout.shim_pid))
    if watch.has_ended():
        watch.close()
        return None
    ours = next((child for child in _left_running if child.pid == watch.pid), None)
    if ours is not None:
        _left_running.discard(ours)
    return Shim(watch, layout, command_line(read_pid_file(layout.vm_pid)), child=ours)


def _shim_environment() -> dict[str, str]:
    # The caller's environment may hold secrets, and QEMU needs nothing of it
    # but where to find its programs and libraries. Messages are not translated:
    # reports are made of them.
    kept = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
    return {"LC_ALL": "C", **{name: os.environ[name] for name in kept if name in os.environ}}
