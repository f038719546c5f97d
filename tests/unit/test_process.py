"""Process exits: the seed's four cases for a pid, and identities."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st
from scarcity import few_descriptors

from boxlite import HostError
from boxlite._process import (
    ExitWatch,
    ProcessIdentity,
    command_line,
    process_start_time,
    read_pid_file,
    wait_ended,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Above the largest pid that a kernel can give (2 ** 22, proc(5)).
NO_SUCH_PID = 999_999_999


@pytest.fixture(params=["pidfd", "ENOSYS", "EPERM"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel that has pidfd, one that is too old, and one behind a filter of system calls."""
    name: str = request.param
    if name != "pidfd":

        def pidfd_open(_pid: int, _flags: int = 0) -> int:
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    return name


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A child that lives until its standard input is closed."""
    program = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


async def test_a_pid_of_none_never_ends() -> None:
    """In a race, a process that is not known must not win."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_ended, None)
        await trio.testing.wait_all_tasks_blocked()

        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_pid_that_does_not_exist_has_ended(kernel: str) -> None:
    """Nothing is there to wait for, so waiting returns at once."""
    with trio.fail_after(5):
        await wait_ended(NO_SUCH_PID)


async def test_a_living_process_has_not_ended(kernel: str) -> None:
    """The test's own process is alive, so the wait stays blocked."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_ended, os.getpid())
        await trio.testing.wait_all_tasks_blocked()

        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_zombie_has_ended(kernel: str, sleeper: subprocess.Popen[bytes]) -> None:
    """A dead child that nobody reaped counts as ended, and stays there to be reaped."""
    sleeper.kill()

    with trio.fail_after(5):
        await wait_ended(sleeper.pid)

    assert sleeper.poll() == -9


async def test_the_end_of_a_living_process_wakes_every_waiter(
    kernel: str,
    sleeper: subprocess.Popen[bytes],
) -> None:
    """Several tasks wait on one watch: the race, the box and the stop ladder do."""
    with ExitWatch(sleeper.pid) as watch, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(watch.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not watch.has_ended()
            sleeper.kill()

        assert watch.has_ended()


async def test_watching_a_process_that_is_not_a_child(kernel: str) -> None:
    """A grandchild's end is seen too: a reattached shim is nobody's child."""
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
        "child.kill(); child.wait()\n"
    )
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [sys.executable, "-S", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                task_status=task_status,
            )
        )
        line = await process.stdout.receive_some()
        with ExitWatch(int(line)) as watch, trio.fail_after(10):
            assert not watch.has_ended()
            await process.stdin.aclose()
            await watch.wait()


def test_a_watch_leaves_no_descriptor(kernel: str, sleeper: subprocess.Popen[bytes]) -> None:
    """Closing is idempotent, and afterwards the process counts as ended."""
    before = len(os.listdir("/proc/self/fd"))
    watch = ExitWatch(sleeper.pid)
    watch.close()
    watch.close()

    assert len(os.listdir("/proc/self/fd")) == before
    assert watch.has_ended()


async def test_a_signal_reaches_the_watched_process_only_while_it_lives(
    kernel: str,
    sleeper: subprocess.Popen[bytes],
) -> None:
    """Signalling what has ended is not an error: it raced with its end."""
    with ExitWatch(sleeper.pid) as watch, trio.fail_after(5):
        watch.send_signal(15)
        await watch.wait()
        assert sleeper.wait() == -15
        watch.send_signal(15)
    watch.send_signal(15)


async def test_a_signal_to_a_pid_that_was_given_out_again_is_not_sent(
    kernel: str, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the pid now has done nothing to deserve it."""
    sent: list[int] = []
    with ExitWatch(sleeper.pid) as watch:
        sleeper.kill()
        sleeper.wait()
        # The kernel's check of a pidfd is its own; what is looked at is who has the pid.
        monkeypatch.setattr(os, "kill", lambda _pid, number: sent.append(number))
        monkeypatch.setattr("boxlite._process._stat", lambda _pid: ("alive", 1))
        watch.send_signal(signal.SIGTERM)

    assert sent == []


