"""QEMU's command line, without QEMU."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, strategies as st

from boxlite._vm.argv import (
    KERNEL_COMMAND_LINE,
    AwaitState,
    DirectBoot,
    Memory,
    MemoryFile,
    SocketChardev,
    VirtioSerialPort,
    command_line,
    escaped,
    machine_switches,
)

BOOT = DirectBoot(
    kernel=Path("/k/vmlinuz"), initramfs=Path("/k/initramfs"), command_line=KERNEL_COMMAND_LINE
)


def argv(
    accelerator: str = "tcg",
    *,
    memory: Memory | MemoryFile = Memory(512),  # noqa: B008 - it is frozen
    boot: DirectBoot | AwaitState = BOOT,
    monitor: SocketChardev | None = None,
) -> list[str]:
    """Return a command line with two agent ports."""
    agents = [SocketChardev(id=f"agent{n}", fd=10 + n, listening=True) for n in range(2)]
    switches = machine_switches(
        name="boxlite-b0x",
        accelerator=accelerator,
        cpus=2,
        memory=memory,
        boot=boot,
        control=SocketChardev(id="control", fd=5),
        console=SocketChardev(id="console", fd=6),
        agents=agents,
        port_names=("boxlite.control", "boxlite.agent.0", "boxlite.agent.1"),
        monitor=monitor,
    )
    return command_line(Path("/usr/bin/qemu-system-x86_64"), switches)


def values(words: list[str], switch: str) -> list[str]:
    """Return the values that follow a switch."""
    return [words[place + 1] for place, word in enumerate(words) if word == switch]


def test_the_sandbox_denies_everything_it_can() -> None:
    """Every VM runs under QEMU's own seccomp filter."""
    assert values(argv(), "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]


def test_a_template_is_saved_from_a_shared_file_and_restored_from_private_copies() -> None:
    """Both machines have the same devices; the restored one needs no kernel."""
    monitor = SocketChardev(id="monitor", fd=7)
    saved = argv(memory=MemoryFile(mib=512, fd=8, shared=True), monitor=monitor)
    restored = argv(
        memory=MemoryFile(mib=512, fd=8, shared=False), boot=AwaitState(), monitor=monitor
    )

    for words, share in ((saved, "on"), (restored, "off")):
        assert values(words, "-object") == [
            f"memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/8,share={share}"
        ]
        assert values(words, "-machine")[0].endswith(",memory-backend=ram")
        assert values(words, "-mon") == ["chardev=monitor,mode=control"]
        assert values(words, "-m") == ["512M"]
    assert values(saved, "-device") == values(restored, "-device") == values(argv(), "-device")
    assert values(saved, "-kernel") == ["/k/vmlinuz"]
    assert values(saved, "-incoming") == []
    assert values(restored, "-kernel") == []
    assert values(restored, "-incoming") == ["defer"]


def test_the_options_of_the_box_are_in_it() -> None:
    """CPUs, memory, accelerator, kernel and root."""
    words = argv()

    assert words[0] == "/usr/bin/qemu-system-x86_64"
    assert values(words, "-smp") == ["2"]
    assert values(words, "-m") == ["512M"]
    assert values(words, "-machine")[0].startswith("q35,accel=tcg,")
    assert values(words, "-kernel") == ["/k/vmlinuz"]
    assert values(words, "-initrd") == ["/k/initramfs"]
    assert "panic=-1" in values(words, "-append")[0].split()
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)


def test_kvm_gets_the_hosts_cpu_and_tcg_what_it_can_emulate() -> None:
    """The CPU model follows the accelerator."""
    assert values(argv("kvm"), "-cpu") == ["host"]
    assert values(argv("tcg"), "-cpu")[0].startswith("max")


def test_sockets_are_descriptors_and_ports_have_names() -> None:
    """QEMU is given no path to a socket."""
    words = argv()

    assert values(words, "-chardev") == [
        "socket,id=console,fd=6",
        "socket,id=control,fd=5",
        "socket,id=agent0,fd=10,server=on,wait=off",
        "socket,id=agent1,fd=11,server=on,wait=off",
    ]
    assert values(words, "-serial") == ["chardev:console"]
    assert values(words, "-device") == [
        "virtio-serial-pci,id=serial,max_ports=4",
        "virtserialport,bus=serial.0,chardev=control,name=boxlite.control",
        "virtserialport,bus=serial.0,chardev=agent0,name=boxlite.agent.0",
        "virtserialport,bus=serial.0,chardev=agent1,name=boxlite.agent.1",
    ]


@given(st.text())
def test_a_comma_in_a_value_cannot_become_an_option(value: str) -> None:
    """QEMU splits at single commas and reads two as one."""
    assert escaped(value).replace(",,", "").count(",") == 0
    assert escaped(value).replace(",,", ",") == value
    assert "name=a,,b=c" in VirtioSerialPort(chardev="x", name="a,b=c").argv()[1]
