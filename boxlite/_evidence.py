"""Reading what a dead box left: bounded, and never trusted.

The files lie in the box's own directory, but their contents come from QEMU and
from the guest. So nothing here follows a symbolic link, reads more than it was
told to, or lets a control character through to a terminal.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path

#: Enough of a log for a person; more belongs in an editor.
HEAD_BYTES: Final = 16 << 10
TAIL_BYTES: Final = 64 << 10

_NOT_REGULAR: Final = "it is not a regular file"

# A kernel's console is ASCII, and translating that takes no time at all.
_ASCII_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n"
}


@attrs.frozen
class Excerpt:
    """The beginning and the end of a file.

    Args:
        size: The size of the whole file in bytes; None when it could not be read.
        head: Its first bytes.
        tail: Its last bytes; they may overlap the first.
        problem: Why it could not be read; empty when it was, or is not there.
    """

    size: int | None
    head: bytes = b""
    tail: bytes = b""
    problem: str = ""

    @property
    def whole(self) -> bytes | None:
        """All of the file, when the excerpt is all of it."""
        return self.head if self.size == len(self.head) else None


def read_excerpt(path: Path, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> Excerpt:
    """Read the two ends of a regular file; of anything else it is said that it is none.

    Args:
        path: The file. A symbolic link is not followed.
        head: The most bytes to read from the beginning.
        tail: The most bytes to read from the end.
    """
    try:
        # O_NONBLOCK: opening a fifo that somebody left there must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Excerpt(None)
    except OSError as exc:
        link = exc.errno == errno.ELOOP
        return Excerpt(None, problem=_NOT_REGULAR if link else f"{exc.strerror}")
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return Excerpt(None, problem=_NOT_REGULAR)
        first = os.pread(fd, head, 0)
        last = os.pread(fd, tail, max(0, found.st_size - tail))
    except OSError as exc:
        return Excerpt(None, problem=f"{exc.strerror}")
    finally:
        os.close(fd)
    return Excerpt(found.st_size, first, last)


def printable(data: bytes) -> str:
    r"""Return bytes as text that is safe to print: no control character, no escape sequence.

    Newline and tab stay, a carriage return before a newline goes, valid UTF-8
    stays, and everything else is shown as ``\xNN``.
    """
    text = data.replace(b"\r\n", b"\n").decode("utf-8", errors="backslashreplace")
    text = text.translate(_ASCII_CONTROLS)
    if text.isascii():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\t\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def last_lines(data: bytes, count: int, *, width: int = 400) -> str:
    """Return the last lines of a log, printable, each cut at a width in characters."""
    # A line of the result takes at most this much, whatever is before it.
    near = data[-count * (width + 1) * 4 :]
    lines = [line for line in printable(near).split("\n") if line.strip()]
    return "\n".join(_cut(line, width) for line in lines[-count:])


def first_lines(data: bytes, count: int, *, width: int = 400) -> str:
    """Return the first lines of a log, printable, each cut at a width in characters."""
    lines = [line for line in printable(data).split("\n") if line.strip()]
    shown = [_cut(line, width) for line in lines[:count]]
    if len(lines) > count:
        shown.append(f"... ({len(lines) - count} more lines)")
    return "\n".join(shown)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[:width]}..."
