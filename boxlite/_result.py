"""What a finished command leaves: its exit and its output."""

from __future__ import annotations

import signal as _signal

import attrs


@attrs.frozen(kw_only=True)
class ExecResult:
    """How a command ended, and what it wrote.

    Args:
        exit_code: 0 to 255 as the command chose it, or 128 + n when signal n
            ended it, as a shell reports it.
        signal: The number of that signal, or None.
        stdout: What was captured of standard output.
        stderr: What was captured of standard error.
        stdout_truncated: Output went on after ``max_output`` was reached; the
            rest was read and dropped.
        stderr_truncated: The same for standard error.
    """

    exit_code: int
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    def describe(self) -> str:
        """Say in a few words how the command ended."""
        if self.signal is None:
            return f"exited with {self.exit_code}"
        try:
            name = _signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"was ended by {name}"
