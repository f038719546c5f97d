"""QEMU's command line as data: one class per switch, each with its ``argv()``.

Names are QEMU's own. Nothing here touches the system, so what a box's command
line will be can be asserted without a machine. Switches are described in
qemu-system-x86_64(1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Switch(Protocol):
    """A part of the command line."""

    def argv(self) -> list[str]:
        """Return the switch and its value, ready for exec."""
        ...


def escaped(value: object) -> str:
    """Return a value for a ``key=value,...`` list, where QEMU reads ``,,`` as a comma."""
    return str(value).replace(",", ",,")


@attrs.frozen(kw_only=True)
class Machine:
    """``-machine``: a Q35 without the legacy devices that a guest here never uses.

    ``microvm`` would be smaller, but under software emulation it hangs at
    random while it calibrates its clock; Q35 has HPET and the ACPI PM timer.
    """

    accelerator: str
    memory_backend: str | None = None

    def argv(self) -> list[str]:
        """Return the switch."""
        value = f"q35,accel={self.accelerator},usb=off,vmport=off,sata=off,smbus=off"
        if self.memory_backend is not None:
            value += f",memory-backend={self.memory_backend}"
        return ["-machine", value]


@attrs.frozen(kw_only=True)
class Cpu:
    """``-cpu`` and ``-smp``."""

    model: str
    count: int

    def argv(self) -> list[str]:
        """Return the switches."""
        return ["-cpu", self.model, "-smp", str(self.count)]


@attrs.frozen
class Memory:
    """``-m``."""

    mib: int

    def argv(self) -> list[str]:
        """Return the switch."""
        return ["-m", f"{self.mib}M"]


@attrs.frozen(kw_only=True)
class MemoryFile:
    """``-object memory-backend-file``: the machine's memory is a mapped file.

    Args:
        mib: Its size; the file has it.
        fd: The file, open in QEMU. It is opened again through its descriptor, so
            that it does not matter what becomes of its name.
        shared: Write to the file; otherwise only to a private copy of each page.
    """

    mib: int
    fd: int
    shared: bool

    def argv(self) -> list[str]:
        """Return the switches; the machine names the backend as ``ram``."""
        value = f"memory-backend-file,id={MEMORY_BACKEND},size={self.mib}M"
        value += f",mem-path=/proc/self/fd/{self.fd},share={'on' if self.shared else 'off'}"
        return ["-object", value, *Memory(self.mib).argv()]


@attrs.frozen(kw_only=True)
class DirectBoot:
    """``-kernel``, ``-initrd`` and ``-append``."""

    kernel: Path
    initramfs: Path
    command_line: str

    def argv(self) -> list[str]:
        """Return the switches."""
        return [
            *("-kernel", str(self.kernel)),
            *("-initrd", str(self.initramfs)),
            *("-append", self.command_line),
        ]


@attrs.frozen
class Sandbox:
    """``-sandbox``: QEMU's own seccomp filter, everything denied that it can do without."""

    def argv(self) -> list[str]:
        """Return the switch."""
        denied = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
        return ["-sandbox", ",".join(["on", *(f"{name}=deny" for name in denied)])]


@attrs.frozen(kw_only=True)
class SocketChardev:
    """``-chardev socket`` on a descriptor that QEMU inherits, so that no path is involved.

    Args:
        id: The chardev's name in QEMU.
        fd: A connected socket, or a listening one.
        listening: Whether it listens; QEMU then serves one connection at a time.
    """

    id: str
    fd: int
    listening: bool = False

    def argv(self) -> list[str]:
        """Return the switch."""
        value = f"socket,id={escaped(self.id)},fd={self.fd}"
        return ["-chardev", value + ",server=on,wait=off" if self.listening else value]


@attrs.frozen
class SerialConsole:
    """``-serial``: the 16550 at 0x3F8 that the kernel calls ttyS0."""

    chardev: str

    def argv(self) -> list[str]:
        """Return the switch."""
        return ["-serial", f"chardev:{self.chardev}"]


