"""The shim and a hostile or clumsy guest: handshake, floods, and logs that stay bounded."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import TYPE_CHECKING

import trio
from shim_under_test import NONCE, announcement, listening, python, running_shim

from boxlite._wire import CONTROL_LINE_BYTES, ENTROPY_BYTES
from boxlite.shim._handshake import GUEST_BYTES, STOP_LINE
from boxlite.shim._logs import CONSOLE_BYTES, STDERR_BYTES

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_guest_that_answers_is_announced(tmp_path: Path) -> None:
    """The greeting has the time of that moment, entropy and the nonce, which comes back."""
    async with running_shim(tmp_path, options=["--guest-seconds", "0"]) as shim:
        with listening(shim.layout) as listener:
            before = time.time_ns()
            hello = await shim.greet()

            assert hello.keys() == {
                "type",
                "nonce",
                "unix_time_ns",
                "entropy",
                "hostname",
                "machine_id",
            }
            assert hello["type"] == "hello"
            assert hello["nonce"] == NONCE
            assert before <= hello["unix_time_ns"] <= time.time_ns()
            assert len(bytes.fromhex(hello["entropy"])) == ENTROPY_BYTES
            await shim.say({"type": "ready", "nonce": NONCE})
            assert await announcement(listener) == f"ready {NONCE}\n".encode()

        shim.hang_up()
        assert (await shim.ended())["ready"] is True


async def test_each_greeting_has_entropy_of_its_own(tmp_path: Path) -> None:
    """An agent that missed the first may wait again, and both may be used."""
    async with running_shim(tmp_path) as shim:
        assert (await shim.greet())["entropy"] != (await shim.greet())["entropy"]


async def test_a_wrong_nonce_is_not_announced(tmp_path: Path) -> None:
    """It is what a template's guest, or one that guesses, would answer."""
    async with running_shim(tmp_path) as shim:
        with listening(shim.layout) as listener:
            await shim.greet()
            for nonce in ("f" * 32, NONCE.upper(), "", None, 7, [NONCE]):
                await shim.say({"type": "ready", "nonce": nonce})
            await shim.greet()
            assert not select.select([listener], [], [], 0)[0]
            await shim.say({"type": "ready", "nonce": NONCE})

            assert await announcement(listener) == f"ready {NONCE}\n".encode()

    assert shim.stderr.count("a nonce that is not this start's") == 1


async def test_a_host_that_does_not_listen_is_noted(tmp_path: Path) -> None:
    """A detached box's host may be gone by then; the guest is ready all the same."""
    async with running_shim(tmp_path, detach=True) as shim:
        await shim.vm_up()
        hello = await shim.greet()
        await shim.say({"type": "ready", "nonce": hello["nonce"]})
        await shim.say(b"not json")
        shim.process.terminate()
        assert await shim.hear() == {"type": "stop"}

    assert "the host cannot be told that the guest is ready: No such file" in shim.stderr


async def test_a_host_that_is_flooded_is_told_later(tmp_path: Path) -> None:
    """A full backlog passes by itself, so the announcement is tried again."""
    async with running_shim(tmp_path) as shim:
        with listening(shim.layout) as listener:
            listener.listen(0)
            stranger = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            with stranger:
                await stranger.connect(str(shim.layout.ready_socket))
                hello = await shim.greet()
                await shim.say({"type": "ready", "nonce": hello["nonce"]})
                # The loop has tried when it has read all this.
                await shim.console.send_all(b"x" * (1 << 20))
                (await listener.accept())[0].close()

                assert await announcement(listener) == f"ready {NONCE}\n".encode()


