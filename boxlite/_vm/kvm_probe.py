"""Can /dev/kvm run a 64-bit guest? Run one, and print what was seen as JSON.

A script of its own, run by :mod:`boxlite._vm.accel` in a child process with
``python -I -S``: a broken hypervisor can then cost a child, never the program.

That KVM opens and creates VMs proves nothing. There are hosts where every call
succeeds and the guest even computes the right values, but by interpretation, a
thousand times slower than a processor: a stock kernel then never gets past its
own decompression, and QEMU sits at 100 % CPU. So the guest in ``kvm_guest.lst``
starts at the reset vector, goes to long mode and does what a kernel does when it
boots, and one of its steps is eight million plain instructions. Each step has a
value that it must yield; all of it has a limit of CPU time and one of real time.

Numbers and structures are those of ``linux/kvm.h`` for x86-64; the order of
calls is QEMU's. The output is one line::

    {"version": V, "outcome": "usable" | "unusable" | "unavailable",
     "detail": "...", "conclusive": true | false, "steps": [["open", 0.1], ...]}

``detail`` ends the sentence "/dev/kvm opens, but ..." (or "/dev/kvm ..." when
the outcome is "unavailable"). ``conclusive`` says that asking again before the next boot
is pointless. ``steps`` holds what was passed, with milliseconds since the start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

#: Part of the key under which a verdict is kept: a changed probe asks again.
VERSION: Final = 1

#: The steps of the guest and the values that they must yield, in order.
ROUNDS: Final = 2_000_000
_INSTRUCTIONS_PER_ROUND: Final = 4
_FACTOR: Final = 6364136223846793005
_ADDEND: Final = 1442695040888963407


def _generated(rounds: int) -> int:
    """Return ``x = x * FACTOR + ADDEND`` (modulo 2**64) repeated from 1, in closed form."""
    power = pow(_FACTOR, rounds, (_FACTOR - 1) << 64)
    return (power + _ADDEND * ((power - 1) // (_FACTOR - 1))) % (1 << 64)


STEPS: Final = (
    ("real mode", 0x12345678),
    ("protected mode", 0x11),
    ("long mode", 0xD01),
    ("kernel addresses", 0xFFFFFFFF80001000),
    ("arithmetic", _generated(ROUNDS)),
    ("direct map", _FACTOR),
    ("SSE2", _FACTOR * 2 % (1 << 64)),
    ("CPUID", 1),
    ("system registers", _FACTOR),
    ("exception", 6),
    ("page tables", 0x5000),
    ("user mode", 0x33),
    ("timer interrupt", 0x40),
)

#: A processor needs a few milliseconds for all of it, and QEMU's software
#: emulation 6. KVM that needs fifty times as much is worse than none. CPU time, so
#: that a busy host is not taken for a broken one.
CPU_SECONDS: Final = 0.3
#: For a guest that sleeps and is never woken.
REAL_SECONDS: Final = 2.0

MEMORY_BYTES: Final = 2 << 20
_RESULTS: Final = 0x9000
_PORT: Final = 0xE9
_HIGH: Final = 0xFFFFFFFF80000000
_RESET_PAGE: Final = 0xFFFFF000
_APIC: Final = 0xFEE00000

_GET_API_VERSION: Final = 0xAE00
_CREATE_VM: Final = 0xAE01
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_SET_TSS_ADDR: Final = 0xAE47
_SET_IDENTITY_MAP_ADDR: Final = 0x4008AE48
_CREATE_IRQCHIP: Final = 0xAE60
_CREATE_PIT2: Final = 0x4040AE77
_RUN: Final = 0xAE80
_GET_REGS: Final = 0x8090AE81
_GET_MSRS: Final = 0xC008AE88
_SET_MSRS: Final = 0x4008AE89
_SET_CPUID2: Final = 0x4008AE90

_ARCH_CAPABILITIES: Final = 0x10A
_HAS_ARCH_CAPABILITIES: Final = 1 << 29  # in EDX of CPUID leaf 7
_EXIT_IO: Final = 2
_EXIT_FAIL_ENTRY: Final = 9
_EXIT_INTERNAL_ERROR: Final = 17
_EXITS: Final = {
    1: "an exception",
    2: "port I/O",
    5: "a halt",
    6: "access to memory that is not there",
    8: "a triple fault",
    _EXIT_FAIL_ENTRY: "refused entry",
    _EXIT_INTERNAL_ERROR: "an internal error of KVM",
}
_INTERNAL_ERRORS: Final = {
    1: "it could not emulate an instruction",
    2: "exceptions at the same time",
    3: "it could not deliver an event",
    4: "an unexpected exit",
}
#: Another hypervisor at work, or a host short of something: true now, not for ever.
_PASSING_ERRNOS: Final = frozenset(
    {errno.EBUSY, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}
)


class _UnusableError(Exception):
    """KVM does not do what a guest needs."""

    def __init__(self, detail: str, *, conclusive: bool = True) -> None:
        super().__init__(detail)
        self.detail = detail
        self.conclusive = conclusive


class _Record:
    """What was passed so far, and when."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    def passed(self, step: str) -> None:
        self.steps.append((step, round((time.monotonic() - self._start) * 1000, 2)))