@attrs.frozen(kw_only=True)
class VirtioSerialBus:
    """``-device virtio-serial-pci``: the bus of the ports."""

    ports: int

    def argv(self) -> list[str]:
        """Return the switch. Port 0 is reserved for a console, hence one more."""
        return ["-device", f"virtio-serial-pci,id=serial,max_ports={self.ports + 1}"]


@attrs.frozen(kw_only=True)
class VirtioSerialPort:
    """``-device virtserialport``: one port, found by its name in the guest."""

    chardev: str
    name: str

    def argv(self) -> list[str]:
        """Return the switch."""
        value = f"virtserialport,bus=serial.0,chardev={escaped(self.chardev)}"
        return ["-device", f"{value},name={escaped(self.name)}"]


@attrs.frozen
class Monitor:
    """``-mon``: QEMU's control protocol, QMP."""

    chardev: str

    def argv(self) -> list[str]:
        """Return the switch."""
        return ["-mon", f"chardev={escaped(self.chardev)},mode=control"]


@attrs.frozen
class AwaitState:
    """``-incoming defer``: the machine stands still until its monitor names a state."""

    def argv(self) -> list[str]:
        """Return the switch."""
        return ["-incoming", "defer"]


@attrs.frozen
class Bare:
    """Switches that take no thought: no default devices, no display, no reboot."""

    name: str

    def argv(self) -> list[str]:
        """Return the switches."""
        return [
            *("-name", escaped(self.name)),
            "-no-user-config",
            "-nodefaults",
            "-no-reboot",
            *("-display", "none"),
        ]


def command_line(program: Path, switches: Iterable[Switch]) -> list[str]:
    """Return the whole command line of one VM."""
    return [str(program), *(word for switch in switches for word in switch.argv())]


def machine_switches(
    *,
    name: str,
    accelerator: str,
    cpus: int,
    memory: Memory | MemoryFile,
    boot: DirectBoot | AwaitState,
    control: SocketChardev,
    console: SocketChardev,
    agents: Sequence[SocketChardev],
    port_names: Sequence[str],
    devices: Sequence[Switch] = (),
    monitor: SocketChardev | None = None,
) -> list[Switch]:
    """Return the switches of a box's VM, in a fixed order.

    Args:
        name: Shown in the process list.
        accelerator: ``"kvm"`` or ``"tcg"``.
        cpus: Virtual CPUs.
        memory: The memory.
        boot: Where the machine's state comes from. A machine that is given one
            needs no kernel: that is in its memory.
        control: The shim's line to the agent.
        console: Where the serial console goes.
        agents: One listening chardev per agent port.
        port_names: The guest's names of the control port and the agent ports.
        devices: Disks and the like.
        monitor: The shim's line to QEMU. It is no device of the machine.
    """
    backend = MEMORY_BACKEND if isinstance(memory, MemoryFile) else None
    ports = [control, *agents]
    return [
        Bare(name),
        Sandbox(),
        Machine(accelerator=accelerator, memory_backend=backend),
        Cpu(model="host" if accelerator == "kvm" else TCG_CPU_MODEL, count=cpus),
        memory,
        boot,
        console,
        SerialConsole(console.id),
        VirtioSerialBus(ports=len(ports)),
        *ports,
        *(
            VirtioSerialPort(chardev=port.id, name=guest_name)
            for port, guest_name in zip(ports, port_names, strict=True)
        ),
        *devices,
        *((monitor, Monitor(monitor.id)) if monitor is not None else ()),
    ]


MEMORY_BACKEND = "ram"


#: Everything that TCG can emulate, except what only costs time: five-level page tables,
#: and "enhanced REP MOVSB", with which Linux copies byte by byte. TCG takes as long
#: for a byte as for a word, so that all copying in the guest is some five times slower.
TCG_CPU_MODEL = "max,la57=off,erms=off"

#: ``panic=-1`` reboots at once on a panic, and ``-no-reboot`` turns that into an exit.
KERNEL_COMMAND_LINE = "console=ttyS0 panic=-1"
