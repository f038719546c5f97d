"""Commands in the guest: their output, input, signals and end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from guest_under_test import (
    PLENTY,
    AgentUnderTest,
    Call,
    ProcessWatch,
    execution,
    ping,
    run,
    running_agent,
    start_request,
)

from boxlite._bulk import (
    DATA_BYTES,
    Channel as Stream,
    data_header,
    resize_frame,
    room_frame,
    signal_frame,
)
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._wire import STDIN_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grpclib.client import Channel


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentUnderTest]:
    """One agent for all tests here: each has a connection of its own."""
    with running_agent() as running:
        yield running


async def line(call: Call) -> str:
    """Take messages until stdout is a full line; return it."""
    await call.until(lambda: b"\n" in call.stdout)
    return call.stdout.decode()


async def idle(channel: Channel) -> None:
    """Wait until no execution is left."""
    while (await ping(channel)).executions:
        pass


def test_output_and_exit_code_arrive(agent: AgentUnderTest) -> None:
    """Both streams arrive apart, and the exit code of the command itself."""
    script = "echo out; echo err >&2; exit 7"

    assert agent.run(lambda c: run(c, "sh", "-c", script)) == (7, b"out\n", b"err\n")


def test_merged_streams_are_one_pipe(agent: AgentUnderTest) -> None:
    """In the order in which they were written, with nothing on stderr."""
    script = "for n in 1 2 3; do echo o$n; echo e$n >&2; done"

    async def scenario(channel: Channel) -> tuple[int, bytes, bytes]:
        return await run(channel, "sh", "-c", script, merge_stderr=True)

    assert agent.run(scenario) == (0, b"o1\ne1\no2\ne2\no3\ne3\n", b"")


def test_a_command_that_exits_at_once_loses_no_byte(agent: AgentUnderTest) -> None:
    """The exit and the output race through different paths; the output must win each time."""

    async def scenario(channel: Channel) -> None:
        for number in range(50):
            assert await run(channel, "printf", f"%0{number}d", "0") == (
                0,
                b"%0*d" % (number, 0),
                b"",
            )

    agent.run(scenario)


def test_large_output_arrives_whole_and_in_chunks(agent: AgentUnderTest) -> None:
    """More than any buffer on the way holds arrives in order."""

    async def scenario(channel: Channel) -> None:
        code, out, err = await run(channel, "seq", "200000")
        assert (code, err) == (0, b"")
        assert out == b"".join(b"%d\n" % number for number in range(1, 200001))

    agent.run(scenario)


def test_no_chunk_is_larger_than_agreed(agent: AgentUnderTest) -> None:
    """A message carries at most DATA_BYTES of output."""

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("head", "-c", "1000000", "/dev/zero")) as call:
            before = 0
            while await call.next():
                assert len(call.stdout) - before <= DATA_BYTES
                before = len(call.stdout)
            assert before == 1_000_000

    agent.run(scenario)


def test_a_used_up_window_stops_its_stream_and_no_other(agent: AgentUnderTest) -> None:
    """Output of a stream whose reader has stopped waits; the other stream goes on."""
    script = "head -c 50000 /dev/zero; echo done >&2"

    async def scenario(channel: Channel) -> None:
        async with execution(
            channel, start_request("sh", "-c", script, stdout_window=1000)
        ) as call:
            await call.until(lambda: call.stderr == b"done\n")
            await call.until(lambda: len(call.stdout) >= 1000)
            assert len(call.stdout) == 1000
            assert (await ping(channel)).executions == 1
            call.grant(Stream.STDOUT, 49_000)
            assert await call.finish() == (0, bytes(50_000), b"done\n")

    agent.run(scenario)


def test_a_window_of_exactly_the_output_needs_no_grant_for_the_end(agent: AgentUnderTest) -> None:
    """The end of a stream has no bytes, so it fits into no window at all."""
    request = start_request("printf", "12345", stdout_window=5, stderr_window=0)

    async def scenario(channel: Channel) -> None:
        async with execution(channel, request) as call:
            assert await call.finish() == (0, b"12345", b"")

    agent.run(scenario)


def test_stdin_goes_through_a_command_larger_than_all_windows(agent: AgentUnderTest) -> None:
    """Windows both ways are granted again as bytes are taken."""
    data = os.urandom(2_000_000)

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("cat", stdout_window=100_000)) as call:
            await call.until(lambda: call.pid != 0)
            sent = granted = 0
            while len(call.stdout) < len(data):
                size = min(DATA_BYTES, call.stdin_window, len(data) - sent)
                if size:
                    call.stdin(data[sent : sent + size])
                    sent += size
                else:
                    assert await call.next()
                    call.grant(Stream.STDOUT, len(call.stdout) - granted)
                    granted = len(call.stdout)
            call.stdin_end()
            assert await call.finish() == (0, data, b"")

    agent.run(scenario)


def test_stdin_that_nobody_reads_is_bounded(agent: AgentUnderTest) -> None:
    """The window is all that a host may send ahead; more breaks the protocol and ends the call."""
    watches = []

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("sleep", "1000")) as call:
            await call.until(lambda: call.pid != 0)
            assert call.stdin_window == STDIN_WINDOW_BYTES
            watches.append(ProcessWatch(call.pid))
            pieces = STDIN_WINDOW_BYTES // DATA_BYTES
            for _ in range(pieces + 2):  # The pipe takes one piece, and it is granted again.
                call.stdin(bytes(DATA_BYTES))
            await call.exhaust()

    with pytest.raises(GRPCError, match="not granted") as caught:
        agent.run(scenario)
    assert caught.value.status is Status.INVALID_ARGUMENT
    watches[0].wait()


def test_a_command_that_closes_its_stdin_is_not_disturbed(agent: AgentUnderTest) -> None:
    """Stdin that nobody can read any more is dropped, and its window granted again."""

    async def scenario(channel: Channel) -> None:
        script = "exec <&-; echo closed; while :; do sleep 0.01; done"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            await line(call)
            for _ in range(12):
                await call.until(lambda: call.stdin_window >= DATA_BYTES)
                call.stdin(bytes(DATA_BYTES))
            call.signal(signal.SIGTERM)
            assert await call.finish() == (-signal.SIGTERM, b"closed\n", b"")

    agent.run(scenario)


def test_the_end_of_stdin_reaches_the_command(agent: AgentUnderTest) -> None:
    """What was sent before the end is read before it."""

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("wc", "-c")) as call:
            await call.until(lambda: call.pid != 0)
            call.stdin(b"12345")
            call.stdin_end()
            code, out, _err = await call.finish()
            assert (code, out.strip()) == (0, b"5")

    agent.run(scenario)


def test_a_signal_reaches_the_whole_process_group(agent: AgentUnderTest) -> None:
    """Children of the command get it too, and the exit names the signal."""
    watches = []

    async def scenario(channel: Channel) -> None:
        script = "sleep 1000 & echo $!; wait"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            watches.append(ProcessWatch(int(await line(call))))
            call.signal(signal.SIGUSR1)
            code, _out, _err = await call.finish()
            assert code == -signal.SIGUSR1

    agent.run(scenario)
    for watch in watches:
        watch.wait()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda call: data_header(call, Stream.STDOUT, 1) + b"x", "a piece for another stream"),
        (lambda call: room_frame(call, Stream.STDIN, 1), "a room for another stream"),
        (lambda call: signal_frame(call, 0), "the signal 0"),
        (lambda call: signal_frame(call, 65), "the signal 65"),
        (lambda call: resize_frame(call, 0, 80), "0 rows and 80 columns"),
    ],
    ids=["data", "room", "signal 0", "signal 65", "resize"],
)
def test_a_frame_that_breaks_a_rule_ends_the_call(
    agent: AgentUnderTest, make: Callable[[int], bytes], complaint: str
) -> None:
    """The status says what was wrong, and the command does not survive it."""
    watches = []

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("sleep", "1000")) as call:
            await call.until(lambda: call.pid != 0)
            watches.append(ProcessWatch(call.pid))
            call.send_frame(make(call.number))
            await call.exhaust()

    with pytest.raises(GRPCError, match=complaint) as caught:
        agent.run(scenario)
    assert caught.value.status is Status.INVALID_ARGUMENT
    watches[0].wait()


def test_a_call_must_have_a_message(agent: AgentUnderTest) -> None:
    """One that ends at once starts nothing."""

    async def scenario(channel: Channel) -> None:
        stream = channel.request(
            "/boxlite.v1.Execution/Exec",
            Cardinality.UNARY_STREAM,
            wire.ExecStart,
            wire.ExecResponse,
        )
        async with stream:
            await stream.send_request()
            await stream._stream.end()
            await stream.recv_message()

    with pytest.raises(GRPCError, match="has no message"):
        agent.run(scenario)


@pytest.mark.parametrize("way", ["disconnect", "reset"])
def test_a_stream_that_ends_early_kills_the_process_group(agent: AgentUnderTest, way: str) -> None:
    """However the host leaves, neither the command nor its children go on."""
    watches = []

    async def scenario(channel: Channel) -> None:
        script = "trap '' TERM HUP; sleep 1000 & echo $!; wait"
        async with execution(channel, start_request("sh", "-c", script)) as call:
            child = int(await line(call))
            watches.extend([ProcessWatch(call.pid), ProcessWatch(child)])
            if way == "disconnect":
                channel.close()

    agent.run(scenario)
    for watch in watches:
        watch.wait()
    agent.run(idle)


def test_a_background_process_that_holds_the_output_does_not_hold_the_exit(
    agent: AgentUnderTest,
) -> None:
    """A daemon outlives its starter, whose exit is reported; an orphan's exit is reaped."""

    async def scenario(channel: Channel) -> None:
        _code, out, _err = await run(channel, "sh", "-c", "sleep 1000 & echo $!")
        orphan = ProcessWatch(int(out))
        assert await run(channel, "kill", "-0", str(orphan.pid)) == (0, b"", b"")
        orphan.kill()
        orphan.wait()
        while Path(f"/proc/{orphan.pid}").exists():
            await ping(channel)

    agent.run(scenario)


