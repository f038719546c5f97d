"""How a VM ends and what the exit file says of it: one test for each kind of end."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, strategies as st
from shim_under_test import NONCE, after, python, running_shim

from boxlite._process import process_start_time, read_pid_file
from boxlite.shim import _exitfile

if TYPE_CHECKING:
    from pathlib import Path


def gone(pid: int) -> bool:
    """Tell whether not even a zombie is left."""
    return process_start_time(pid) is None


async def test_a_vm_that_powers_off_is_an_exit(tmp_path: Path) -> None:
    """QEMU exits with 0, and nobody had asked it to."""
    async with running_shim(tmp_path, ["true"]) as shim:
        record = await shim.ended()

        assert record.pop("time") > 0
        assert record == {"type": "exit", "exit_code": 0, "requested": False, "ready": False}
        vm = read_pid_file(shim.layout.vm_pid)
        assert vm is not None
        assert gone(vm.pid)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("qemu: -kernel: could not open file", "engine"),
        ("Could not access KVM kernel module: No such file or directory", "unsupported"),
        ("qemu: -device x: 'x' is not a valid device model name", "unsupported"),
    ],
)
async def test_an_exit_code_is_an_error_with_the_last_words(
    tmp_path: Path, said: str, kind: str
) -> None:
    """The last line of stderr names the cause, whatever was written before it."""
    script = 'echo a warning >&2; printf "%s\\n\\n" "$1" >&2; exit 3'
    async with running_shim(tmp_path, ["sh", "-c", script, "sh", said]) as shim:
        record = await shim.ended()

    del record["time"]
    assert record == {
        "type": "error",
        "exit_code": 3,
        "message": said,
        "error_kind": kind,
        "ready": False,
    }
    assert shim.stderr == f"a warning\n{said}\n\n"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGSYS", "SIGTERM"])
async def test_a_signal_that_the_shim_did_not_send_is_told(tmp_path: Path, name: str) -> None:
    """The signal is the difference between a lack of memory and a defect of QEMU."""
    number = signal.Signals[name]
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.become_ready()
        os.kill(shim.vm.pid, number)
        record = await shim.ended()

        assert gone(shim.vm.pid)

    del record["time"]
    assert record == {
        "type": "signal",
        "exit_code": 128 + number,
        "signal": name,
        "ready": True,
    }


async def test_another_signal_during_a_stop_is_still_told(tmp_path: Path) -> None:
    """A QEMU that crashes while it stops has crashed."""
    async with running_shim(tmp_path, options=["--guest-seconds", "3600"]) as shim:
        await shim.vm_up()
        await shim.become_ready()
        shim.process.terminate()
        await shim.hear()
        os.kill(shim.vm.pid, signal.SIGSEGV)

        assert (await shim.ended())["signal"] == "SIGSEGV"


async def test_an_exception_in_the_shim_is_a_panic_and_ends_the_vm(tmp_path: Path) -> None:
    """A host that breaks the contract of stdin is the simplest way to get one."""
    async with running_shim(tmp_path, first_line=b"not a nonce\n") as shim:
        record = await shim.ended()
        await shim.vm_gone()

        assert gone(shim.vm.pid)

    assert record["type"] == "panic"
    assert record["exit_code"] == 101
    assert record["message"].startswith("ValueError: the nonce is 'not a nonce'")
    assert record["location"].startswith("_handshake.py:")
    assert "Traceback" in shim.stderr


@pytest.mark.parametrize("first_line", [NONCE.encode() * 40, NONCE.upper().encode() + b"\n"])
async def test_a_first_line_that_is_no_nonce_is_refused(tmp_path: Path, first_line: bytes) -> None:
    """It is not read for ever, and nothing but what the agent takes is passed on."""
    async with running_shim(tmp_path, first_line=first_line) as shim:
        assert (await shim.ended())["type"] == "panic"


async def test_a_full_disk_costs_logs_and_the_exit_file_but_not_the_vm(tmp_path: Path) -> None:
    """A limit of 0 on file sizes makes every write fail, as a full disk does."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.greet()
        resource.prlimit(shim.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        await shim.console.send_all(b"lost\n" * 1000)
        await shim.become_ready()
        assert shim.process.poll() is None
        os.kill(shim.vm.pid, signal.SIGABRT)

        assert await shim.process.wait() == 128 + signal.SIGABRT
        assert not list(tmp_path.glob("exit*"))
        assert shim.layout.console_log.read_bytes() == b""


async def test_a_panic_on_a_full_disk_keeps_its_exit_code(tmp_path: Path) -> None:
    """The traceback cannot be written either, which must not become exit code 120."""
    async with running_shim(tmp_path, first_line=b"") as shim:
        # More than the socket holds: when it has gone, the loop is known to turn.
        await shim.console.send_all(b"x" * (1 << 20))
        resource.prlimit(shim.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        shim.tell(b"not a nonce\n")

        assert await shim.process.wait() == 101
        assert gone(shim.vm.pid)


async def test_a_box_directory_that_vanishes_costs_nothing_but_its_files(tmp_path: Path) -> None:
    """Somebody cleans up too early; the VM and the exit code do not suffer."""
    box = tmp_path / "box"
    async with running_shim(box) as shim:
        await shim.vm_up()
        await shim.become_ready()
        vm = shim.vm
        shutil.rmtree(box)
        with trio.fail_after(20):
            await shim.console.send_all(b"x" * (5 << 19))
        os.kill(vm.pid, signal.SIGKILL)

        assert await shim.process.wait() == 128 + signal.SIGKILL
        assert not box.exists()


async def test_what_the_guest_wrote_last_is_not_lost(tmp_path: Path) -> None:
    """The console is read to its end after QEMU has ended: a panic is its last line."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.greet()
        # While the shim stands still, more piles up than one turn of its loop reads.
        shim.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, shim.process.pid, os.WSTOPPED | os.WNOWAIT)
        written = b""
        with suppress(BlockingIOError):
            while True:
                chunk = b"%08d\n" % len(written) * 100
                written += chunk[: os.write(shim.console.socket.fileno(), chunk)]
        assert len(written) > 64 << 10
        os.kill(shim.vm.pid, signal.SIGKILL)
        await shim.vm_gone()
        shim.process.send_signal(signal.SIGCONT)
        await shim.ended()

    assert shim.layout.console_log.read_bytes() == written


async def test_what_qemu_wrote_last_is_not_lost(tmp_path: Path) -> None:
    """As much as a pipe holds may be in it when QEMU has ended."""
    program = python("import os\nos.write(2, b'e' * 60000 + b'\\nthe end\\n')\nos._exit(5)")
    async with running_shim(tmp_path, program) as shim:
        record = await shim.ended()

    assert record["message"] == "the end"
    assert len(shim.stderr) == 60009


async def test_a_child_of_qemu_that_lives_on_is_not_waited_for(tmp_path: Path) -> None:
    """It holds QEMU's stderr open, so waiting for the end of file would hang."""
    program = python(
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "if child := os.fork():\n"
        "    os.write(int(sys.argv[2]), b'%d\\n' % child)\n"
        "    os._exit(4)\n"
        "os.read(reader, 1)"
    )
    async with running_shim(tmp_path, program) as shim:
        record = await shim.ended()
        os.kill(await shim.vm_says_number(), signal.SIGKILL)

    assert record["exit_code"] == 4


def test_a_real_time_signal_has_a_name() -> None:
    """The signal module has no name for most of them."""
    record = _exitfile.ended(-37, sent=set(), requested=False, said="")

    assert record == {"type": "signal", "exit_code": 165, "signal": "SIGRTMIN+3"}


@given(
    status=st.integers(-64, 255),
    sent=st.sets(st.sampled_from([signal.SIGTERM, signal.SIGKILL])),
    requested=st.booleans(),
    said=st.text(),
)
def test_every_end_has_one_consistent_record(
    status: int, sent: set[int], requested: bool, said: str
) -> None:
    """The exit code fits into a byte, and is 0 for an ``exit`` alone."""
    record = _exitfile.ended(status, sent=sent, requested=requested, said=said)

    assert 0 <= record["exit_code"] <= 255
    assert (record["type"] == "exit") == (record["exit_code"] == 0)
    assert record["type"] in {"exit", "signal", "error"}


@pytest.mark.parametrize(
    "program", ["import sys; sys.exit(0)", "import os; os.kill(os.getpid(), 9)"]
)
async def test_a_kernel_without_pidfd_costs_nothing_but_time(tmp_path: Path, program: str) -> None:
    """QEMU is then looked at until it has ended."""
    without = (
        "import errno, os\n"
        "def pidfd_open(pid, flags=0):\n"
        "    raise OSError(errno.ENOSYS, 'not there')\n"
        "os.pidfd_open = pidfd_open\n"
    )
    async with running_shim(tmp_path / "box", python(program), wrap=after(without)) as shim:
        record = await shim.ended()

    assert record["type"] == ("exit" if "exit(0)" in program else "signal")
