"""Whether /dev/kvm can be opened, and what would help where it cannot or does not do."""

from __future__ import annotations

import errno
import grp
import os
import platform
import stat
import sys
from pathlib import Path
from typing import Final

import attrs

from boxlite._errors import HostError

from . import kvm_probe

DEVICE: Final = Path("/dev/kvm")

_NESTED: Final = "Use a host with KVM on real hardware, or one with nested virtualisation"


@attrs.frozen
class NoDevice:
    """KVM cannot even be tried.

    Args:
        detail: Why, without a full stop.
        fix: What would help, without a full stop.
    """

    detail: str
    fix: str


def examine_device() -> NoDevice | dict[str, object]:
    """Return why KVM cannot be tried, or everything that a verdict on it depends on.

    Opening is the only true test of access (there are device control groups and access
    lists). It may load a module, so this is for a thread.

    Raises:
        HostError: ``/proc`` is not mounted.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        detail = f"this host is {sys.platform} on {machine}, and guests are for x86-64"
        return NoDevice(detail, "Use an x86-64 Linux host")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _no_device(error)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError as error:
        raise HostError("/proc is not mounted", fix="Mount it.") from error
    return {
        "probe": kvm_probe.VERSION,
        "boot": boot,
        "kernel": platform.release(),
        # Another module behind the same device is another KVM.
        "modules": sorted(path.name for path in Path("/sys/module").glob("kvm*")),
        "device": [found.st_rdev, found.st_mode, found.st_uid, found.st_gid],
        "uid": os.geteuid(),
    }


def _no_device(error: OSError) -> NoDevice:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return NoDevice(f"{DEVICE} is there, but this user may not open it", _access_fix())
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return NoDevice(f"there is no {DEVICE}", missing_fix())
    return NoDevice(f"{DEVICE} cannot be opened: {error.strerror}", missing_fix())


def _access_fix() -> str:
    try:
        found = DEVICE.stat()
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        pass
    else:
        # Nobody should join the group of root for this.
        if stat.S_IMODE(found.st_mode) & 0o060 == 0o060 and found.st_gid != 0:
            return f"Run `sudo usermod -aG {group} $USER` and log in again"
    return f"Run `sudo setfacl -m u:$USER:rw {DEVICE}`, or add a udev rule that lets a group in"


def missing_fix() -> str:
    """Say how to get the device."""
    if "microsoft" in platform.release().lower():
        return "Set nestedVirtualization=true in .wslconfig and run `wsl --shutdown`"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "Give the container the device: `--device /dev/kvm`"
    try:
        flags = Path("/proc/cpuinfo").read_text("ascii", "replace").split()
    except OSError:
        flags = []
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in flags:
            return f"Run `sudo modprobe {module}`"
    return (
        "Enable virtualisation in the firmware; in a virtual machine,"
        " have its host enable nested virtualisation"
    )


def unusable_fix() -> str:
    """Say what helps where the device is there and guests do not run."""
    if Path("/sys/module/kvm_pvm").exists():
        return f"The module kvm_pvm runs only kernels that were made for it. {_NESTED}"
    return _NESTED