def test_output_before_the_exit_survives_a_held_stream_and_a_used_up_window(
    agent: AgentUnderTest,
) -> None:
    """What the command wrote is owed to the host, whenever it makes room for it."""
    script = "(sleep 1000) & echo $! >&2; head -c 30000 /dev/zero"

    async def scenario(channel: Channel) -> None:
        request = start_request("sh", "-c", script, stdout_window=10_000)
        async with execution(channel, request) as call:
            await call.until(lambda: b"\n" in call.stderr)
            await call.until(lambda: len(call.stdout) == 10_000)
            orphan = ProcessWatch(int(call.stderr))
            leader = ProcessWatch(call.pid)
            await asyncio.get_running_loop().run_in_executor(None, leader.wait)
            assert (await ping(channel)).executions == 1
            call.grant(Stream.STDOUT, PLENTY)
            code, out, _err = await call.finish()
            assert (code, len(out)) == (0, 30_000)
            orphan.kill()
            orphan.wait()

    agent.run(scenario)


def test_a_background_process_that_writes_for_ever_does_not_hold_the_exit(
    agent: AgentUnderTest,
) -> None:
    """After the moment of grace the stream is cut off, however full it is."""
    script = "yes & echo $! >&2"

    async def scenario(channel: Channel) -> None:
        async with execution(channel, start_request("sh", "-c", script)) as call:
            await call.until(lambda: b"\n" in call.stderr)
            endless = ProcessWatch(int(call.stderr))
            code, _out, _err = await call.finish()
            assert code == 0
        endless.wait()  # Of SIGPIPE.

    agent.run(scenario)