async def test_an_identity_is_watched_and_not_whoever_has_its_pid(
    kernel: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """A pid file of long ago names a process that is somebody else's by now."""
    started = process_start_time(sleeper.pid)
    assert started is not None

    with ExitWatch.of(ProcessIdentity(sleeper.pid, started)) as same:
        assert not same.has_ended()
    with ExitWatch.of(ProcessIdentity(sleeper.pid, started - 1)) as other, trio.fail_after(5):
        assert other.has_ended()
        await other.wait()
        other.send_signal(signal.SIGKILL)
    with ExitWatch.of(None) as nobody:
        assert nobody.has_ended()
    assert sleeper.poll() is None


async def test_the_number_of_a_thread_is_no_process(kernel: str) -> None:
    """A pid can come back as the number of another process's thread."""
    program = (
        "import sys, threading\n"
        "done = threading.Event()\n"
        "thread = threading.Thread(target=done.wait)\n"
        "thread.start()\n"
        "print(thread.native_id, flush=True)\n"
        "sys.stdin.read()\n"
        "done.set()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        number = int(child.stdout.readline())
        with ExitWatch.of(ProcessIdentity(number, 1)) as watch:
            assert watch.has_ended()
        child.communicate()


async def test_running_out_of_descriptors_is_told_as_that(
    sleeper: subprocess.Popen[bytes],
) -> None:
    """With the fix, and as an error of boxlite."""
    with ExitWatch(sleeper.pid) as watch, few_descriptors():
        with pytest.raises(HostError, match=r"Too many open files.*ulimit -n"):
            ExitWatch(sleeper.pid)
        # One that is there already needs no other.
        sleeper.kill()
        await watch.wait()


async def test_a_wait_is_not_fooled_by_a_wakeup_without_reason(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of a descriptor can be those of one that had its number before."""
    wait_readable = trio.lowlevel.wait_readable
    wakeups = [1, 1, 1]

    async def nervous(fd: int) -> None:
        if wakeups:
            wakeups.pop()
            await trio.lowlevel.checkpoint()
        else:
            await wait_readable(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", nervous)
    with ExitWatch(sleeper.pid) as watch, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert wakeups == []
            assert len(nursery.child_tasks) == 1
            sleeper.kill()


async def test_the_end_of_one_process_does_not_wake_who_waits_for_another(
    kernel: str,
) -> None:
    """Waits come and go on both, and one is reaped while it is still watched."""
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    try:
        with ExitWatch(children[0].pid) as first, ExitWatch(children[1].pid) as second:
            for watch in (first, second):
                with trio.move_on_after(0.01):
                    await watch.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.wait)
                await trio.testing.wait_all_tasks_blocked()
                children[0].kill()
                children[0].wait()
                with trio.fail_after(5):
                    await first.wait()
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
                children[1].kill()
    finally:
        for child in children:
            child.kill()
            child.wait()


async def test_closing_a_watch_ends_every_wait_on_it(
    kernel: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """It counts as ended then, and nobody waits on a descriptor that is somebody else's now."""
    watch = ExitWatch(sleeper.pid)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(watch.wait)
            await trio.testing.wait_all_tasks_blocked()
            watch.close()


async def test_a_cancelled_wait_hands_over_to_another(
    kernel: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Whoever waits for all may go before the process does."""
    with ExitWatch(sleeper.pid) as watch, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def wait_first() -> None:
                with first:
                    await watch.wait()

            nursery.start_soon(wait_first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(watch.wait)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            sleeper.kill()


async def test_cancelling_a_wait_leaves_no_descriptor(
    kernel: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """And the watch goes on."""
    with ExitWatch(sleeper.pid) as watch:
        before = len(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0.05) as scope:
            await watch.wait()
        assert scope.cancelled_caught
        assert len(os.listdir("/proc/self/fd")) == before
        assert not watch.has_ended()


@pytest.mark.parametrize(
    "text",
    [f"{1 << 23}\n1\n", f"{10**30}\n1\n", "0\n1\n", "-1\n1\n", "7\n-1\n", "7\n", "7\n1\n1\n"],
)
def test_a_pid_that_no_kernel_gives_is_no_pid(tmp_path: Path, text: str) -> None:
    """The largest is 2 ** 22; a file that says otherwise is not a pid file."""
    path = tmp_path / "shim.pid"
    path.write_text(text)

    assert read_pid_file(path) is None


def test_an_identity_is_a_pid_and_its_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    """A pid with another start time is another process; a zombie is none."""
    started = process_start_time(sleeper.pid)
    assert started is not None

    assert ProcessIdentity(sleeper.pid, started).is_alive()
    assert not ProcessIdentity(sleeper.pid, started + 1).is_alive()
    assert not ProcessIdentity(NO_SUCH_PID, started).is_alive()
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not ProcessIdentity(sleeper.pid, started).is_alive()


def test_a_pid_file_is_read_back(tmp_path: Path) -> None:
    """What a shim writes names its process."""
    path = tmp_path / "shim.pid"
    path.write_text("4711\n123456\n")

    assert read_pid_file(path) == ProcessIdentity(4711, 123456)
    assert read_pid_file(tmp_path / "missing") is None


@given(st.binary(max_size=100))
def test_any_bytes_are_a_pid_file_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Whatever is in the file, reading it gives an identity or None."""
    path = tmp_path_factory.getbasetemp() / "any.pid"
    path.write_bytes(data)

    found = read_pid_file(path)

    assert found is None or found.pid > 0


def test_a_command_line_is_that_of_the_very_process(sleeper: subprocess.Popen[bytes]) -> None:
    """Of one that is gone, or is another by now, there is none."""
    started = process_start_time(sleeper.pid)
    assert started is not None

    assert command_line(ProcessIdentity(sleeper.pid, started))[:2] == [sys.executable, "-S"]
    assert command_line(ProcessIdentity(sleeper.pid, started + 1)) == []
    assert command_line(ProcessIdentity(NO_SUCH_PID, 1)) == []
    assert command_line(None) == []
