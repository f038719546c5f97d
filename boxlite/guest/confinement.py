"""What commands of an image may do, and how much of it.

A process gets by execve(2) no capability that is not in its bounding set, whoever it is.
The agent executes nothing itself, so it takes from its own set what its commands are not
to have and keeps what it has.
"""

from __future__ import annotations

import errno
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from boxlite._rpc._generated.boxlite.v1 import RefusalReason

from . import kernel
from .capabilities import SYS_RESOURCE, effective
from .refused import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from boxlite._rpc._generated.boxlite.v1 import ResourceLimit

#: What containers have by default, by the numbers of include/uapi/linux/capability.h:
#: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
#: net_raw, sys_chroot, audit_write, setfcap. Not mknod, which some of them give and then
#: take back by a filter of devices: a node of the box's own disk would be as good as root's
#: power over its file system.
KEPT_CAPABILITIES: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})
_ALLOWED: Final = frozenset(
    {
        *(resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK),
        *(resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_STACK),
    }
)
_USER_NAMESPACES: Final = "/proc/sys/user/max_user_namespaces"
#: What a limit says that is none, where the kernel's own number is negative to Python.
_NO_LIMIT: Final = (1 << 64) - 1


def confine() -> None:
    """Leave commands the capabilities that they have in containers, for good.

    And no user namespaces, in which they would have all of them again.

    Raises:
        OSError: The kernel refuses.
    """
    number = 0
    while number in KEPT_CAPABILITIES or kernel.drop_from_bounding_set(number):
        number += 1
    with open(_USER_NAMESPACES, "w", encoding="ascii") as file:
        file.write("0")


class Limits:
    """What every command is limited to, beside what the agent itself is."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, tuple[int, int]]] = []

    def set(self, limits: Sequence[ResourceLimit]) -> None:
        """Take limits; they hold for commands that are started from now on.

        Of the agent's own, which they are for the moment of a start, it must survive them:
        those of memory and of processor time are not among them.

        Raises:
            OSError: It is one that is not: EINVAL.
        """
        for limit in limits:
            if limit.resource not in _ALLOWED:
                raise OSError(errno.EINVAL, f"no limit {limit.resource} can be set")
        self._wanted = [
            (limit.resource, (_signed(limit.soft), _signed(limit.hard))) for limit in limits
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have them hold for this process, and for what it starts, while the block runs.

        They are this process's own for the moment, so there should be nothing in the block
        but the start.

        Raises:
            RefusedError: The kernel refuses one of them.
        """
        before: list[tuple[int, tuple[int, int]]] = []
        try:
            for number, values in self._wanted:
                try:
                    before.append((number, resource.getrlimit(number)))
                    resource.setrlimit(number, values)
                except (OSError, ValueError) as error:
                    raise RefusedError(
                        RefusalReason.INVALID, f"a limit cannot be set: {error}"
                    ) from None
            yield
        finally:
            with effective(SYS_RESOURCE, more=True):
                for number, values in reversed(before):
                    resource.setrlimit(number, values)


def _signed(value: int) -> int:
    return resource.RLIM_INFINITY if value == _NO_LIMIT else value
