"""What a piece of code leaves: its value, its output, its exception."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class CodeError:
    """The exception that a piece of code ended with.

    Args:
        type: The name of its class.
        message: Its text.
        traceback: As Python prints it, from the code on.
    """

    type: str
    message: str
    traceback: str


@attrs.frozen(kw_only=True)
class RichResult:
    """A value that shows itself as something else than text, such as a plot.

    Args:
        mime: Of which kind, such as ``"image/png"``.
        data: The bytes of it.
    """

    mime: str
    data: bytes


@attrs.frozen(kw_only=True)
class CodeResult:
    """What came of a piece of code.

    Args:
        value: The ``repr()`` of its last expression; None if that was None, or no expression.
        stdout: What it wrote to standard output.
        stderr: What it wrote to standard error.
        error: The exception that it ended with; None if it did not.
        results: What it displayed, and how its value shows itself, in order.
        stdout_truncated: It wrote more than was kept.
        stderr_truncated: The same for standard error.
    """

    value: str | None = None
    stdout: str = ""
    stderr: str = ""
    error: CodeError | None = None
    results: tuple[RichResult, ...] = ()
    stdout_truncated: bool = False
    stderr_truncated: bool = False
