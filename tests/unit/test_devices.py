"""The devices behind which a box's files are, on QEMU's command line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from boxlite._startup.machine import Machine
from boxlite._vm.accel import Accelerator
from boxlite._vm.argv import SocketChardev
from boxlite._vm.devices import (
    DeviceFiles,
    Disk,
    SharedDirectory,
    VolumeFile,
    device_switches,
)
from boxlite._vm.shim import Chardevs, MachineFiles
from boxlite._wire import AGENT_PORTS, VOLUMES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from boxlite._vm.argv import Switch

FILES = DeviceFiles(
    image=21,
    changes=22,
    volumes=[VolumeFile(fd=23, read_only=False), VolumeFile(fd=24, read_only=True)],
)
CHARDEVS = Chardevs(
    control=SocketChardev(id="control", fd=5),
    console=SocketChardev(id="console", fd=6),
    agents=[SocketChardev(id=f"agent{n}", fd=10 + n, listening=True) for n in range(AGENT_PORTS)],
    monitor=SocketChardev(id="monitor", fd=7),
)


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return switches with their values."""
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("switch", "backend", "device"),
    [
        (
            Disk(serial="image", fd=21, read_only=True),
            (
                "driver=file,node-name=image,read-only=on,auto-read-only=off,discard=unmap"
                ",filename=/proc/self/fd/21"
            ),
            "virtio-blk-pci,drive=image,serial=image,werror=report,rerror=report",
        ),
        (
            Disk(serial="changes", fd=22, read_only=False),
            (
                "driver=file,node-name=changes,read-only=off,auto-read-only=off,discard=unmap"
                ",filename=/proc/self/fd/22"
            ),
            "virtio-blk-pci,drive=changes,serial=changes,werror=report,rerror=report",
        ),
        (
            Disk(serial="changes", fd=None, read_only=False),
            "driver=null-co,node-name=changes,read-only=off,size=1048576",
            "virtio-blk-pci,drive=changes,serial=changes,werror=report,rerror=report",
        ),
        (
            SharedDirectory(tag="volume0", fd=23),
            (
                "local,id=volume0,path=/proc/self/fd/23,multidevs=remap"
                ",security_model=none,readonly=on"
            ),
            "virtio-9p-pci,fsdev=volume0,mount_tag=volume0",
        ),
        (
            SharedDirectory(tag="volume1", fd=24, read_only=False),
            (
                "local,id=volume1,path=/proc/self/fd/24,multidevs=remap"
                ",security_model=mapped-xattr,fmode=0644,dmode=0755"
            ),
            "virtio-9p-pci,fsdev=volume1,mount_tag=volume1",
        ),
        (
            SharedDirectory(tag="volume7", fd=None),
            "synth,id=volume7",
            "virtio-9p-pci,fsdev=volume7,mount_tag=volume7",
        ),
    ],
)
def test_a_device_is_a_backend_and_what_the_guest_sees(
    switch: Switch, backend: str, device: str
) -> None:
    """A read-only backend is what holds against root in the guest; files are descriptors."""
    front, behind = pairs(switch.argv())[::-1]

    assert behind[0] == ("-blockdev" if isinstance(switch, Disk) else "-fsdev")
    assert behind[1] == backend
    assert front == ("-device", device)


@pytest.mark.parametrize(
    ("files", "share", "tags"),
    [
        (DeviceFiles(), False, 0),
        (DeviceFiles(), True, VOLUMES_MAX),
        (FILES, True, VOLUMES_MAX),
        (
            DeviceFiles(volumes=[VolumeFile(fd=30 + n, read_only=True) for n in range(8)]),
            True,
            VOLUMES_MAX,
        ),
    ],
)
def test_a_box_has_as_many_devices_as_a_box_may_have(
    files: DeviceFiles, share: bool, tags: int
) -> None:
    """The guest of a template counts them before there is a box."""
    devices = [
        value.split(",")[:2]
        for switch in device_switches(files, share=share)
        for name, value in pairs(switch.argv())
        if name == "-device"
    ]

    assert devices == [
        *(["virtio-blk-pci", f"drive={name}"] for name in ("image", "changes")),
        *(["virtio-9p-pci", f"fsdev=volume{n}"] for n in range(tags)),
    ]


