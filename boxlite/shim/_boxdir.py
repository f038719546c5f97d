"""Files of a box's directory, reached through one open descriptor of it.

So a directory that is renamed or removed while the VM runs costs log lines and
nothing else, and no path is ever too long.
"""

from __future__ import annotations

import os


def open_box_dir(path: str) -> int:
    """Return a descriptor of the directory, good for ``dir_fd``.

    Raises:
        OSError: It is not there, or is not a directory.
    """
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def publish(box: int, name: str, data: bytes, *, durable: bool = False) -> None:
    """Replace a file in one step: a reader sees the old content, or all of the new.

    Args:
        box: The box's directory.
        name: The file in it.
        data: Its new content.
        durable: Have the content on the disk before the name shows it.

    Raises:
        OSError: It could not be written; the file is as it was.
    """
    draft = f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        fd = os.open(draft, flags, 0o600, dir_fd=box)
        try:
            while data:
                data = data[os.write(fd, data) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, name, src_dir_fd=box, dst_dir_fd=box)
    except OSError:
        remove(box, draft)
        raise


def remove(box: int, name: str) -> None:
    """Remove a file if that is possible."""
    try:
        os.unlink(name, dir_fd=box)
    except OSError:
        return


def identity(pid: int) -> bytes:
    """Return what a pid file says: the pid, and when that process started.

    The start time tells the process from a later one with its pid. It is field 22
    of ``/proc/PID/stat``, in clock ticks since boot (proc(5)).
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        stat = file.read()
    # The program's name is in parentheses and may hold anything: count from its end.
    start_time = stat[stat.rindex(b")") + 1 :].split()[19]
    return b"%d\n%s\n" % (pid, start_time)