def _call(fd: int, request: int, argument: int | bytes | bytearray, what: str) -> int:
    # With bytes ioctl() returns what the kernel made of them; no such call here has a result.
    try:
        result = fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise _UnusableError(
            f"{what} fails: {error.strerror}", conclusive=error.errno not in _PASSING_ERRNOS
        ) from error
    return result if isinstance(result, int) else 0


def program(listing: str) -> tuple[dict[int, bytes], dict[str, int]]:
    """Return the code by address and the labels of a listing (see ``kvm_guest.lst``)."""
    code: dict[int, bytes] = {}
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if line.startswith("#") or not line[:4].strip():
            continue
        address, octets, source = int(line[:4], 16), line[6:28].strip(), line[28:].split("#")[0]
        if octets:
            code[address] = bytes.fromhex(octets)
        else:
            labels[source.strip().rstrip(":")] = address
    return code, labels


def fill(memory: Any, listing: str) -> None:  # noqa: ANN401 - mmap or bytearray
    """Lay program, descriptors and page tables into the guest's 2 MiB of memory.

    The page at the reset vector is apart: it holds :data:`RESET_JUMP`.
    """
    code, labels = program(listing)
    for address, octets in code.items():
        memory[address : address + len(octets)] = octets

    def quads(address: int, *values: int) -> None:
        memory[address : address + 8 * len(values)] = struct.pack(f"<{len(values)}Q", *values)

    # GDT: null, 0x08 code32, 0x10 code64, 0x18 data, and for ring 3 0x20 code32,
    # 0x28 data, 0x30 code64; 0x38 the task state, which takes two entries.
    state = _HIGH + 0x3400
    quads(0x3000, 0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    quads(0x3020, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    quads(0x3038, 0x67 | (state & 0xFFFFFF) << 16 | 0x89 << 40 | (state >> 24 & 0xFF) << 56)
    quads(0x3040, state >> 32)
    memory[0x3404:0x340C] = struct.pack("<Q", _HIGH + 0x8000)  # the stack for ring 0
    memory[0x3466:0x3468] = struct.pack("<H", 0x68)  # no I/O bitmap
    memory[0x3F00:0x3F06] = struct.pack("<HI", 0x47, 0x3000)
    memory[0x3F10:0x3F1A] = struct.pack("<HQ", 0x47, _HIGH + 0x3000)
    memory[0x3F20:0x3F2A] = struct.pack("<HQ", 0x41 * 16 - 1, _HIGH + 0x4000)
    for vector, label in ((6, "on_undefined"), (14, "on_page_fault"), (0x40, "on_timer")):
        entry = _HIGH + labels[label]
        gate = struct.pack(
            "<HHHHII", entry & 0xFFFF, 0x10, 0x8E00, entry >> 16 & 0xFFFF, entry >> 32, 0
        )
        memory[0x4000 + 16 * vector : 0x4010 + 16 * vector] = gate

    # 0x83: present, writable, 2 MiB. The first tables map memory at 0, in the
    # direct map and high; the second ones high, and at 4 MiB for ring 3.
    quads(0x10000, 0x11003)
    quads(0x10000 + 8 * 273, 0x11003)
    quads(0x10000 + 8 * 511, 0x13003)
    quads(0x11000, 0x12003)
    quads(0x12000, 0x83)
    quads(0x13000 + 8 * 510, 0x14003)
    quads(0x14000, 0x83, _APIC | 0x9B)  # 0x9B: not cached
    quads(0x15000, 0x16007)
    quads(0x15000 + 8 * 511, 0x13003)
    quads(0x16000, 0x17007)
    quads(0x17000 + 8 * 2, 0x87)


#: What the processor meets at its reset vector, 16 bytes below 4 GiB: jmp 0:0x1000.
RESET_JUMP: Final = bytes.fromhex("ea 0010 0000")


def _refused_msr(kvm: int, cpu: int, features: bytearray) -> str | None:
    """Do as QEMU does for ``-cpu host``, which aborts when this fails."""
    entries = struct.iter_unpack("<10I", features[8:])
    if not any(entry[:2] == (7, 0) and entry[6] & _HAS_ARCH_CAPABILITIES for entry in entries):
        return None
    msr = bytearray(struct.pack("<IIIIQ", 1, 0, _ARCH_CAPABILITIES, 0, 0))
    for fd, request, what in ((kvm, _GET_MSRS, "reading"), (cpu, _SET_MSRS, "setting")):
        if _call(fd, request, msr, f"{what} MSR 0x10a") != 1:
            return f"{what} MSR 0x10a fails, which QEMU does, and aborts"
    return None


def _interrupted(cpu: int, step: str, cpu_seconds: float) -> _UnusableError:
    """Say why the guest had to be interrupted in a step."""
    if cpu_seconds < CPU_SECONDS:
        # Perhaps the host was too busy: next time may be better.
        return _UnusableError(
            f"the guest did not finish the step {step!r} within {REAL_SECONDS:g} s",
            conclusive=False,
        )
    registers = bytearray(144)
    _call(cpu, _GET_REGS, registers, "reading registers")
    left = struct.unpack_from("<Q", registers, 8 * 11)[0]
    if step != "arithmetic" or left > ROUNDS:
        return _UnusableError(
            f"the guest used {cpu_seconds:.1f} s of CPU time in the step {step!r},"
            " which takes a processor microseconds"
        )
    rate = (ROUNDS - left) * _INSTRUCTIONS_PER_ROUND / cpu_seconds / 1e6
    return _UnusableError(
        f"guest code is interpreted, not run by the processor: {rate:.1f} million"
        " instructions a second, where a stock kernel needs billions to boot"
    )


def _unexpected(run: mmap.mmap, reason: int, step: str) -> _UnusableError:
    seen = _EXITS.get(reason, f"exit reason {reason}")
    if reason == _EXIT_INTERNAL_ERROR:
        number = struct.unpack_from("<I", run, 32)[0]
        seen += f": {_INTERNAL_ERRORS.get(number, f'number {number}')}"
    elif reason == _EXIT_FAIL_ENTRY:
        seen += f": hardware reason {struct.unpack_from('<Q', run, 32)[0]:#x}"
    return _UnusableError(f"the guest ended in the step {step!r} with {seen}")


def _run(cpu: int, run: mmap.mmap, memory: mmap.mmap, record: _Record) -> None:
    # The handlers do nothing: a signal makes KVM_RUN return. They repeat, for one
    # that comes just before the call would be lost.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.signal(signal.SIGPROF, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, REAL_SECONDS, 0.02)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS, 0.02)
    real_start, cpu_start = time.monotonic(), time.process_time()
    for number, (step, expected) in enumerate(STEPS):
        while True:
            try:
                fcntl.ioctl(cpu, _RUN, 0)
            except InterruptedError:
                used = time.process_time() - cpu_start
                if used >= CPU_SECONDS or time.monotonic() - real_start >= REAL_SECONDS:
                    raise _interrupted(cpu, step, used) from None
            except OSError as error:
                raise _UnusableError(
                    f"running the guest fails in the step {step!r}: {error.strerror}"
                ) from error
            else:
                break
        reason = struct.unpack_from("<I", run, 8)[0]
        direction, size, port, count, offset = struct.unpack_from("<BBHIQ", run, 32)
        if (reason, direction, size, port, count) != (_EXIT_IO, 1, 1, _PORT, 1):
            raise _unexpected(run, reason, step)
        value = struct.unpack_from("<Q", memory, _RESULTS + 8 * number)[0]
        if (run[offset], value) != (number, expected):
            raise _UnusableError(
                f"the guest got a wrong result in the step {step!r}: {value:#x}, not {expected:#x}"
            )
        record.passed(step)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _probe(kvm: int, record: _Record) -> None:
    if (version := _call(kvm, _GET_API_VERSION, 0, "asking for the version")) != 12:
        raise _UnusableError(f"its interface has version {version}, not 12")
    vm = _call(kvm, _CREATE_VM, 0, "creating a VM")
    # Intel's processors need three pages for real mode, anywhere free.
    _call(vm, _SET_IDENTITY_MAP_ADDR, struct.pack("<Q", 0x7FFFC000), "placing the identity map")
    _call(vm, _SET_TSS_ADDR, 0x7FFFD000, "placing the task state")
    _call(vm, _CREATE_IRQCHIP, 0, "creating the interrupt controllers")
    _call(vm, _CREATE_PIT2, bytes(64), "creating the interval timer")
    record.passed("create VM")

    memory, reset = mmap.mmap(-1, MEMORY_BYTES), mmap.mmap(-1, mmap.PAGESIZE)
    fill(memory, Path(__file__).with_name("kvm_guest.lst").read_text("utf-8"))
    reset[0xFF0 : 0xFF0 + len(RESET_JUMP)] = RESET_JUMP
    for slot, (address, pages) in enumerate(((0, memory), (_RESET_PAGE, reset))):
        region = struct.pack("<IIQQQ", slot, 0, address, len(pages), _address(pages))
        _call(vm, _SET_USER_MEMORY_REGION, region, "giving the VM memory")
    record.passed("memory")

    cpu = _call(vm, _CREATE_VCPU, 0, "creating a CPU")
    features = bytearray(struct.pack("<II", 256, 0) + bytes(40 * 256))
    _call(kvm, _GET_SUPPORTED_CPUID, features, "reading CPU features")
    _call(cpu, _SET_CPUID2, features, "setting CPU features")
    refused = _refused_msr(kvm, cpu, features)
    size = _call(kvm, _GET_VCPU_MMAP_SIZE, 0, "asking for the size of the CPU's state")
    record.passed("create CPU")

    _run(cpu, mmap.mmap(cpu, size), memory, record)
    if refused is not None:
        raise _UnusableError(refused)


def probe(device: str = "/dev/kvm") -> dict[str, object]:
    """Probe the device and return what is to be printed. Bounded in time."""
    record = _Record()
    outcome, detail, conclusive = "usable", "it ran a 64-bit guest", True
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        # Permissions and modules may change while the host runs.
        outcome, detail, conclusive = "unavailable", f"cannot be opened: {error.strerror}", False
    else:
        record.passed("open")
        try:
            _probe(kvm, record)
        except _UnusableError as error:
            outcome, detail, conclusive = "unusable", error.detail, error.conclusive
    return {
        "version": VERSION,
        "outcome": outcome,
        "detail": detail,
        "conclusive": conclusive,
        "steps": record.steps,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
