"""The namespaces that an image's commands have of their own, and the process that is 1 in them.

They are made before a template is taken, when there is no image yet and nothing else
to do; a box without an image leaves them alone. A process is forked into them while the
agent is still small. It has two things to do: to mount /proc, which shows the processes
of the namespace of whoever mounts it, and to be the parent of orphans. It may be seen in
there, so it has nothing of the agent's: neither its root nor its descriptors.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final, NamedTuple

from . import kernel

_OWN: Final = "/proc/self/ns"
_DONE: Final = b"\0"
_REPORT_BYTES: Final = 4096


class Namespaces(NamedTuple):
    """What there is of them.

    Attributes:
        mounts: The mount namespace. So far it has what the agent's has.
        processes: The PID namespace; whoever enters it has its children there.
        orders: Where process 1 reads what to mount.
        reports: Where it says that it has done so.
    """

    mounts: int
    processes: int
    orders: int
    reports: int

    def mount_proc(self, root: str, flags: int) -> None:
        """Have process 1 mount /proc in a root file system, and wait at that one's door.

        Raises:
            OSError: It could not.
        """
        self._order(f"{flags} {root}")

    def enter_root(self) -> None:
        """Have process 1 make that its root, which by now is the namespace's.

        Raises:
            OSError: It could not.
        """
        self._order("")

    def _order(self, order: str) -> None:
        os.write(self.orders, f"{order}\n".encode())
        report = os.read(self.reports, _REPORT_BYTES)
        if report != _DONE:
            number = int(report or errno.EIO)
            raise OSError(number, os.strerror(number), order)


def make_namespaces() -> Namespaces:
    """Make them, and process 1 of them; be back in the agent's own when it returns.

    It forks: it must be called before there is an event loop or a thread.

    Raises:
        OSError: The kernel has none, or no memory.
    """
    order_reader, orders = os.pipe()
    reports, report_writer = os.pipe()
    own_mounts = os.open(f"{_OWN}/mnt", os.O_RDONLY | os.O_CLOEXEC)
    own_processes = os.open(f"{_OWN}/pid", os.O_RDONLY | os.O_CLOEXEC)
    # Names of the machine and of its queues are nothing that the agent needs its own of.
    kernel.unshare(
        kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID
    )
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    if not os.fork():
        _be_process_1(order_reader, report_writer)
    os.close(order_reader)
    os.close(report_writer)
    mounts = os.open(f"{_OWN}/mnt", os.O_RDONLY | os.O_CLOEXEC)
    processes = os.open(f"{_OWN}/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
    kernel.set_namespace(own_mounts, kernel.CLONE_NEWNS)
    kernel.set_namespace(own_processes, kernel.CLONE_NEWPID)
    os.close(own_mounts)
    os.close(own_processes)
    return Namespaces(mounts, processes, orders, reports)


def _be_process_1(orders: int, reports: int) -> None:
    """Do what is asked for, then wait for ever: the kernel buries children for it."""
    try:
        # Its end would be the end of all, and memory is not to be won by it.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
        low, high = sorted((orders, reports))
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, high + 64)
        # Whoever ignores SIGCHLD has no zombies (sigaction(2)). No signal from inside the
        # namespace reaches a process 1 that has no handler for it; Python has one for SIGINT.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        while order := os.read(orders, _REPORT_BYTES):
            flags, _, root = order.decode().strip().partition(" ")
            try:
                if root:
                    os.chdir(root)
                    kernel.mount("proc", "proc", "proc", int(flags))
                else:
                    os.chroot(".")
            except OSError as error:
                os.write(reports, str(error.errno).encode())
            else:
                os.write(reports, _DONE)
    finally:
        os._exit(1)
