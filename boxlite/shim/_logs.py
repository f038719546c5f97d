"""What shim, QEMU and guest have to say, in files that cannot fill the disk.

No log is worth the VM: what cannot be written, because the disk is full or the
box's directory is gone, is dropped.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: A console log is set aside at this size, and there are at most two.
CONSOLE_BYTES: Final = 1 << 20
#: This much of what QEMU writes to standard error is kept: its beginning.
STDERR_BYTES: Final = 256 << 10

_TAIL_BYTES: Final = 4096
#: A pipe that polls writable takes this much without blocking (PIPE_BUF, pipe(7)).
_PIECE_BYTES: Final = 4096


class Stderr:
    """The shim's standard error: QEMU's words up to a limit, and the shim's own notes.

    It never blocks, even if somebody gave it a pipe and does not read it.

    Args:
        fd: Where to write.
        limit: How many bytes of QEMU's are written.
    """

    def __init__(self, fd: int = 2, *, limit: int = STDERR_BYTES) -> None:
        self._fd = fd
        self._left = limit
        self._limit = limit
        self._tail = b""
        self._at_line_start = True
        self._notes: set[str] = set()
        self._writable = select.poll()
        self._writable.register(fd, select.POLLOUT)

    def relay(self, data: bytes) -> None:
        """Take what QEMU wrote."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._left:
            self._write(data[: self._left])
            self._left -= min(len(data), self._left)
            if not self._left:
                self.note(f"QEMU wrote more than {self._limit} bytes here; the rest is dropped")

    def note(self, text: str) -> None:
        """Write a line of the shim's own. The same line is written once, so keep numbers out."""
        if text not in self._notes:
            self._notes.add(text)
            start = "" if self._at_line_start else "\n"
            self._write(f"{start}[shim] {text}\n".encode(errors="backslashreplace"))

    @property
    def last_line(self) -> str:
        """The last line that is not empty of what QEMU wrote, dropped or not."""
        lines = self._tail.decode(errors="backslashreplace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _write(self, data: bytes) -> None:
        while data:
            if not self._writable.poll(0):
                return
            try:
                written = os.write(self._fd, data[:_PIECE_BYTES])
            except OSError:
                return
            self._at_line_start = data[written - 1 : written] == b"\n"
            data = data[written:]


class RotatingLog:
    """A log of two files: the newest bytes, and the ones before them.

    Writing copies to the page cache and syncs nothing, so it is as quick as the
    kernel's memory.

    Args:
        box: The directory.
        name: The file; the older one has ``.old`` appended.
        complain: Told what goes wrong.
        limit: The size in bytes at which the file is set aside.
    """

    def __init__(
        self, box: int, name: str, *, complain: Callable[[str], None], limit: int = CONSOLE_BYTES
    ) -> None:
        self._box = box
        self._name = name
        self._complain = complain
        self._limit = limit
        self._fd: int | None = None
        self._size = 0
        # Also for a guest that never writes: an empty log is evidence, a missing one is not.
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Append bytes, or drop what cannot be appended."""
        try:
            fd = self._open()
            while data:
                if self._size >= self._limit:
                    fd = self._set_aside(fd)
                written = os.write(fd, data[: self._limit - self._size])
                self._size += written
                data = data[written:]
        except OSError as exc:
            self._complain(f"{self._name} is incomplete: {exc.strerror}")

    def _open(self) -> int:
        if self._fd is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(self._name, flags, 0o600, dir_fd=self._box)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _set_aside(self, fd: int) -> int:
        older = f"{self._name}.old"
        try:
            os.rename(self._name, older, src_dir_fd=self._box, dst_dir_fd=self._box)
        except FileNotFoundError:
            pass  # somebody removed it; to write on would fill the disk unseen
        except OSError as exc:
            # Starting over loses lines; going on would lose the bound.
            self._complain(f"{self._name} starts over: {exc.strerror}")
            os.ftruncate(fd, 0)
            self._size = 0
            return fd
        self._fd = None
        os.close(fd)
        return self._open()
