"""Commands in a real box: results, streams, signals, limits, and what cancelling does."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    InBox = Callable[[Callable[[boxlite.Box], Awaitable[Any]]], Any]

#: Prints the number of processes in the guest whose command line holds its argument.
COUNT = (
    "import os, sys\n"
    "def line(pid):\n"
    "    try: return open(f'/proc/{pid}/cmdline', 'rb').read()\n"
    "    except OSError: return b''\n"
    "me = str(os.getpid())\n"
    "print(sum(sys.argv[1].encode() in line(p) for p in os.listdir('/proc')"
    " if p.isdigit() and p != me))\n"
)


async def count(box: boxlite.Box, needle: str) -> int:
    """Count processes in the guest."""
    done = await box.run(["python3", "-c", COUNT, needle], check=True)
    return int(done.stdout)


def test_a_program_runs_in_another_machine(in_box: InBox) -> None:
    """Its output and exit come back, and its kernel is not this one."""

    async def scenario(box: boxlite.Box) -> None:
        done = await box.run(["python3", "-c", "print(6 * 7)"])
        assert done == boxlite.ExecResult(exit_code=0, stdout=b"42\n")
        info = await box.info()
        release = await box.run(["uname", "-r"], check=True)
        assert release.stdout.decode().strip() == info.kernel_release
        assert info.agent_version == boxlite.__version__
        hostname = await box.run(["hostname"], check=True)
        assert hostname.stdout.decode().strip() == f"box-{box.id}"
        assert release.stdout.decode().strip() != os.uname().release

    in_box(scenario)


def test_the_two_output_streams_are_separate(in_box: InBox) -> None:
    """And a non-zero exit is a result, not an error."""

    async def scenario(box: boxlite.Box) -> None:
        done = await box.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (done.exit_code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
        with pytest.raises(boxlite.CommandFailedError, match="exited with 3.*err") as caught:
            await box.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=True)
        assert caught.value.result == done

    in_box(scenario)


def test_arguments_environment_and_directory_arrive_unchanged(in_box: InBox) -> None:
    """No shell touches them, and any byte but NUL may be in them."""

    async def scenario(box: boxlite.Box) -> None:
        strange = ["", " ", "$HOME", "*", "a\nb", "\udcff", "ünï", "-n", "\\"]
        program = "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])"
        done = await box.run(["python3", "-c", program, *strange], check=True)
        assert done.stdout.decode().strip() == str([os.fsencode(word) for word in strange])
        done = await box.run(["env"], env={"A": "x=y", "PATH": "/bin:/usr/bin"}, cwd="/tmp")
        lines = done.stdout.decode().splitlines()
        assert "A=x=y" in lines
        assert "PATH=/bin:/usr/bin" in lines
        assert (await box.run(["pwd"], cwd="/tmp")).stdout == b"/tmp\n"
        assert (await box.run(["pwd"])).stdout == b"/\n"

    in_box(scenario)


def test_nothing_of_the_hosts_environment_is_in_the_box(in_box: InBox) -> None:
    """A variable of this program is not the box's to see."""

    async def scenario(box: boxlite.Box) -> None:
        os.environ["BOXLITE_TEST_SECRET"] = "hunter2"
        try:
            assert b"hunter2" not in (await box.run(["env"], check=True)).stdout
        finally:
            del os.environ["BOXLITE_TEST_SECRET"]

    in_box(scenario)


def test_standard_input_arrives_and_ends(in_box: InBox) -> None:
    """More than a window of it, and none at all, both end."""

    async def scenario(box: boxlite.Box) -> None:
        data = os.urandom(1 << 20)
        done = await box.run(["cat"], input=data)
        assert done.stdout == data
        assert (await box.run(["cat"])).stdout == b""
        # A command that does not read its input is not an error.
        assert (await box.run(["true"], input=data)).exit_code == 0

    in_box(scenario)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_reported_as_a_shell_does(in_box: InBox, number: signal.Signals) -> None:
    """128 + n, and the signal by itself."""

    async def scenario(box: boxlite.Box) -> None:
        done = await box.run(["sh", "-c", f"kill -{int(number)} $$"])
        assert (done.exit_code, done.signal) == (128 + number, number)

    in_box(scenario)


