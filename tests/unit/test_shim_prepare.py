"""A machine that is restored, has its guest prepare an image, and is saved again."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio
from shim_under_test import NONCE, announcement, listening, running_shim

from boxlite._vm.shim_command import SavedState
from boxlite.shim._arguments import Arguments, UsageError

if TYPE_CHECKING:
    from pathlib import Path

FIRST = ["--control", "4", "--console", "5"]
LAST = ["--", "qemu"]


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (SavedState(monitor_fd=6, restore_fd=7), (4, 5, 6)),
        (SavedState(monitor_fd=6, save_fd=8), (4, 5, 6, 8)),
        (SavedState(monitor_fd=6, restore_fd=7, save_fd=8, prepare="/a b"), (4, 5, 6, 8)),
        (SavedState(monitor_fd=6, restore_fd=7, save_fd=8, prepare=""), (4, 5, 6, 8)),
    ],
)
def test_the_shim_reads_what_the_host_writes(saved: SavedState, own: tuple[int, ...]) -> None:
    """What is loaded is QEMU's descriptor, and what is saved to is the shim's own."""
    read = Arguments([*FIRST, *saved.words(), *LAST])

    assert (read.monitor, read.restore, read.save, read.prepare) == (
        saved.monitor_fd,
        saved.restore_fd,
        saved.save_fd,
        saved.prepare,
    )
    assert read.own_fds == own


@pytest.mark.parametrize(
    "words",
    [
        ["--restore", "7"],
        ["--save", "8"],
        ["--restore", "7", "--save", "8", "--prepare", "/"],
        ["--monitor", "6", "--prepare"],
        ["--monitor", "6", "--save", "-"],
    ],
)
def test_a_state_without_a_monitor_is_refused(words: list[str]) -> None:
    """So is a word without its value."""
    with pytest.raises(UsageError, match="--"):
        Arguments([*FIRST, *words, *LAST])


class Qemu:
    """QEMU's end of the monitor."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._heard = b""
        self.files = 0

    async def hear(self, count: int) -> list[dict[str, Any]]:
        """Return so many commands; close the files that come with them."""
        commands: list[dict[str, Any]] = []
        while len(commands) < count:
            if b"\n" in self._heard:
                line, _, self._heard = self._heard.partition(b"\n")
                commands.append(json.loads(line))
                continue
            await trio.lowlevel.wait_readable(self._end)
            data, fds, _, _ = socket.recv_fds(self._end, 65536, 4)
            assert data, "the shim closed the monitor"
            self._heard += data
            self.files += len(fds)
            for fd in fds:
                os.close(fd)
        return commands

    def say(self, *messages: dict[str, Any]) -> None:
        """Say something."""
        for message in messages:
            self._end.sendall(json.dumps(message).encode() + b"\r\n")


async def test_the_guest_prepares_between_the_restore_and_the_save(tmp_path: Path) -> None:
    """It is saved once, however often it says that it waits, and the host is told at the end."""
    with ExitStack() as ours:
        shims, theirs = map(ours.enter_context, socket.socketpair())
        target = os.open(tmp_path / "state", os.O_WRONLY | os.O_CREAT)
        ours.callback(os.close, target)
        saved = SavedState(
            monitor_fd=shims.fileno(), restore_fd=1000, save_fd=target, prepare="/srv"
        )
        strangers = [shims.fileno(), target]
        async with running_shim(
            tmp_path / "box", options=saved.words(), strangers=strangers
        ) as shim:
            qemu = Qemu(theirs)
            with listening(shim.layout) as listener:
                restore = await qemu.hear(3)
                qemu.say({"QMP": {}}, *[{"return": {}}] * 3, {"event": "RESUME"})
                assert await shim.hear() == {"type": "prepare", "directory": "/srv"}
                for _ in range(100):
                    await shim.say({"type": "waiting", "version": "1"})
                save = await qemu.hear(3)
                qemu.say({"event": "MIGRATION", "data": {"status": "completed"}})
                told = await announcement(listener)

            assert told == f"ready {NONCE}\n".encode()
            assert restore[-1]["arguments"] == {"uri": "fd:1000"}
            assert [command["execute"] for command in save] == [
                *("migrate-set-capabilities", "getfd", "migrate"),
            ]
            # Nothing else came: not another save, and no greeting.
            assert qemu.files == 1
            assert qemu._heard == b""
            with pytest.raises(BlockingIOError):
                theirs.recv(1, socket.MSG_DONTWAIT)
            with trio.move_on_after(0):
                pytest.fail(f"the guest was told {await shim.control.receive_some(100)!r}")


async def test_a_restore_that_fails_ends_the_shim_with_qemus_words(tmp_path: Path) -> None:
    """The guest is not asked, and the host has something to read."""
    with ExitStack() as ours:
        shims, theirs = map(ours.enter_context, socket.socketpair())
        saved = SavedState(monitor_fd=shims.fileno(), restore_fd=1000, prepare="/")
        async with running_shim(
            tmp_path / "box", options=saved.words(), strangers=[shims.fileno()]
        ) as shim:
            qemu = Qemu(theirs)
            await qemu.hear(3)
            qemu.say({"error": {"class": "GenericError", "desc": "Unknown ramblock"}})
            await shim.ended()

            assert "Unknown ramblock" in shim.stderr
            assert await shim.control.receive_some() == b""
