"""Watching over a running VM: the one loop of the shim, from the start of QEMU to its end."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Final

from ._announce import announce
from ._control import ControlLink
from ._handshake import STOP_LINE, Action, Announce, Handshake, Note, Save, Send
from ._logs import RotatingLog
from ._monitor import Monitor
from ._reactor import Reactor
from ._signals import wake_on_sigterm
from ._stopping import StopLadder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._arguments import Arguments
    from ._logs import Stderr
    from ._spawn import Vm

_STDIN: Final = 0
#: A nonce and its newline; what follows is not looked at.
_NONCE_BYTES: Final = 33
_READ_BYTES: Final = 64 << 10
#: What a dead QEMU can have left in a socket or a pipe, with room to spare. More
#: comes only from another process that holds the other end, and is not waited for.
_DRAIN_BYTES: Final = 4 << 20

#: How often QEMU is looked at where the kernel has no pidfd.
_LOOK_SECONDS: Final = 0.02

#: The host accepts strangers' connections and drops them within a second each.
_ANNOUNCE_TRIES: Final = 100
_ANNOUNCE_SECONDS: Final = 0.1


class Watch:
    """What the shim does between the start of QEMU and its end.

    Attributes:
        handshake: How far the guest has come.
        template_failure: Why the machine's state could not be saved or loaded, if so.

    Args:
        vm: The VM, just started.
        arguments: The command line.
        box: The box's directory.
        stderr: Where QEMU's words and the shim's notes go.
    """

    def __init__(self, vm: Vm, arguments: Arguments, box: int, stderr: Stderr) -> None:
        self.handshake = Handshake(
            saving=arguments.save is not None,
            prepare=arguments.prepare,
            identity={"hostname": arguments.hostname, "machine_id": arguments.machine_id},
        )
        self.template_failure: str | None = None
        self._vm = vm
        self._save_to = arguments.save
        self._detach = arguments.detach
        self._box = box
        self._stderr = stderr
        self._console = arguments.console
        self._console_log = RotatingLog(box, "console.log", complain=stderr.note)
        self._host_said: bytes | None = b""
        self._vm_ended = False
        self._reactor = Reactor()
        self._control = ControlLink(arguments.control, self._reactor, self._hear_guest)
        self._monitor: Monitor | None = None
        if arguments.monitor is not None:
            self._monitor = Monitor(
                arguments.monitor,
                self._reactor,
                on_resumed=self._see_resumed,
                on_saved=self._see_saved,
                on_failure=self._see_template_failure,
            )
            if arguments.restore is not None:
                self._monitor.restore(arguments.restore)
        self._ladder = StopLadder(
            vm,
            self._reactor,
            ask_guest=self._ask_guest_to_stop,
            guest_seconds=arguments.guest_seconds,
            term_seconds=arguments.term_seconds,
        )
        self._watch_vm()
        self._reactor.watch(_STDIN, select.POLLIN, self._hear_host)
        self._wakeup = wake_on_sigterm()
        self._reactor.watch(self._wakeup, select.POLLIN, self._see_signal)
        for fd, sink in self._streams():
            os.set_blocking(fd, False)
            self._reactor.watch(fd, select.POLLIN, self._copying(fd, sink))

    @property
    def stop_requested(self) -> bool:
        """Whether the shim was asked to stop the VM."""
        return self._ladder.climbed

    def run(self) -> int:
        """Return how QEMU ended, reaped, with all that it had said written down.

        Returns:
            Its exit code, or -n when signal n ended it.

        Raises:
            CannotStartError: It could not be executed.
            ValueError: The host broke the contract of standard input.
        """
        while not self._vm_ended:
            self._reactor.turn()
        for fd, sink in self._streams():
            _drain(fd, sink)
        return self._vm.reap()

    def _streams(self) -> tuple[tuple[int, Callable[[bytes], None]], ...]:
        return (self._console, self._console_log.write), (self._vm.stderr, self._stderr.relay)

    def _copying(self, fd: int, sink: Callable[[bytes], None]) -> Callable[[int], None]:
        def copy(_events: int) -> None:
            data = _read(fd, _READ_BYTES)
            if data:
                sink(data)
            elif data is not None:
                self._reactor.forget(fd)

        return copy

    def _watch_vm(self) -> None:
        try:
            pidfd = os.pidfd_open(self._vm.pid)
        except OSError:
            # A kernel before Linux 5.3, or a filter of system calls that does not know it.
            self._look_at_vm()
        else:
            self._reactor.watch(pidfd, select.POLLIN, self._see_vm_ended)

    def _look_at_vm(self) -> None:
        if self._vm.has_ended():
            self._vm_ended = True
        else:
            self._reactor.after(_LOOK_SECONDS, self._look_at_vm)

    def _see_vm_ended(self, _events: int) -> None:
        self._vm_ended = True

    def _see_signal(self, _events: int) -> None:
        self._reactor.forget(self._wakeup)
        self._ladder.climb()

    def _hear_host(self, _events: int) -> None:
        data = os.read(_STDIN, _READ_BYTES)
        if not data:
            self._reactor.forget(_STDIN)
            if not self._detach:
                self._ladder.climb()
        elif self._host_said is not None:
            self._host_said += data[:_NONCE_BYTES]
            line, newline, _ = self._host_said.partition(b"\n")
            if newline or len(line) >= _NONCE_BYTES:
                self._host_said = None
                self._act(self.handshake.begin(line.decode(errors="replace")))

    def _hear_guest(self, data: bytes) -> bool:
        self._act(self.handshake.receive(data))
        return not self.handshake.exhausted

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(line):
                    if not self._control.send(line):
                        self._stderr.note("the guest does not read its control port")
                case Announce(nonce):
                    self._announce(nonce, _ANNOUNCE_TRIES)
                case Save():
                    self._save()
                case Note(text):
                    self._stderr.note(text)

    def _save(self) -> None:
        # Once: an agent may say that it waits as often as it likes.
        state, self._save_to = self._save_to, None
        if self._monitor is not None and state is not None:
            self._monitor.save(state)

    def _see_resumed(self) -> None:
        self._act(self.handshake.resume())

    def _see_saved(self) -> None:
        if self.handshake.nonce is not None:
            self._announce(self.handshake.nonce, _ANNOUNCE_TRIES)

    def _see_template_failure(self, reason: str) -> None:
        self._stderr.note(reason)
        self.template_failure = reason
        self._vm.send_signal(signal.SIGKILL)

    def _ask_guest_to_stop(self) -> bool:
        return self.handshake.ready and self._control.send(STOP_LINE)

    def _announce(self, nonce: str, tries: int) -> None:
        """Tell the host, again and again if it is flooded; a host that is gone needs no word."""
        try:
            announce(self._box, nonce)
        except BlockingIOError as exc:
            if tries > 1:
                self._reactor.after(_ANNOUNCE_SECONDS, lambda: self._announce(nonce, tries - 1))
            else:
                self._note_unannounced(exc)
        except OSError as exc:
            self._note_unannounced(exc)

    def _note_unannounced(self, exc: OSError) -> None:
        self._stderr.note(f"the host cannot be told that the guest is ready: {exc.strerror}")


def _read(fd: int, size: int) -> bytes | None:
    """Read what is there: None if nothing is yet, nothing if nothing will be."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def _drain(fd: int, sink: Callable[[bytes], None]) -> None:
    left = _DRAIN_BYTES
    while left > 0 and (data := _read(fd, _READ_BYTES)):
        sink(data)
        left -= len(data)