@pytest.mark.parametrize(
    ("command", "options", "exit_code", "words"),
    [
        (["no-such-program"], {}, 127, "no-such-program"),
        (["/no/such/program"], {}, 127, "/no/such/program"),
        (["/etc/passwd"], {}, 126, "/etc/passwd"),
        (["/tmp"], {}, 126, "/tmp"),
        (["true"], {"cwd": "/no/such/directory"}, 125, "/no/such/directory"),
        (["true"], {"cwd": "/etc/passwd"}, 125, "/etc/passwd"),
        (["python3"], {"env": {"PATH": "/nowhere"}}, 127, "python3"),
    ],
)
def test_a_command_that_cannot_start_says_why(
    in_box: InBox, command: list[str], options: dict[str, Any], exit_code: int, words: str
) -> None:
    """With the thing's name, and the code that a shell would give."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(boxlite.ExecStartError, match=words) as caught:
            await box.run(command, **options)
        assert caught.value.exit_code == exit_code

    in_box(scenario)


def test_a_bad_command_is_refused_before_it_is_sent(in_box: InBox) -> None:
    """Empty, or with a NUL."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(boxlite.InvalidOptionError, match="command"):
            await box.run([])
        with pytest.raises(boxlite.InvalidOptionError, match=r"command\[1\]"):
            await box.run(["echo", "a\0b"])
        with pytest.raises(boxlite.InvalidOptionError, match="timeout"):
            await box.run(["true"], timeout=-1)

    in_box(scenario)


def test_output_arrives_as_it_is_made(in_box: InBox) -> None:
    """A line is here while the command still waits for our answer to it."""

    async def scenario(box: boxlite.Box) -> None:
        program = "read a; echo got $a; read b; echo then $b; echo bye >&2"
        async with box.exec(["sh", "-c", program]) as execution:
            assert execution.returncode is None
            await execution.stdin.send_all(b"one\n")
            assert await execution.stdout.receive_some() == b"got one\n"
            await execution.stdin.send_all(b"two\n")
            assert await execution.stdout.receive_some() == b"then two\n"
            assert await execution.stderr.receive_some() == b"bye\n"
            assert await execution.stdout.receive_some() == b""
            assert await execution.wait() == 0
            assert execution.returncode == 0

    in_box(scenario)


def test_leaving_the_block_waits_for_the_command(in_box: InBox) -> None:
    """Its input is closed and its unread output dropped, however much it is."""

    async def scenario(box: boxlite.Box) -> None:
        async with box.exec(["sh", "-c", "cat; seq 200000; exit 7"]) as execution:
            pass
        assert execution.returncode == 7

    in_box(scenario)


def test_an_unread_stream_does_not_hold_up_the_other(in_box: InBox) -> None:
    """A megabyte waits on stdout while stderr goes on."""

    async def scenario(box: boxlite.Box) -> None:
        program = (
            "import sys, threading\n"
            "def fill(): sys.stdout.buffer.write(b'x' * (1 << 20)); sys.stdout.flush()\n"
            "thread = threading.Thread(target=fill); thread.start()\n"
            "for n in range(100): print(n, file=sys.stderr, flush=True)\n"
            "thread.join()\n"
        )
        async with box.exec(["python3", "-c", program]) as execution:
            told = b""
            while not told.endswith(b"99\n"):
                told += await execution.stderr.receive_some()
            size = 0
            async for chunk in execution.stdout:
                size += len(chunk)
            assert size == 1 << 20
            assert await execution.wait() == 0

    in_box(scenario)


def test_captured_output_is_bounded_and_says_so(in_box: InBox) -> None:
    """The command ends normally, and what was dropped is flagged."""

    async def scenario(box: boxlite.Box) -> None:
        done = await box.run(["sh", "-c", "seq 100000; echo e >&2"], max_output=100)
        assert done.exit_code == 0
        assert len(done.stdout) == 100
        assert done.stdout.startswith(b"1\n2\n")
        assert (done.stdout_truncated, done.stderr_truncated) == (True, False)

    in_box(scenario)


def test_a_fast_command_never_loses_its_output(in_box: InBox) -> None:
    """The exit does not overtake the output, in fifty tries."""

    async def scenario(box: boxlite.Box) -> None:
        for number in range(50):
            done = await box.run(["echo", str(number)])
            assert done.stdout == b"%d\n" % number

    in_box(scenario)


def test_commands_run_side_by_side(in_box: InBox) -> None:
    """Twenty at once, each with its own streams."""

    async def scenario(box: boxlite.Box) -> None:
        results: dict[int, bytes] = {}

        async def one(number: int) -> None:
            done = await box.run(["cat"], input=b"%d" % number)
            results[number] = done.stdout

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
        assert results == {number: b"%d" % number for number in range(20)}

    in_box(scenario)


