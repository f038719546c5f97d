"""Starting a command, or saying in one sentence why it cannot be started.

``posix_spawn`` shares the agent's memory with the child until the program is
executed: nothing is copied, and an error comes back as the errno of the step
that failed. Every descriptor of the agent is close-on-exec, so a command gets
its three streams and nothing else. What it cannot do is set the working
directory: the agent, which has one thread and no use for its own, goes there
for the moment.

The out-of-memory killer never chooses PID 1 (``oom_unkillable_task`` in
mm/oom_kill.c), so neither the agent nor the command needs a score set.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import termios
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from boxlite._rpc._generated.boxlite.v1 import RefusalReason

from .refused import RefusedError
from .users import UnknownUserError, acting_as, find_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from boxlite._rpc._generated.boxlite.v1 import ExecStart, TerminalSize

    from .confinement import Limits

#: Where programs are looked for when the command's environment has no PATH.
DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHOWN_CHARACTERS: Final = 500
_INTERPRETER_BYTES: Final = 256  # BINPRM_BUF_SIZE of linux/binfmts.h
#: Ignored in every Python process, and a signal that is ignored stays so across exec.
_RESET_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
_FileAction = tuple[Any, ...]  # As os.posix_spawn takes them: a code and its operands.
_RESOURCES: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Spawned(NamedTuple):
    """A running command, and the agent's ends of its streams, non-blocking."""

    pid: int
    stdin: int
    stdout: int
    stderr: int | None  # A command with a terminal has none, or with both streams in one.


def spawn(start: ExecStart, limits: Limits) -> Spawned:
    """Start a command in a session, and so a process group, of its own.

    Paths, names of users and the terminal are those of the place that the caller is in.

    Args:
        start: The request.
        limits: What it is limited to.

    Raises:
        RefusedError: It cannot be started. Nothing is left of the attempt.
    """
    environment = _checked_environment(start)
    if not start.argv or not start.argv[0]:
        raise RefusedError(RefusalReason.INVALID, "the request names no program")
    if any(b"\0" in argument for argument in start.argv):
        raise RefusedError(RefusalReason.INVALID, "an argument contains a NUL byte")
    cwd = start.cwd or b"/"
    if not cwd.startswith(b"/") or b"\0" in cwd:
        raise RefusedError(
            RefusalReason.INVALID, f"the working directory {_shown(cwd)} is not an absolute path"
        )
    if start.terminal is not None:
        check_terminal_size(start.terminal.rows, start.terminal.columns)

    try:
        user = find_user(start.user) if start.user else None
    except UnknownUserError as error:
        raise RefusedError(RefusalReason.USER_NOT_FOUND, str(error)) from None
    if user is not None:
        environment.setdefault(b"HOME", user.home)
    with acting_as(user):
        return _spawn_in(cwd, start, environment, limits)


def _spawn_in(
    cwd: bytes, start: ExecStart, environment: Mapping[bytes, bytes], limits: Limits
) -> Spawned:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise RefusedError(
            RefusalReason.CWD_NOT_FOUND,
            f"the working directory {_shown(cwd)} cannot be entered: {error.strerror}",
        ) from None
    try:
        program = find_program(start.argv[0], environment.get(b"PATH", DEFAULT_PATH))
        try:
            if start.terminal is not None:
                return _spawn_on_terminal(program, start, environment, start.terminal, limits)
            return _spawn_on_pipes(program, start, environment, limits)
        except OSError as error:
            raise _refusal(error, program) from None
    finally:
        os.chdir("/")


def check_terminal_size(rows: int, columns: int) -> None:
    """Refuse a size that a terminal cannot have.

    Raises:
        RefusedError: A side is not in 1 to 65,535.
    """
    if not (1 <= rows <= 0xFFFF and 1 <= columns <= 0xFFFF):
        raise RefusedError(
            RefusalReason.INVALID,
            f"a terminal of {rows} rows and {columns} columns: each must be from 1 to 65535",
        )


