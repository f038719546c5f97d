"""The devices that make one box's machine another than the next: disks and volumes.

A template has them with nothing behind them, so that their guest drivers, which it has
not loaded, find in each box what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from boxlite._wire import CHANGES_DISK, IMAGE_DISK, VOLUME_TAG, VOLUMES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .argv import Switch


@attrs.frozen(kw_only=True)
class Disk:
    """``-blockdev`` and ``-device virtio-blk-pci``: a disk, known in the guest by its serial.

    Args:
        serial: Its serial number, and its name in QEMU.
        fd: The file, open in QEMU; None for a disk with nothing on it.
        read_only: The guest cannot write to it, whatever it tries.
    """

    serial: str
    fd: int | None
    read_only: bool

    def argv(self) -> list[str]:
        """Return the switches."""
        read_only = f"read-only={'on' if self.read_only else 'off'}"
        node = f"node-name={self.serial},{read_only}"
        if self.fd is None:
            backend = f"driver=null-co,{node},size=1048576"
        else:
            # What the guest discards is given back: the file has holes again.
            backend = f"driver=file,{node},auto-read-only=off,discard=unmap"
            backend += f",filename=/proc/self/fd/{self.fd}"
        # The guest is told of a host's full disk. QEMU's own way is to stop the machine.
        errors = "werror=report,rerror=report"
        device = f"virtio-blk-pci,drive={self.serial},serial={self.serial},{errors}"
        return ["-blockdev", backend, "-device", device]


@attrs.frozen(kw_only=True)
class SharedDirectory:
    """``-fsdev`` and ``-device virtio-9p-pci``: a directory of the host, known by its tag.

    QEMU follows no symbolic link in it, and opens nothing outside of it. Read-only, it
    refuses every change. Otherwise ownership, modes and links that the guest sets are
    kept in extended attributes (``user.virtfs``), and on the host everything is an
    ordinary file or directory of QEMU's user: no set-user-ID program, no device, no link
    comes to be there.

    Args:
        tag: The mount tag.
        fd: The directory, open in QEMU; None for one with nothing in it.
        read_only: The guest cannot change it, whatever it tries.
    """

    tag: str
    fd: int | None
    read_only: bool = True

    def argv(self) -> list[str]:
        """Return the switches."""
        device = f"virtio-9p-pci,fsdev={self.tag},mount_tag={self.tag}"
        if self.fd is None:
            return ["-fsdev", f"synth,id={self.tag}", "-device", device]
        rules = "security_model=none,readonly=on"
        if not self.read_only:
            rules = "security_model=mapped-xattr,fmode=0644,dmode=0755"
        backend = f"local,id={self.tag},path=/proc/self/fd/{self.fd},multidevs=remap,{rules}"
        return ["-fsdev", backend, "-device", device]


@attrs.frozen(kw_only=True)
class VolumeFile:
    """A directory of the host that is open, and what the guest may do with it."""

    fd: int
    read_only: bool


@attrs.frozen(kw_only=True)
class DeviceFiles:
    """The open files behind a box's devices; they stay open here.

    Args:
        image: The image's root file system; None for the built-in one.
        changes: The disk for what is changed in it; None as well then.
        volumes: The directories of volumes.
    """

    image: int | None = None
    changes: int | None = None
    volumes: Sequence[VolumeFile] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """Those that there are."""
        disks = (fd for fd in (self.image, self.changes) if fd is not None)
        return (*disks, *(volume.fd for volume in self.volumes))


def device_switches(files: DeviceFiles, *, share: bool) -> list[Switch]:
    """Return the switches of the devices, in a fixed order.

    Args:
        files: What is behind them.
        share: Have the devices of volumes, as many as a box may have; without it none.
    """
    slots: list[VolumeFile | None] = [*files.volumes, *[None] * VOLUMES_MAX][:VOLUMES_MAX]
    return [
        Disk(serial=IMAGE_DISK, fd=files.image, read_only=True),
        Disk(serial=CHANGES_DISK, fd=files.changes, read_only=False),
        *(
            SharedDirectory(
                tag=VOLUME_TAG.format(index=index),
                fd=None if slot is None else slot.fd,
                read_only=slot is None or slot.read_only,
            )
            for index, slot in enumerate(slots if share else ())
        ),
    ]
