"""What this machine has, apart from QEMU and KVM.

Each function looks at one thing, says in a few words what it found, and raises
:class:`~boxlite.HostError` if a box cannot run with that. They read a file or make
a system call or two; only those about paths may block for longer.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._errors import HostError
from ._home import nearest_directory
from ._kit.busybox import find_busybox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._layout import HomeLayout

#: For a kernel package, what is in it, and the initramfs made of it.
KIT_DISK_BYTES: Final = 1 << 30
#: For the logs of boxes, once there is a kit.
BOX_DISK_BYTES: Final = 64 << 20
#: What QEMU needs beside the guest's own memory.
QEMU_MEMORY_MIB: Final = 64
#: A box keeps about 20 open; starting one and fetching a kernel need some more.
OPEN_FILES: Final = 128

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def examine_platform() -> str:
    """Require Linux on x86-64: the guest's kernel and programs are that."""
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        raise HostError(
            f"this is {sys.platform} on {machine or 'an unknown processor'}",
            fix="Use an x86-64 Linux host, or an x86-64 Linux virtual machine.",
        )
    return f"Linux {platform.release()}, {machine}"


def examine_proc() -> str:
    """Require /proc: processes are told apart and sockets are reached through it."""
    try:
        own = (_PROC / "self").readlink()
    except OSError as error:
        raise HostError(
            f"{_PROC} is not mounted: {error.strerror}",
            fix="Mount it: `sudo mount -t proc proc /proc`.",
        ) from error
    if str(own) != str(os.getpid()):
        raise HostError(
            f"{_PROC} belongs to another PID namespace: it calls this process {own}",
            fix="Mount a /proc of this namespace: `unshare --mount-proc`.",
        )
    return "mounted"


def examine_pidfd() -> str:
    """Require pidfds, which tell the end of a process without polling (Linux 5.3)."""
    try:
        fd = os.pidfd_open(os.getpid())
    except AttributeError:
        problem, fix = "this Python was built without os.pidfd_open()", "Use another build of it."
    except OSError as error:
        if error.errno == errno.ENOSYS:
            problem = f"this kernel, {platform.release()}, has no pidfd_open()"
            fix = "Use Linux 5.3 or newer."
        else:
            problem = f"pidfd_open() is forbidden here: {error.strerror}"
            fix = "Allow it in the seccomp profile of the container or service."
    else:
        os.close(fd)
        return "available"
    raise HostError(problem, fix=fix)


def examine_open_files() -> str:
    """Require room for open files below the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise HostError(
            f"a process may have {soft} open files here (RLIMIT_NOFILE), and {OPEN_FILES}"
            " are needed",
            fix=f"Run `ulimit -n {max(OPEN_FILES, 1024)}`"
            + (" as root; the hard limit is as low." if hard < OPEN_FILES else "."),
        )
    return "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}"


def examine_disk(home: HomeLayout) -> str:
    """Require free space in the home: much for making a kit, little once there is one."""
    try:
        directory = nearest_directory(home.root)
        found = os.statvfs(directory)
        has_kit = home.kit.is_dir() and any(home.kit.iterdir())
    except OSError as error:
        raise HostError(
            f"the free space in {home.root} cannot be told: {error.strerror}",
            fix="Give another home as RuntimeOptions.home or BOXLITE_HOME.",
        ) from error
    free = found.f_bavail * found.f_frsize
    needed, purpose = (
        (BOX_DISK_BYTES, "running boxes") if has_kit else (KIT_DISK_BYTES, "making a guest kit")
    )
    if free < needed:
        raise HostError(
            f"{free >> 20} MiB are free in {directory}, and {purpose} needs {needed >> 20} MiB",
            fix="Free some, or give a home elsewhere as RuntimeOptions.home or BOXLITE_HOME.",
        )
    return f"{free >> 20} MiB free"


def examine_memory(memory_mib: int) -> str:
    """Require that a box's memory is there: free, in caches or as swap, in this control group.

    Args:
        memory_mib: The guest's memory in MiB.
    """
    available = _available_mib()
    if available is None:
        return "not known"
    needed = memory_mib + QEMU_MEMORY_MIB
    if available < needed:
        raise HostError(
            f"{available} MiB of memory are available, and a box of {memory_mib} MiB"
            f" needs {needed} MiB",
            fix="Give the box less memory_mib, or end something else.",
        )
    return f"{available} MiB available"


def _available_mib() -> int | None:
    """Return the memory that could still be had, or None if the kernel does not say."""
    try:
        lines = (_PROC / "meminfo").read_text("ascii").splitlines()
        fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        kib = int(fields["MemAvailable"][0]) + int(fields["SwapFree"][0])
    except (OSError, ValueError, LookupError):
        return None
    return min([kib // 1024, *_group_limits_mib()])


def _group_limits_mib() -> Iterator[int]:
    """Yield the memory limits of this process's control group and of those above (v2)."""
    try:
        line = (_PROC / "self" / "cgroup").read_text("utf-8").partition("0::/")[2]
    except (OSError, ValueError):
        return
    group = _CGROUPS / line.partition("\n")[0]
    for directory in (group, *group.parents):
        # A namespace hides the groups above; and the limit may be "max".
        with suppress(OSError, ValueError):
            yield int((directory / "memory.max").read_text("ascii")) >> 20
        if directory == _CGROUPS:
            return


def examine_downloader() -> str:
    """Require what fetches and unpacks Debian's kernel package."""
    programs = ("apt-get", "apt-cache", "dpkg-deb")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise HostError(
            "there is no readable kernel in /boot, and without"
            f" {', '.join(missing)} none can be fetched",
            fix="Give a bzImage with its modules as RuntimeOptions.kernel or BOXLITE_KERNEL.",
        )
    return "none yet; Debian's package will be downloaded"


def examine_busybox() -> str:
    """Require a statically linked busybox: it is the guest's shell and tools."""
    return str(find_busybox())