async def test_a_box_with_a_long_path_is_announced(tmp_path: Path) -> None:
    """A socket's address has 108 bytes; a home may lie deeper."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    async with running_shim(deep) as shim:
        await shim.become_ready()


async def test_garbage_is_noted_once_and_harms_nothing(tmp_path: Path) -> None:
    """The guest's bytes reach the log escaped, and the handshake goes on."""
    async with running_shim(tmp_path) as shim:
        for _ in range(3):
            await shim.say(b"\x1b[2J\xff")
            await shim.say(b"[" * CONTROL_LINE_BYTES)
            await shim.say(b"x" * (CONTROL_LINE_BYTES + 1))
            await shim.say({"type": "stop"})
        await shim.become_ready()

    notes = shim.stderr.splitlines()
    assert len(notes) == len({note.split(":")[0] for note in notes}) == 3
    assert shim.stderr.isascii()
    assert "\x1b" not in shim.stderr


async def test_a_flood_on_the_control_port_is_left_unread(tmp_path: Path) -> None:
    """After that much it only costs: the port fills up and the guest waits, not the shim."""
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        line = b'{"type": "waiting"}\n'
        await shim.control.send_all(line * (GUEST_BYTES // len(line) + 1))
        # What follows is read by nobody; the console still is.
        await shim.console.send_all(b"x" * (1 << 20))
        shim.process.terminate()
        record = await shim.ended()

    assert record["ready"] is False
    assert shim.stderr.count("\n") <= 2
    assert f"the guest sent {GUEST_BYTES} bytes on its control port" in shim.stderr


async def test_a_control_port_that_closes_leaves_the_vm_running(tmp_path: Path) -> None:
    """Then nobody can be asked to power off, and SIGTERM is what is left."""
    program = python(
        "import os, sys, time\n"
        "os.close(int(sys.argv[1]))\n"
        "os.write(int(sys.argv[2]), b'up')\n"
        "while True: time.sleep(1000)"
    )
    async with running_shim(tmp_path, program, options=["--guest-seconds", "3600"]) as shim:
        await shim.vm_up()
        await shim.become_ready()
        await shim.control.aclose()
        await shim.console.send_all(b"x" * (1 << 20))
        assert shim.vm.is_alive()
        shim.process.terminate()

        assert (await shim.ended()).items() >= {"type": "exit", "requested": True}.items()


async def test_the_console_log_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    """A guest that writes for ever cannot fill the disk, and its last words are there."""
    written = b"".join(b"%08d\n" % number for number in range(400_000))
    async with running_shim(tmp_path) as shim:
        await shim.vm_up()
        await shim.console.send_all(written)
        os.kill(shim.vm.pid, signal.SIGKILL)
        await shim.ended()

    older = (tmp_path / "console.log.old").read_bytes()
    newer = shim.layout.console_log.read_bytes()
    assert len(older) == CONSOLE_BYTES
    assert 0 < len(newer) <= CONSOLE_BYTES
    assert written.endswith(older + newer)


async def test_a_silent_console_leaves_an_empty_log(tmp_path: Path) -> None:
    """An empty log says that the kernel never spoke; a missing one would say nothing."""
    async with running_shim(tmp_path, ["true"]) as shim:
        await shim.ended()

    assert shim.layout.console_log.read_bytes() == b""


async def test_stderr_is_bounded_and_the_last_line_still_known(tmp_path: Path) -> None:
    """The beginning is kept, because that is where the cause is; so is the final line."""
    program = python(
        "import os, sys\n"
        "for _ in range(300): os.write(2, b'0123456789abcdef' * 64 * 4)\n"
        "os.write(2, b'\\nlast words\\n')\n"
        "os._exit(1)"
    )
    async with running_shim(tmp_path, program) as shim:
        record = await shim.ended()

    kept, _, note = shim.stderr.partition("\n")
    assert len(kept) == STDERR_BYTES
    assert note == f"[shim] QEMU wrote more than {STDERR_BYTES} bytes here; the rest is dropped\n"
    assert record["message"] == "last words"


def test_the_stop_line_is_what_the_agent_expects() -> None:
    """It is written out by hand in the shim."""
    assert json.loads(STOP_LINE) == {"type": "stop"}
    assert STOP_LINE.endswith(b"\n")