def test_a_timeout_kills_the_whole_group_and_keeps_the_output(in_box: InBox) -> None:
    """The command and its children are gone, and what they wrote is in the error."""

    async def scenario(box: boxlite.Box) -> None:
        program = "echo begun; sleep 7001 & sleep 7001"
        with pytest.raises(boxlite.CommandTimeoutError, match="did not end within 2 s") as caught:
            await box.run(["sh", "-c", program], timeout=2)
        assert caught.value.result.stdout == b"begun\n"
        assert caught.value.result.signal == signal.SIGKILL
        assert await count(box, "7001") == 0

    in_box(scenario)


def test_cancelling_kills_the_whole_group_in_the_guest(in_box: InBox) -> None:
    """Nothing of a cancelled command goes on, and the box goes on."""

    async def scenario(box: boxlite.Box) -> None:
        with trio.CancelScope() as scope:
            async with box.exec(["sh", "-c", "echo up; sleep 7002 & sleep 7002"]) as execution:
                assert await execution.stdout.receive_some() == b"up\n"
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with trio.fail_after(60):
            while await count(box, "7002"):
                await trio.lowlevel.checkpoint()

    in_box(scenario)


def test_an_exception_in_the_block_comes_out_as_it_is_and_kills(in_box: InBox) -> None:
    """Not wrapped in a group."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(KeyError, match="mine"):
            async with box.exec(["sleep", "7003"]):
                raise KeyError("mine")
        with trio.fail_after(60):
            while await count(box, "7003"):
                await trio.lowlevel.checkpoint()

    in_box(scenario)


def test_a_background_child_that_holds_the_pipe_does_not_hold_up_the_exit(in_box: InBox) -> None:
    """The command is over when it is over."""

    async def scenario(box: boxlite.Box) -> None:
        with trio.fail_after(60):
            done = await box.run(["sh", "-c", "sleep 7004 & echo done"])
        assert done == boxlite.ExecResult(exit_code=0, stdout=b"done\n")

    in_box(scenario)


def test_signals_reach_the_command(in_box: InBox) -> None:
    """The whole group gets them; one that has ended does not mind."""

    async def scenario(box: boxlite.Box) -> None:
        program = "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done"
        async with box.exec(["sh", "-c", program]) as execution:
            assert await execution.stdout.receive_some() == b"up\n"
            await execution.terminate()
            assert await execution.stdout.receive_some() == b"caught\n"
            assert await execution.wait() == 9
            await execution.kill()

    in_box(scenario)


def test_a_terminal_is_a_terminal(in_box: InBox) -> None:
    """With a size that can change."""

    async def scenario(box: boxlite.Box) -> None:
        size = boxlite.TerminalSize(rows=33, columns=77)
        program = "test -t 0 && test -t 2 && stty size; echo $TERM; read x; stty size"
        async with box.exec(["sh", "-c", program], terminal=size) as execution:
            shown = b""
            while b"xterm" not in shown:
                shown += await execution.stdout.receive_some()
            assert shown.startswith(b"33 77\r\n")
            await execution.resize(44, 88)
            await execution.stdin.send_all(b"\n")
            async for chunk in execution.stdout:
                shown += chunk
            assert shown.endswith(b"44 88\r\n")

    in_box(scenario)


def test_a_box_answers_pings(in_box: InBox) -> None:
    """The round trip is positive and finite."""

    async def scenario(box: boxlite.Box) -> None:
        assert 0 < await box.ping() < 10

    in_box(scenario)


def test_output_is_told_as_it_comes(in_box: InBox) -> None:
    """Chunk by chunk and by stream, kept or not; what the callback raises ends the command."""

    async def scenario(box: boxlite.Box) -> None:
        told: list[tuple[str, bytes]] = []
        done = await box.run(
            ["sh", "-c", "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three"],
            max_output=4,
            on_output=lambda stream, chunk: told.append((stream, chunk)),
        )
        assert told == [("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"three\n")]
        assert (done.stdout, done.stdout_truncated) == (b"one\n", True)

        def refuse(stream: str, chunk: bytes) -> None:
            raise KeyError(chunk)

        with pytest.raises(KeyError):
            await box.run(["sh", "-c", "echo up; sleep 7005"], on_output=refuse)
        with trio.fail_after(60):
            while await count(box, "7005"):
                await trio.lowlevel.checkpoint()

    in_box(scenario)


def test_a_run_can_have_a_terminal(in_box: InBox) -> None:
    """Then both streams are one, with a terminal's line ends."""

    async def scenario(box: boxlite.Box) -> None:
        size = boxlite.TerminalSize(rows=20, columns=30)
        done = await box.run(["sh", "-c", "stty size; echo e >&2"], terminal=size)
        assert (done.stdout, done.stderr) == (b"20 30\r\ne\r\n", b"")

    in_box(scenario)


