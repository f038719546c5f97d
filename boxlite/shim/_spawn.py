"""Starting QEMU, and the handle on it."""

from __future__ import annotations

import os
import resource

from ._libc import hold_signals, kill_at_parents_end, reset_signals, use_small_pages

TYPE_CHECKING = False  # importing typing for it would delay QEMU
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final, NoReturn

_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
#: More than any failure is long, and written to a pipe in one piece (PIPE_BUF, pipe(7)).
_FAILURE_BYTES: Final = 4096

_SIGKILL: Final = 9


class CannotStartError(Exception):
    """QEMU could not be executed.

    Args:
        message: What could not be done, and why.
        exit_code: 127 for a program that is not there, else 126, as in a shell.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Vm:
    """The QEMU process: ours to signal until it is reaped, and reaped only here.

    Attributes:
        sent: The signals that it was sent from here.

    Args:
        pid: Its process id.
        stderr: Where its standard error can be read.
        failure: Where the reason can be read if it was not executed.
    """

    def __init__(self, pid: int, stderr: int, failure: int) -> None:
        self.pid = pid
        self.stderr = stderr
        self.sent: set[int] = set()
        self._failure = failure
        self._exit_code: int | None = None

    def send_signal(self, number: int) -> None:
        """Send a signal, and remember that it was ours. Nothing happens after the reap."""
        if self._exit_code is None:
            self.sent.add(number)
            # A child that has not been reaped keeps its pid, so this hits nobody else.
            os.kill(self.pid, number)

    def has_ended(self) -> bool:
        """Tell whether it has ended; it stays to be reaped."""
        if self._exit_code is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> int:
        """Return how it ended, waiting for that: its exit code, or -n for signal n. Idempotent.

        Raises:
            CannotStartError: It never became QEMU.
        """
        if self._exit_code is None:
            _, status = os.waitpid(self.pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
            # At the end of file: a successful exec closed the other end.
            if reason := os.read(self._failure, _FAILURE_BYTES):
                code, _, message = reason.decode(errors="replace").partition(" ")
                raise CannotStartError(message, int(code))
        return self._exit_code

    def destroy(self) -> None:
        """Kill and reap it, whatever state it is in. Idempotent."""
        self.send_signal(_SIGKILL)
        try:
            self.reap()
        except CannotStartError:
            return


def close_strangers(known: Iterable[int]) -> None:
    """Close every descriptor that nobody meant to pass on.

    A stray writing end of the stdin pipe, for one, would hide the end of the
    host program.

    Args:
        known: The descriptors of the command line; 0, 1 and 2 are added.

    Raises:
        ValueError: A known one is not open.
    """
    wanted = {0, 1, 2, *known}
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    if missing := sorted(wanted - found):
        raise ValueError(f"descriptors {missing} are named but not open")
    for fd in found - wanted:
        try:
            os.close(fd)
        except OSError:
            continue  # the one that the directory was read with
    for fd in wanted - {0, 1, 2}:
        os.set_inheritable(fd, False)  # noqa: FBT003 - it takes no keyword


def start_vm(argv: Sequence[str], vm_fds: Sequence[int], *, small_pages: bool = False) -> Vm:
    """Fork, and execute QEMU in the child.

    QEMU gets /dev/null as standard input and output, a pipe as standard error,
    ``vm_fds`` and no other descriptor; no core dumps, no blocked or ignored
    signals, and SIGKILL when this process ends. That it could not be executed
    shows when it is reaped. In this process ``vm_fds`` are closed, and signals
    stay pending until somebody unblocks them.

    Args:
        argv: QEMU's command line.
        vm_fds: The descriptors that it names.
        small_pages: Give it no huge pages. A guest whose memory is a file has none anyway.

    Raises:
        CannotStartError: There could be no new process.
    """
    hold_signals()
    null = os.open(os.devnull, os.O_RDWR)
    stderr, vm_stderr = os.pipe()
    failure, vm_failure = os.pipe()
    shim = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            if small_pages:
                use_small_pages()
            _become_vm(argv, vm_fds, shim, null, vm_stderr, vm_failure)
    except OSError as exc:
        os.close(stderr)
        os.close(failure)
        raise CannotStartError(f"no process for QEMU: {exc.strerror}", _NOT_EXECUTABLE) from exc
    finally:
        for fd in (null, vm_stderr, vm_failure, *vm_fds):
            os.close(fd)
    return Vm(pid, stderr, failure)


def _become_vm(
    argv: Sequence[str], vm_fds: Sequence[int], shim: int, null: int, stderr: int, failure: int
) -> NoReturn:
    try:
        kill_at_parents_end()
        # A shim that died before that sent no signal, and never will.
        if os.getppid() != shim:
            os._exit(_NOT_FOUND)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        reset_signals()
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(stderr, 2)
        for fd in vm_fds:
            os.set_inheritable(fd, True)  # noqa: FBT003 - it takes no keyword
        os.execvp(argv[0], list(argv))  # noqa: S606 - a shell is not wanted
    except BaseException as exc:  # noqa: BLE001 - the rest of the shim must not run twice
        code = _NOT_FOUND if isinstance(exc, FileNotFoundError) else _NOT_EXECUTABLE
        reason = (isinstance(exc, OSError) and exc.strerror) or repr(exc)
        text = f"{code} cannot execute {argv[0]!r}: {reason}"
        os.write(failure, text.encode(errors="backslashreplace")[:_FAILURE_BYTES])
    finally:
        os._exit(_NOT_FOUND)
