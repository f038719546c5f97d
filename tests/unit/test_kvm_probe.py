"""The probe of KVM: its guest is right, and it tells what KVM does with it."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from boxlite._vm import kvm_probe

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTING = Path(kvm_probe.__file__).with_name("kvm_guest.lst")
NAMES = [name for name, _ in kvm_probe.STEPS]
QEMU = shutil.which("qemu-system-x86_64")


def run_probe() -> dict[str, object]:
    """Run the probe as boxlite does, and return its report."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", kvm_probe.__file__],
        capture_output=True,
        cwd="/",
        timeout=30,
        check=True,
    )
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="no binutils")
def test_machine_code_in_the_listing_is_its_source_assembled(tmp_path: Path) -> None:
    """What the probe runs is what a reader of the listing sees."""
    lines = LISTING.read_text().splitlines()
    source = "\n".join(line if line.startswith("#") else line[28:] for line in lines)
    (tmp_path / "guest.S").write_text(f"{source}\n")
    for command in ("as -o guest.o guest.S", "objcopy -O binary -j .text guest.o guest.bin"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    code, _ = kvm_probe.program(LISTING.read_text())

    assert b"".join(code.values()) == (tmp_path / "guest.bin").read_bytes()
    for (address, octets), following in zip(code.items(), list(code)[1:], strict=False):
        assert address + len(octets) == following


@contextmanager
def guest_in_qemu(accelerator: str, directory: Path) -> Iterator[tuple[bytes, list[int]]]:
    """Run the guest of the probe in QEMU; yield the steps it announced and their values."""
    memory = bytearray(0x20000)
    kvm_probe.fill(memory, LISTING.read_text())
    ram, firmware = directory / "ram", directory / "firmware"
    ram.write_bytes(memory)
    os.truncate(ram, 64 << 20)
    jump = kvm_probe.RESET_JUMP
    firmware.write_bytes(bytes(0xFFF0) + jump + bytes(16 - len(jump)))
    argv = [
        *(str(QEMU), "-accel", accelerator, "-m", "64"),
        *("-object", f"memory-backend-file,id=ram,size=64M,mem-path={ram},share=on"),
        *("-machine", "q35,memory-backend=ram,graphics=off", "-bios", str(firmware)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-debugcon", "stdio"),
    ]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        announced = b""
        try:
            while len(announced) < len(NAMES):
                ready, _, _ = select.select([process.stdout], [], [], 30)
                octets = os.read(process.stdout.fileno(), 64) if ready else b""
                if not octets:
                    break
                announced += octets
            results = ram.read_bytes()[0x9000 : 0x9000 + 8 * len(NAMES)]
            yield announced, list(struct.unpack(f"<{len(NAMES)}Q", results))
        finally:
            process.kill()


@pytest.mark.vm
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_guest_takes_every_step_on_a_machine_that_works(tmp_path: Path) -> None:
    """QEMU's software emulation is such a machine: so the expected values are right."""
    with guest_in_qemu("tcg", tmp_path) as (announced, values):
        assert announced == bytes(range(len(NAMES)))
        assert values == [value for _, value in kvm_probe.STEPS]


@pytest.mark.vm
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_usable_means_that_qemu_runs_under_kvm(tmp_path: Path) -> None:
    """The verdict is about QEMU, so where it is good QEMU must do the same."""
    if (report := run_probe())["outcome"] != "usable":
        pytest.skip(f"/dev/kvm {report['outcome']}: {report['detail']}")
    with guest_in_qemu("kvm", tmp_path) as (announced, values):
        assert announced == bytes(range(len(NAMES)))
        assert values == [value for _, value in kvm_probe.STEPS]


def test_probe_of_this_machine_ends_with_a_verdict() -> None:
    """Whatever KVM is here, there is an answer, and it agrees with the steps that were passed."""
    report = run_probe()
    passed = [name for name, _ in report["steps"]]  # type: ignore[attr-defined]

    assert report["version"] == kvm_probe.VERSION
    assert report["detail"]
    match report["outcome"]:
        case "usable":
            assert passed == ["open", "create VM", "memory", "create CPU", *NAMES]
            assert report["conclusive"] is True
        case "unusable":
            assert passed[0] == "open"
        case outcome:
            assert outcome == "unavailable"
            assert passed == []
            assert report["conclusive"] is False


def test_missing_device_is_unavailable(tmp_path: Path) -> None:
    """It may appear later, so this is not the last word."""
    report = kvm_probe.probe(str(tmp_path / "kvm"))

    assert (report["outcome"], report["conclusive"]) == ("unavailable", False)
    assert report["detail"] == "cannot be opened: No such file or directory"


def test_device_that_is_not_kvm_is_unusable(tmp_path: Path) -> None:
    """A file in its place opens, and knows none of the calls."""
    (tmp_path / "kvm").touch()
    report = kvm_probe.probe(str(tmp_path / "kvm"))

    assert report["outcome"] == "unusable"
    assert report["detail"] == "asking for the version fails: Inappropriate ioctl for device"


@given(st.integers(0, 200))
def test_expected_arithmetic_is_what_the_loop_computes(rounds: int) -> None:
    """The closed form and the guest's loop agree."""
    value = 1
    for _ in range(rounds):
        value = (value * 6364136223846793005 + 1442695040888963407) % 2**64

    assert kvm_probe._generated(rounds) == value


class FakeKvm:
    """A vCPU that plays the guest up to one step, and there does something else.

    Args:
        fails_at: The number of the step.
        failure: The exit reason and the bytes from offset 32 of the run structure;
            or an errno; or the wrong value that the step yields.
    """

    def __init__(self, fails_at: int, failure: tuple[int, bytes] | OSError | int) -> None:
        self.run = mmap.mmap(-1, mmap.PAGESIZE)
        self.memory = mmap.mmap(-1, 16 * mmap.PAGESIZE)
        self.registers = [0] * 18
        self._steps = iter(range(len(NAMES)))
        self._fails_at = fails_at
        self._failure = failure

    def ioctl(self, _fd: int, request: int, argument: int | bytearray) -> int:
        """Answer as fcntl.ioctl() would."""
        if request == kvm_probe._GET_REGS:
            assert isinstance(argument, bytearray)
            argument[:] = struct.pack("<18Q", *self.registers)
            return 0
        assert request == kvm_probe._RUN
        step = next(self._steps)
        value = kvm_probe.STEPS[step][1]
        reason, details = 2, struct.pack("<BBHIQ", 1, 1, 0xE9, 1, 0x100)
        if step == self._fails_at:
            match self._failure:
                case OSError() as error:
                    raise error
                case int(value):
                    pass
                case (reason, details):
                    pass
        self.run[8:12] = struct.pack("<I", reason)
        self.run[32 : 32 + len(details)] = details
        self.run[0x100] = step
        self.memory[0x9000 + 8 * step : 0x9008 + 8 * step] = struct.pack("<Q", value)
        return 0

    def play(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Run the guest; return the steps that were passed."""
        monkeypatch.setattr(kvm_probe, "fcntl", SimpleNamespace(ioctl=self.ioctl))
        # The timers are for the child process; here they would hit pytest.
        timers = SimpleNamespace(
            SIGALRM=0, SIGPROF=0, ITIMER_REAL=0, ITIMER_PROF=0,
            signal=lambda *_: None, setitimer=lambda *_: None,
        )  # fmt: skip
        monkeypatch.setattr(kvm_probe, "signal", timers)
        record = kvm_probe._Record()
        try:
            kvm_probe._run(-1, self.run, self.memory, record)
        finally:
            self.passed = [name for name, _ in record.steps]
        return self.passed


def test_guest_that_takes_every_step_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the thirteen expected exits is needed."""
    assert FakeKvm(-1, 0).play(monkeypatch) == NAMES


@pytest.mark.parametrize(
    ("step", "failure", "said"),
    [
        (0, (9, struct.pack("<Q", 0x80000021)), "refused entry: hardware reason 0x80000021"),
        (1, (17, struct.pack("<I", 1)), "KVM: it could not emulate an instruction"),
        (6, (17, struct.pack("<I", 77)), "KVM: number 77"),
        (2, (8, b""), "'long mode' with a triple fault"),
        (3, (6, b""), "'kernel addresses' with access to memory that is not there"),
        (5, (5, b""), "'direct map' with a halt"),
        (5, (99, b""), "exit reason 99"),
        (8, (2, struct.pack("<BBHIQ", 1, 1, 0x80, 1, 0x100)), "'system registers' with port I/O"),
        (8, (2, struct.pack("<BBHIQ", 0, 1, 0xE9, 1, 0x100)), "'system registers' with port I/O"),
        (7, 0, "a wrong result in the step 'CPUID': 0x0, not 0x1"),
        (0, OSError(5, "Input/output error"), "'real mode': Input/output error"),
    ],
)
def test_each_way_to_fail_is_named_with_its_step(
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    failure: tuple[int, bytes] | OSError | int,
    said: str,
) -> None:
    """A bug report starts with what KVM did where."""
    kvm = FakeKvm(step, failure)
    with pytest.raises(kvm_probe._UnusableError) as caught:
        kvm.play(monkeypatch)

    assert said in caught.value.detail
    assert caught.value.conclusive
    assert kvm.passed == NAMES[:step]


def test_slow_guest_is_reported_with_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpretation computes the right values, so only the speed gives it away."""
    monkeypatch.setattr(kvm_probe, "CPU_SECONDS", 0.0)
    kvm = FakeKvm(4, InterruptedError(4, "Interrupted system call"))
    kvm.registers[11] = kvm_probe.ROUNDS - 1000
    with pytest.raises(
        kvm_probe._UnusableError, match="interpreted, not run by the processor"
    ) as e:
        kvm.play(monkeypatch)

    assert e.value.conclusive


def test_spinning_guest_is_reported_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest at 100 % CPU elsewhere is broken too, in another way."""
    monkeypatch.setattr(kvm_probe, "CPU_SECONDS", 0.0)
    kvm = FakeKvm(9, InterruptedError(4, "Interrupted system call"))
    with pytest.raises(kvm_probe._UnusableError, match="of CPU time in the step 'exception'"):
        kvm.play(monkeypatch)


def test_guest_that_is_never_woken_is_not_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It used no CPU time: so perhaps it is the host that was busy."""
    monkeypatch.setattr(kvm_probe, "CPU_SECONDS", 1e9)
    monkeypatch.setattr(kvm_probe, "REAL_SECONDS", 0.0)
    kvm = FakeKvm(12, InterruptedError(4, "Interrupted system call"))
    with pytest.raises(kvm_probe._UnusableError, match="'timer interrupt' within 0 s") as caught:
        kvm.play(monkeypatch)

    assert not caught.value.conclusive


def test_busy_kvm_is_not_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another hypervisor may have the processor now, and not in a minute."""

    def busy(*_: object) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(fcntl, "ioctl", busy)
    report = kvm_probe.probe(os.devnull)

    assert (report["outcome"], report["conclusive"]) == ("unusable", False)


@pytest.mark.parametrize(
    ("features", "results", "refused"),
    [
        ([(7, 0, 0, 0, 0, 0, 1 << 29)], [1, 1], None),
        ([(7, 0, 0, 0, 0, 0, 1 << 29)], [1, 0], "setting MSR 0x10a fails"),
        ([(7, 0, 0, 0, 0, 0, 1 << 29)], [0], "reading MSR 0x10a fails"),
        ([(7, 0, 0, 0, 0, 0, 0), (7, 1, 0, 0, 0, 0, 1 << 29)], [], None),
    ],
)
def test_msr_is_set_where_qemu_would_set_it(
    monkeypatch: pytest.MonkeyPatch,
    features: list[tuple[int, ...]],
    results: list[int],
    refused: str | None,
) -> None:
    """QEMU aborts when KVM offers MSR 0x10a in CPUID and then refuses it."""
    answers = iter(results)
    monkeypatch.setattr(kvm_probe, "fcntl", SimpleNamespace(ioctl=lambda *_: next(answers)))
    entries = b"".join(struct.pack("<10I", *entry, 0, 0, 0) for entry in features)
    found = kvm_probe._refused_msr(-1, -1, bytearray(bytes(8) + entries))

    assert (found is None) == (refused is None)
    assert refused is None or (found is not None and refused in found)
    assert list(answers) == []