def test_a_command_gets_the_environment_of_the_request_alone(agent: AgentUnderTest) -> None:
    """Nothing of the agent's environment leaks; bytes that are not UTF-8 arrive."""
    environment = {b"A": b"1", b"B": b"\xff=x", b"EMPTY": b""}

    async def scenario(channel: Channel) -> None:
        code, out, _err = await run(channel, "/usr/bin/env", "-0", env=environment)
        assert code == 0
        assert sorted(out.split(b"\0")) == [b"", b"A=1", b"B=\xff=x", b"EMPTY="]

    agent.run(scenario)


def test_a_command_runs_in_its_directory_and_the_next_one_in_its_own(
    agent: AgentUnderTest,
) -> None:
    """The working directory is the command's; empty means the root."""

    async def scenario(channel: Channel) -> None:
        assert await run(channel, "pwd", cwd=b"/usr/bin") == (0, b"/usr/bin\n", b"")
        assert await run(channel, "pwd") == (0, b"/\n", b"")

    agent.run(scenario)


def test_a_command_starts_with_a_clean_process_state(agent: AgentUnderTest) -> None:
    """A session and group of its own, three descriptors, and signals as after a login."""
    program = (
        "import os;"
        "print(os.getsid(0) == os.getpgid(0) == os.getpid(), len(os.listdir('/proc/self/fd')))"
    )

    async def scenario(channel: Channel) -> None:
        # Listing the descriptors takes one.
        done = await run(channel, "/usr/bin/python3", "-I", "-S", "-c", program)
        assert done == (0, b"True 4\n", b"")
        _code, out, _err = await run(channel, "grep", "^Sig[BI]", "/proc/self/status")
        masks = dict(line.split(":\t") for line in out.decode().splitlines())
        assert int(masks["SigBlk"], 16) == 0
        # The C library leaves two signals of its own ignored, beyond the standard 31.
        assert int(masks["SigIgn"], 16) & 0x7FFF_FFFF == 0

    agent.run(scenario)


