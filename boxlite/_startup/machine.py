"""The machine of a box: one description for the three ways in which it is started."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._vm.accel import Accelerator
from boxlite._vm.argv import (
    KERNEL_COMMAND_LINE,
    AwaitState,
    DirectBoot,
    Memory,
    MemoryFile,
    SocketChardev,
    command_line,
    machine_switches,
)
from boxlite._vm.devices import DeviceFiles, device_switches
from boxlite._vm.shim import Chardevs
from boxlite._wire import AGENT_PORT_NAME, AGENT_PORTS, CONTROL_PORT_NAME

if TYPE_CHECKING:
    from boxlite._kit import GuestKit
    from boxlite._preflight import Preflight
    from boxlite._vm.shim import MachineFiles

_CPU_INFO: Final = Path("/proc/cpuinfo")
#: What tells one processor from another, of the lines in there.
_CPU_FIELDS: Final = frozenset(
    {"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"}
)
_PORT_NAMES: Final = (
    CONTROL_PORT_NAME,
    *(AGENT_PORT_NAME.format(index=index) for index in range(AGENT_PORTS)),
)
_NO_CHARDEVS: Final = Chardevs(
    control=SocketChardev(id="control", fd=0),
    console=SocketChardev(id="console", fd=0),
    agents=[
        SocketChardev(id=f"agent{index}", fd=0, listening=True) for index in range(AGENT_PORTS)
    ],
)


@attrs.frozen(kw_only=True)
class Machine:
    """What the VM of a box is made of.

    Args:
        host: QEMU and the accelerator.
        kit: Kernel and root.
        cpus: Virtual CPUs.
        memory_mib: Memory in MiB.
        share: Has the devices of volumes.
    """

    host: Preflight
    kit: GuestKit
    cpus: int
    memory_mib: int
    share: bool = False

    def argv(
        self,
        *,
        name: str,
        chardevs: Chardevs,
        files: MachineFiles | None = None,
        devices: DeviceFiles = DeviceFiles(),  # noqa: B008 - frozen
    ) -> list[str]:
        """Return QEMU's command line.

        Args:
            name: Shown in the process list.
            chardevs: The VM's ends of its sockets.
            files: What it is saved to or restored from; None for a plain boot.
            devices: What is behind its devices.
        """
        memory: Memory | MemoryFile = Memory(self.memory_mib)
        boot: DirectBoot | AwaitState = DirectBoot(
            kernel=self.kit.kernel.image,
            initramfs=self.kit.initramfs,
            command_line=KERNEL_COMMAND_LINE,
        )
        if files is not None:
            shared = files.what != "restore"
            memory = MemoryFile(mib=self.memory_mib, fd=files.memory_fd, shared=shared)
            boot = boot if files.what == "save" else AwaitState()
        switches = machine_switches(
            name=name,
            accelerator=self.host.accelerator.accelerator.value,
            cpus=self.cpus,
            memory=memory,
            boot=boot,
            control=chardevs.control,
            console=chardevs.console,
            agents=chardevs.agents,
            port_names=_PORT_NAMES,
            devices=device_switches(devices, share=self.share),
            monitor=chardevs.monitor,
        )
        return command_line(self.host.qemu, switches)

    def shape(self) -> dict[str, str]:
        """Return everything that shapes the machine: the same shape, the same template.

        Looks at the files of QEMU and the kernel, so it is new after an upgrade.

        Raises:
            OSError: One of them is gone.
        """
        accelerator = self.host.accelerator.accelerator
        kvm = accelerator is Accelerator.KVM
        argv = self.argv(name="template", chardevs=_NO_CHARDEVS)
        return {
            "qemu": f"{self.host.qemu_version.text} {_file(self.host.qemu)}",
            "kernel": f"{self.kit.kernel.release} {_file(self.kit.kernel.image)}",
            "root": self.kit.key,
            "accelerator": accelerator.value,
            # Under KVM the guest has the host's processor, and counts on it.
            "processor": _processor() if kvm else platform.machine(),
            "cpus": str(self.cpus),
            "memory_mib": str(self.memory_mib),
            "command_line": hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:16],
        }


def _file(path: Path) -> str:
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def _processor() -> str:
    first, _, _ = _CPU_INFO.read_text().partition("\n\n")
    lines = (line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_FIELDS)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