def test_an_execution_has_an_id_and_a_clear_description(in_box: InBox) -> None:
    """For logs, and for whoever keeps several."""

    async def scenario(box: boxlite.Box) -> None:
        async with box.exec(["sh", "-c", "read x; exit 3"]) as one, box.exec(["cat"]) as other:
            assert one.id != other.id
            assert "running" in repr(one)
            await one.stdin.send_all(b"\n")
            assert await one.wait() == 3
            assert "exited with 3" in repr(one)
            assert one.signal is None
            with pytest.raises(boxlite.InvalidOptionError, match="rows"):
                await one.resize(0, 80)
            await other.kill()
            assert await other.wait() == 137
            assert other.signal == signal.SIGKILL

    in_box(scenario)


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        (None, b"0 0 0", b"/root"),
        ("nobody", b"65534 65534 65534", b"/nonexistent"),
        (65534, b"65534 65534 65534", b"/nonexistent"),
        ("1234", b"1234 0 0", b"/"),
        ("1234:nogroup", b"1234 65534 65534", b"/"),
        ("nobody:77", b"65534 77 77", b"/nonexistent"),
    ],
)
def test_a_command_can_run_as_somebody_else(
    in_box: InBox, user: str | int | None, ids: bytes, home: bytes
) -> None:
    """With nothing of root's left to it, and a home of its own."""

    async def scenario(box: boxlite.Box) -> None:
        script = (
            "echo $(id -u) $(id -g) $(id -G); echo $HOME; grep -E 'Cap(Prm|Eff)' /proc/self/status"
        )
        done = await box.run(["sh", "-c", script], user=user)
        shown, where, *capabilities = done.stdout.splitlines()
        assert (shown, where) == (ids, home)
        none = all(int(line.split()[1], 16) == 0 for line in capabilities)
        assert none == (user is not None)

    in_box(scenario)


def test_a_user_has_no_more_than_he_may(in_box: InBox) -> None:
    """Neither root's files, nor root's place, nor the agent; the next command is root's again."""

    async def scenario(box: boxlite.Box) -> None:
        await box.path("/root/secret").write_bytes(b"x", mode=0o600)
        for script in (
            "cat /root/secret",
            "echo > /etc/passwd",
            "kill -9 1",
            "python3 -c 'import os; os.setuid(0)'",
        ):
            done = await box.run(["sh", "-c", script], user="nobody")
            assert done.exit_code != 0, script
        done = await box.run(["cat", "/root/secret"], user="nobody", env={"HOME": "/tmp"})
        assert done.exit_code == 1
        size = boxlite.TerminalSize(rows=20, columns=30)
        done = await box.run(["sh", "-c", "tty; id -u"], user="nobody", terminal=size)
        assert done.stdout.endswith(b"65534\r\n")
        assert done.stdout.startswith(b"/dev/pts/")
        assert (await box.run(["id", "-u"])).stdout == b"0\n"

    in_box(scenario)


@pytest.mark.parametrize("user", ["somebody", "nobody:anybody", "99999999999"])
def test_a_user_who_is_not_there_is_named(in_box: InBox, user: str) -> None:
    """Whoever it is that is not there."""

    async def scenario(box: boxlite.Box) -> None:
        missing = user.rpartition(":")[2]
        with pytest.raises(boxlite.ExecStartError, match=f"'{missing}'") as caught:
            await box.run(["true"], user=user)
        assert caught.value.exit_code == 125

    in_box(scenario)


@pytest.mark.parametrize("user", ["", ":", "a:", ":b", "a:b:c", "a\nb", "x" * 300, True, 1.5])
def test_a_user_that_cannot_be_is_refused(in_box: InBox, user: Any) -> None:  # noqa: ANN401
    """Before it is sent."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(boxlite.InvalidOptionError, match="user"):
            await box.run(["true"], user=user)

    in_box(scenario)


def test_a_thousand_commands_leave_nothing_behind(in_box: InBox) -> None:
    """One after the other and two hundred at once; the agent has what it had before."""

    async def scenario(box: boxlite.Box) -> None:
        async def one(number: int) -> None:
            done = await box.run(["echo", str(number)])
            assert done.stdout == b"%d\n" % number

        async def held() -> tuple[int, int]:
            # Its own input has been closed by then, in the agent too.
            script = "cat; ls /proc/1/fd | wc -l; ls -d /proc/[0-9]* | wc -l"
            done = await box.run(["sh", "-c", script])
            descriptors, processes = map(int, done.stdout.split())
            return descriptors, processes

        before = await held()
        for number in range(800):
            await one(number)
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        assert await held() == before
        assert box._use.start.session.open_calls == 0

    in_box(scenario)