def test_a_terminal_is_the_commands_own(agent: AgentUnderTest) -> None:
    """It has the size of the request, is the controlling terminal, and stderr goes there."""
    size = wire.TerminalSize(rows=33, columns=99)
    script = "stty size; echo err >&2; echo tty > /dev/tty"

    async def scenario(channel: Channel) -> None:
        code, out, err = await run(channel, "sh", "-c", script, terminal=size)
        assert (code, err) == (0, b"")
        assert out.split() == [b"33", b"99", b"err", b"tty"]

    agent.run(scenario)


def test_a_terminal_can_change_its_size(agent: AgentUnderTest) -> None:
    """The command hears of it by SIGWINCH."""
    script = "trap 'stty size; exit 3' WINCH; echo waiting; while :; do sleep 0.01; done"

    async def scenario(channel: Channel) -> None:
        size = wire.TerminalSize(rows=24, columns=80)
        async with execution(channel, start_request("sh", "-c", script, terminal=size)) as call:
            await line(call)
            call.resize(50, 132)
            code, out, _err = await call.finish()
            assert (code, out.split()) == (3, [b"waiting", b"50", b"132"])

    agent.run(scenario)


def test_the_end_of_stdin_reaches_a_command_with_a_terminal(agent: AgentUnderTest) -> None:
    """It is the terminal's end-of-file character: hanging up would kill the command."""

    async def scenario(channel: Channel) -> None:
        size = wire.TerminalSize(rows=24, columns=80)
        request = start_request("sh", "-c", "stty -echo; echo ready; cat; echo end", terminal=size)
        async with execution(channel, request) as call:
            await line(call)
            call.stdin(b"hello\n")
            call.stdin_end()
            code, out, _err = await call.finish()
            assert (code, out.split()) == (0, [b"ready", b"hello", b"end"])

    agent.run(scenario)


def test_fifty_executions_run_side_by_side(agent: AgentUnderTest) -> None:
    """Each gets its own output, and no descriptor of the agent is left behind."""

    async def scenario(channel: Channel) -> None:
        await ping(channel)
        before = agent.open_descriptors()

        async def one(number: int) -> None:
            request = start_request("sh", "-c", f"read x; echo $x {number}; exit {number}")
            async with execution(channel, request) as call:
                await call.until(lambda: call.pid != 0)
                call.stdin(b"got\n")
                assert await call.finish() == (number, b"got %d\n" % number, b"")

        await asyncio.gather(*(one(number) for number in range(50)))
        await idle(channel)
        assert agent.open_descriptors() == before

    agent.run(scenario)