def test_what_is_behind_a_device_is_the_boxs_and_as_writable_as_it_was_asked_for() -> None:
    """The image never is; the changes are; a volume is if somebody said so."""
    backends = [switch.argv()[1] for switch in device_switches(FILES, share=True)]
    files = [
        ("driver=file,node-name=image,read-only=on,", "/21", ""),
        ("driver=file,node-name=changes,read-only=off,", "/22", ""),
        ("local,id=volume0,", "/23,", "security_model=mapped-xattr"),
        ("local,id=volume1,", "/24,", "readonly=on"),
    ]

    for backend, (start, fd, rule) in zip(backends, files, strict=False):
        assert backend.startswith(start)
        assert f"/proc/self/fd{fd}" in backend
        assert rule in backend
    assert "readonly" not in backends[2]
    assert backends[4:] == [f"synth,id=volume{n}" for n in range(2, VOLUMES_MAX)]
    bare = [switch.argv()[1] for switch in device_switches(DeviceFiles(), share=False)]
    assert [backend.split(",")[0] for backend in bare] == ["driver=null-co"] * 2


def test_the_open_files_are_those_that_are_there() -> None:
    """QEMU is passed these and no others."""
    assert DeviceFiles().fds == ()
    assert FILES.fds == (21, 22, 23, 24)
    assert DeviceFiles(volumes=FILES.volumes).fds == (23, 24)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that shares, of files that are no programs."""
    for name in ("qemu", "kernel", "initramfs"):
        (tmp_path / name).write_text(name)
    host: Any = SimpleNamespace(
        qemu=tmp_path / "qemu",
        qemu_version=SimpleNamespace(text="7.2.0"),
        accelerator=SimpleNamespace(accelerator=Accelerator.TCG),
    )
    kit: Any = SimpleNamespace(
        kernel=SimpleNamespace(image=tmp_path / "kernel", release="6.1.0-1"),
        initramfs=tmp_path / "initramfs",
        key="abc",
    )
    return Machine(host=host, kit=kit, cpus=1, memory_mib=256, share=True)


def command_line(
    machine: Machine, files: MachineFiles | None, devices: DeviceFiles
) -> list[tuple[str, str]]:
    """Return QEMU's switches, without the name in the process list."""
    words = machine.argv(name="boxlite-x", chardevs=CHARDEVS, files=files, devices=devices)[1:]
    alone = {"-nodefaults", "-no-user-config", "-no-reboot", "-nographic"} & set(words)
    return pairs([word for word in words if word not in alone])


def test_a_template_and_its_boxes_differ_in_what_is_behind_the_devices_alone(
    machine: Machine,
) -> None:
    """A device more or less, or in another place, and the state does not load."""
    save = MachineFiles(what="save", memory_fd=8, state_fd=9)
    derive = MachineFiles(what="derive", memory_fd=8, state_fd=9, saved_fd=11, prepare="/")
    restore = MachineFiles(what="restore", memory_fd=8, state_fd=9)
    template = command_line(machine, save, DeviceFiles())
    image = command_line(machine, derive, DeviceFiles(image=21, changes=22))
    box = command_line(machine, restore, FILES)

    def without(words: list[tuple[str, str]], *switches: str) -> list[tuple[str, str]]:
        return [word for word in words if word[0] not in switches]

    booted = ("-kernel", "-initrd", "-append", "-incoming")
    behind = ("-blockdev", "-fsdev")
    of_memory = ("-object",)
    assert without(template, *booted, *behind) == without(image, *booted, *behind)
    assert without(image, *behind, *of_memory) == without(box, *behind, *of_memory)
    assert [switch for switch in image if switch[0] in booted] == [("-incoming", "defer")]
    assert [dict(words)["-object"].rpartition(",")[2] for words in (template, image, box)] == [
        "share=on",
        "share=on",
        "share=off",
    ]


def test_a_templates_shape_depends_on_the_machine_alone(machine: Machine) -> None:
    """Or each box would have a template of its own. Having the devices of volumes does count."""
    shape = machine.shape()
    assert machine.shape() == shape
    apart = attrs.evolve(machine, share=False).shape()
    assert {name for name, value in shape.items() if apart[name] != value} == {"command_line"}
    machine.kit.kernel.image.write_text("another kernel")
    upgraded = machine.shape()

    assert {name for name, value in shape.items() if upgraded[name] != value} == {"kernel"}