def set_terminal_size(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size; its foreground process group gets SIGWINCH if it changed."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def find_program(name: bytes, path: bytes) -> bytes:
    """Find the file that a shell in the current directory would execute for a name.

    Args:
        name: A path if it has a slash, else a name to look for.
        path: Directories, separated by colons; an empty one is the current one.

    Raises:
        RefusedError: There is none, or none that may be executed.
    """
    if b"/" in name:
        candidates = [name]
        missing = f"there is no file {_shown(name)}"
    else:
        candidates = [os.path.join(directory or b".", name) for directory in path.split(b":")]
        missing = f"there is no program {_shown(name)} on PATH ({_shown(path)})"
    denied = ""
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                denied = denied or f"{_shown(candidate)} cannot be executed: {error.strerror}"
            continue
        if stat.S_ISDIR(mode):
            denied = denied or f"{_shown(candidate)} is a directory"
        elif not os.access(candidate, os.X_OK):
            denied = denied or f"{_shown(candidate)} has no permission to be executed"
        else:
            return candidate
    if denied:
        raise RefusedError(RefusalReason.NOT_EXECUTABLE, denied)
    raise RefusedError(RefusalReason.PROGRAM_NOT_FOUND, missing)


def _checked_environment(start: ExecStart) -> dict[bytes, bytes]:
    environment = {}
    for variable in start.env:
        if not variable.name or b"=" in variable.name or b"\0" in variable.name + variable.value:
            raise RefusedError(
                RefusalReason.INVALID,
                f"the environment variable named {_shown(variable.name)} is not allowed:"
                ' a name is not empty and has no "=", and neither part has a NUL byte',
            )
        environment[variable.name] = variable.value
    return environment


def _spawn_on_pipes(
    program: bytes, start: ExecStart, environment: Mapping[bytes, bytes], limits: Limits
) -> Spawned:
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for number in range(2 if start.merge_stderr else 3):
            reading, writing = os.pipe()
            theirs.append(writing if number else reading)
            ours.append(reading if number else writing)
            os.set_blocking(ours[number], False)
        if start.merge_stderr:
            theirs.append(os.dup(theirs[1]))
        with _standing_in(theirs):
            pid = _posix_spawn(program, start, environment, [], limits)
    except (OSError, RefusedError):
        _close_all(ours)
        raise
    finally:
        _close_all(theirs)
    return Spawned(pid, ours[0], ours[1], None if start.merge_stderr else ours[2])


@contextmanager
def _standing_in(streams: Sequence[int]) -> Iterator[None]:
    """Have these as this process's own three streams while the block runs.

    A child inherits them so. Told to duplicate them instead, the library refuses
    descriptors that a limit of the command's would not allow.
    """
    with ExitStack() as undo:
        for number, fd in enumerate(streams):
            kept = os.dup(number)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
            os.dup2(fd, number)
        yield


def _spawn_on_terminal(
    program: bytes,
    start: ExecStart,
    environment: Mapping[bytes, bytes],
    size: TerminalSize,
    limits: Limits,
) -> Spawned:
    master, slave = os.openpty()
    ours = [master]
    try:
        set_terminal_size(master, size.rows, size.columns)
        os.set_blocking(master, False)
        ours.append(os.dup(master))  # One for each direction: they end separately.
        # A session leader that opens a terminal by its name makes it its own.
        actions: list[_FileAction] = [
            (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
        pid = _posix_spawn(program, start, environment, actions, limits)
    except (OSError, RefusedError):
        _close_all(ours)
        raise
    finally:
        os.close(slave)
    return Spawned(pid, stdin=ours[1], stdout=ours[0], stderr=None)


def _posix_spawn(
    program: bytes,
    start: ExecStart,
    environment: Mapping[bytes, bytes],
    actions: list[_FileAction],
    limits: Limits,
) -> int:
    with limits.applied():
        return os.posix_spawn(
            program,
            start.argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_RESET_SIGNALS,
        )


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _refusal(error: OSError, program: bytes) -> RefusedError:
    """Explain why a file that is there and may be executed was not."""
    if error.errno in _RESOURCES:
        return RefusedError(
            RefusalReason.RESOURCES, f"the guest cannot start {_shown(program)}: {error.strerror}"
        )
    if error.errno == errno.ENOENT:
        needed = _interpreter(program)
        what = f"the interpreter {_shown(needed)}" if needed else "a dynamic linker"
        sentence = f"{_shown(program)} needs {what}, which is not there"
    elif error.errno == errno.ENOEXEC:
        sentence = f"{_shown(program)} is neither a program for this machine nor a script with #!"
    else:
        sentence = f"{_shown(program)} cannot be executed: {error.strerror}"
    return RefusedError(RefusalReason.NOT_EXECUTABLE, sentence)


def _interpreter(program: bytes) -> bytes:
    """Return what the ``#!`` line of a script names; empty if it has none."""
    # By now it may be something else, and a fifo must not hold up the agent.
    with open(os.open(program, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        first_line = (file.read(_INTERPRETER_BYTES) or b"").partition(b"\n")[0]
    words = first_line[2:].split() if first_line.startswith(b"#!") else []
    return words[0] if words else b""


def _shown(text: bytes) -> str:
    shown = repr(os.fsdecode(text))
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
