"""``boxlite shell`` on a real terminal: what is typed, what is shown, and how it is left."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import READY_TIMEOUT, Stage, second_home

from boxlite._layout import BoxLayout
from boxlite._process import read_pid_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.parametrize("stage", [True], ids=[""], indirect=True, scope="session")

_SECONDS = 60


class Terminal:
    """The other side of a pseudo-terminal: a person with a keyboard and a screen.

    Attributes:
        shown: What is on the screen that has not been looked for yet.
        mode: The terminal's mode before anything ran on it.
    """

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.shown = b""
        self.mode = termios.tcgetattr(self.slave)
        self.resize(30, 100)

    def resize(self, rows: int, columns: int) -> None:
        """Change its size; the kernel tells whoever is in the foreground."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def see(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until something is shown, and look on from there."""
        deadline = time.monotonic() + _SECONDS
        while (found := re.search(pattern, self.shown)) is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(0, left))
            assert ready, f"{pattern!r} was not shown; there was {self.shown!r}"
            self.shown += os.read(self.master, 65536)
        self.shown = self.shown[found.end() :]
        return found

    def close(self) -> None:
        """Take it away."""
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def shell(home: Path, *arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a shell on a terminal of its own; see that it leaves the terminal as it was."""
    terminal = Terminal()
    command = [sys.executable, "-m", "boxlite", "--home", str(home), "shell", *arguments]
    environment: dict[str, Any] = {**os.environ, "TERM": "vt100"}
    environment["BOXLITE_READY_TIMEOUT"] = str(READY_TIMEOUT)

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        command,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env=environment,
        start_new_session=True,
        preexec_fn=own_terminal,  # noqa: PLW1509 - it is one system call
    ) as process:
        try:
            yield terminal, process
            assert termios.tcgetattr(terminal.slave) == terminal.mode
        finally:
            process.kill()
            process.wait()
            terminal.close()


@pytest.fixture(scope="module")
def home(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own, with the session's kit."""
    stage.play_in_box(lambda box: box.ping())
    return second_home(tmp_path_factory.mktemp("shell"), stage)


def test_a_shell_is_a_terminal_in_a_box(home: Path) -> None:
    """Size, kind, line editing, job control and exit code are as on any terminal."""
    with shell(home, "-e", "GREETING=hello", "-w", "/tmp") as (terminal, process):
        terminal.see(rb"# ")
        terminal.type(b"stty size; echo $TERM-$GREETING; pwd; tty\r")
        terminal.see(rb"30 100\r\n")
        terminal.see(rb"vt100-hello\r\n/tmp\r\n/dev/pts/")
        # ^C ends the command in the foreground, and not the shell, nor this program.
        terminal.type(b"sh -c 'echo u''p; exec sleep 1000'\r")
        terminal.see(rb"up\r\n")
        terminal.type(b"\x03")
        terminal.see(rb"# ")
        terminal.type(b"echo code $?\r")
        terminal.see(rb"code 130\r\n")
        # ^Z stops a job, and fg brings it back.
        terminal.type(b"sh -c 'echo u''p; exec sleep 1000'\r")
        terminal.see(rb"up\r\n")
        terminal.type(b"\x1a")
        terminal.see(rb"Stopped")
        terminal.type(b"jobs; fg\r")
        terminal.see(rb"Stopped")
        terminal.see(rb"sh -c .*\r\n")
        terminal.type(b"\x03")
        terminal.see(rb"# ")
        terminal.type(b"echo code $?\r")
        terminal.see(rb"code 130\r\n")
        terminal.resize(44, 88)
        terminal.type(b"until stty size | grep '^44 88'; do sleep 0.05; done\r")
        terminal.see(rb"44 88\r\n")
        assert termios.tcgetattr(terminal.slave) != terminal.mode
        terminal.type(b"exit 7\r")
        assert process.wait(_SECONDS) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(home: Path, number: signal.Signals) -> None:
    """Somebody ends this program from elsewhere: 128 + n."""
    with shell(home) as (terminal, process):
        terminal.see(rb"# ")
        process.send_signal(number)
        assert process.wait(_SECONDS) == 128 + number


def test_the_death_of_the_box_leaves_the_terminal_as_it_was(home: Path) -> None:
    """And the report can be read on it."""
    with shell(home) as (terminal, process):
        terminal.see(rb"# ")
        (box,) = (home / "boxes").iterdir()
        vm = read_pid_file(BoxLayout(box).vm_pid)
        assert vm is not None
        os.kill(vm.pid, signal.SIGKILL)
        terminal.see(rb"died while it was running: the VM was ended by SIGKILL\r\n")
        assert process.wait(_SECONDS) == 125


def test_a_command_of_ones_own_and_the_end_of_input(home: Path) -> None:
    """^D at an empty line is the end of the input."""
    with shell(home, "--", "python3", "-c", "print(input('name? ')); input()") as (
        terminal,
        process,
    ):
        terminal.see(rb"name\? ")
        terminal.type(b"Jane\r")
        terminal.see(rb"Jane\r\nJane\r\n")
        terminal.type(b"\x04")
        terminal.see(rb"EOFError")
        assert process.wait(_SECONDS) == 1


def test_without_a_terminal_it_says_what_to_do(home: Path) -> None:
    """Nothing is started for it."""
    done = subprocess.run(
        [sys.executable, "-m", "boxlite", "--home", str(home), "shell"],
        input=b"",
        capture_output=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 2
    assert b"a shell needs a terminal" in done.stderr
