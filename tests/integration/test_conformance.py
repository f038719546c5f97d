"""The same commands on the host through Trio's own process API, and in a box.

Whoever knows ``trio.run_process`` and ``trio.Process`` should be right about a box.
Each test is one scenario, played with both; where they differ by design, it is said
here and in the table in the README.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

import boxlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import Stage

    Play = Callable[[Callable[["Where"], Awaitable[None]]], None]

MEGABYTE = 1 << 20


@attrs.frozen
class Done:
    """How a command ended, in the words of a box."""

    code: int
    out: bytes
    err: bytes


@attrs.frozen
class Running:
    """A command that runs, with the methods that both kinds have."""

    stdin: Any
    stdout: Any
    stderr: Any
    process: Any
    box: bool

    async def wait(self) -> int:
        """Return the exit code in the words of a box: 128 + n for signal n."""
        code: int = await self.process.wait()
        return 128 - code if code < 0 else code

    async def send(self, number: int) -> None:
        """Send a signal: in a box, that takes a message."""
        if self.box:
            await self.process.send_signal(number)
        else:
            self.process.send_signal(number)


class Host:
    """This machine, through Trio."""

    name = "host"

    async def run(
        self,
        command: list[str],
        *,
        input: bytes = b"",  # noqa: A002 - the name that subprocess taught
        merge: bool = False,
        check: bool = False,
        **more: Any,  # noqa: ANN401
    ) -> Done:
        """Run a command to its end."""
        if "env" in more:
            more["env"] = {"PATH": os.environ["PATH"], **more["env"]}
        done = await trio.run_process(
            command,
            stdin=input,
            capture_stdout=True,
            check=check,
            **({"stderr": subprocess.STDOUT} if merge else {"capture_stderr": True}),
            **more,
        )
        code = 128 - done.returncode if done.returncode < 0 else done.returncode
        return Done(code, done.stdout, done.stderr or b"")

    @asynccontextmanager
    async def open(self, command: list[str]) -> AsyncIterator[Running]:
        """Start a command; an exception or a cancellation kills it."""
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                lambda task_status: trio.run_process(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    check=False,
                    deliver_cancel=_kill,
                    task_status=task_status,
                )
            )
            yield Running(process.stdin, process.stdout, process.stderr, process, box=False)


async def _kill(process: trio.Process) -> None:
    process.kill()
    await trio.lowlevel.checkpoint()


class Box:
    """A box."""

    name = "box"

    def __init__(self, box: boxlite.Box) -> None:
        self._box = box

    async def run(
        self,
        command: list[str],
        *,
        merge: bool = False,
        **more: Any,  # noqa: ANN401
    ) -> Done:
        """Run a command to its end."""
        done = await self._box.run(command, merge_stderr=merge, **more)
        return Done(done.exit_code, done.stdout, done.stderr)

    @asynccontextmanager
    async def open(self, command: list[str]) -> AsyncIterator[Running]:
        """Start a command; an exception or a cancellation kills it."""
        async with self._box.exec(command) as execution:
            streams = execution.stdin, execution.stdout, execution.stderr
            yield Running(*streams, execution, box=True)


Where = Host | Box


@pytest.fixture(scope="module", params=["host", "box"])
def play(request: pytest.FixtureRequest, stage: Stage) -> Play:
    """Play a scenario on the host, and in the shared box."""

    def on_host(scenario: Callable[[Where], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with trio.fail_after(120):
                await scenario(Host())

        trio.run(bounded)

    if request.param == "host":
        return on_host
    return lambda scenario: stage.play_in_box(lambda box: scenario(Box(box)))


def test_output_and_exit_code(play: Play) -> None:
    """Both streams, and a code that is not zero."""

    async def scenario(where: Where) -> None:
        done = await where.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert done == Done(3, b"out\n", b"err\n")

    play(scenario)


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_every_exit_code(play: Play, code: int) -> None:
    """As the command chose it."""

    async def scenario(where: Where) -> None:
        assert (await where.run(["sh", "-c", f"exit {code}"])).code == code

    play(scenario)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_an_end_by_a_signal(play: Play, number: signal.Signals) -> None:
    """By design: Trio says -n, a box says 128 + n as a shell does."""

    async def scenario(where: Where) -> None:
        assert (await where.run(["sh", "-c", f"kill -{int(number)} $$"])).code == 128 + number

    play(scenario)


@pytest.mark.parametrize("size", [0, 1, 4096, 65_536, 65_537, 3 * MEGABYTE])
def test_input_of_any_size_comes_back(play: Play, size: int) -> None:
    """Larger than any buffer on the way."""

    async def scenario(where: Where) -> None:
        data = os.urandom(size)
        assert await where.run(["cat"], input=data) == Done(0, data, b"")

    play(scenario)


def test_input_that_nobody_reads_is_no_error(play: Play) -> None:
    """The command ends when it likes."""

    async def scenario(where: Where) -> None:
        assert (await where.run(["true"], input=bytes(MEGABYTE))).code == 0

    play(scenario)


def test_merged_streams_keep_their_order(play: Play) -> None:
    """One pipe for both, as with ``stderr=subprocess.STDOUT``."""

    async def scenario(where: Where) -> None:
        program = "for n in 1 2 3 4 5 6 7 8 9; do echo o$n; echo e$n >&2; done"
        done = await where.run(["sh", "-c", program], merge=True)
        assert done == Done(0, b"".join(b"o%d\ne%d\n" % (n, n) for n in range(1, 10)), b"")

    play(scenario)


def test_check_raises_with_the_output(play: Play) -> None:
    """By design: ``CalledProcessError`` there, ``CommandFailedError`` here."""

    async def scenario(where: Where) -> None:
        with pytest.raises((subprocess.CalledProcessError, boxlite.CommandFailedError)) as caught:
            await where.run(["sh", "-c", "echo said; exit 4"], check=True)
        error = caught.value
        if isinstance(error, boxlite.CommandFailedError):
            assert (error.result.exit_code, error.result.stdout) == (4, b"said\n")
        else:
            assert isinstance(error, subprocess.CalledProcessError)
            assert (error.returncode, error.stdout) == (4, b"said\n")
        assert (await where.run(["true"], check=True)).code == 0

    play(scenario)


def test_a_program_that_is_not_there(play: Play) -> None:
    """By design: ``FileNotFoundError`` there, ``ExecStartError`` here."""

    async def scenario(where: Where) -> None:
        with pytest.raises((FileNotFoundError, boxlite.ExecStartError), match="no-such-program"):
            await where.run(["no-such-program"])

    play(scenario)


def test_environment_and_directory(play: Play) -> None:
    """What is given arrives."""

    async def scenario(where: Where) -> None:
        program = 'printf %s: "$A"; pwd'
        done = await where.run(["sh", "-c", program], env={"A": "b c"}, cwd="/tmp")
        assert done.out == b"b c:/tmp\n"

    play(scenario)


def test_arguments_are_not_for_a_shell(play: Play) -> None:
    """Every byte but NUL arrives as it is."""

    async def scenario(where: Where) -> None:
        words = ["", " ", "$HOME", "`id`", "a\nb", "*", "ü", "\udcff", "-"]
        done = await where.run(["sh", "-c", 'printf "%s\\0" "$@"', "sh", *words])
        assert done.out == b"".join(os.fsencode(word) + b"\0" for word in words)

    play(scenario)


def test_a_conversation(play: Play) -> None:
    """Line by line, both ways; the end of input ends it."""

    async def scenario(where: Where) -> None:
        program = "while read a; do echo got $a; done; echo bye"
        async with where.open(["sh", "-c", program]) as running:
            for number in range(20):
                await running.stdin.send_all(b"%d\n" % number)
                assert await running.stdout.receive_some() == b"got %d\n" % number
            await running.stdin.aclose()
            assert await running.stdout.receive_some() == b"bye\n"
            assert await running.stdout.receive_some() == b""
            assert await running.wait() == 0
            assert running.process.returncode == 0

    play(scenario)


def test_closing_input_leaves_output_open(play: Play) -> None:
    """Half-close: what the command says after the end of its input is heard."""

    async def scenario(where: Where) -> None:
        async with where.open(["sh", "-c", "cat >/dev/null; echo after; echo e >&2"]) as running:
            await running.stdin.send_all(b"x" * 100_000)
            await running.stdin.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await running.stdin.send_all(b"more")
            assert await running.stdout.receive_some() == b"after\n"
            assert await running.stderr.receive_some() == b"e\n"
            assert await running.wait() == 0

    play(scenario)


def test_writing_to_a_command_that_has_ended(play: Play) -> None:
    """Broken, as every pipe is."""

    async def scenario(where: Where) -> None:
        async with where.open(["true"]) as running:
            assert await running.wait() == 0
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await running.stdin.send_all(bytes(65_536))

    play(scenario)


def test_a_stream_is_iterated_to_its_end(play: Play) -> None:
    """``async for`` gives chunks, never an empty one."""

    async def scenario(where: Where) -> None:
        async with where.open(["sh", "-c", "seq 20000"]) as running:
            chunks = [chunk async for chunk in running.stdout]
        assert all(chunks)
        assert b"".join(chunks) == b"".join(b"%d\n" % n for n in range(1, 20_001))

    play(scenario)


def test_a_small_read_takes_no_more(play: Play) -> None:
    """The rest stays for the next."""

    async def scenario(where: Where) -> None:
        async with where.open(["sh", "-c", "printf abcdef"]) as running:
            assert await running.stdout.receive_some(2) == b"ab"
            rest = b""
            while chunk := await running.stdout.receive_some(3):
                assert len(chunk) <= 3
                rest += chunk
            assert rest == b"cdef"

    play(scenario)


def test_two_readers_of_one_stream_are_refused(play: Play) -> None:
    """A stream is for one task at a time."""

    async def scenario(where: Where) -> None:
        async with where.open(["cat"]) as running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.stdout.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await running.stdout.receive_some()
                nursery.cancel_scope.cancel()
            await running.stdin.aclose()

    play(scenario)


def test_signals_to_a_running_command(play: Play) -> None:
    """One that is caught, and one that is not."""

    async def scenario(where: Where) -> None:
        program = "trap 'echo caught' USR1; echo up; while :; do sleep 0.05; done"
        async with where.open(["sh", "-c", program]) as running:
            assert await running.stdout.receive_some() == b"up\n"
            await running.send(signal.SIGUSR1)
            assert await running.stdout.receive_some() == b"caught\n"
            assert running.process.returncode is None
            await running.send(signal.SIGTERM)
            assert await running.wait() == 128 + signal.SIGTERM
            await running.send(signal.SIGTERM)

    play(scenario)


def test_waiting_twice_and_in_several_tasks(play: Play) -> None:
    """All of them are told."""

    async def scenario(where: Where) -> None:
        codes: list[int] = []
        async with where.open(["sh", "-c", "read x; exit 5"]) as running:

            async def wait() -> None:
                codes.append(await running.wait())

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
                await running.stdin.send_all(b"\n")
            await wait()
        assert codes == [5] * 4

    play(scenario)


def test_cancelling_a_run_ends_the_command(play: Play) -> None:
    """And returns soon."""

    async def scenario(where: Where) -> None:
        with trio.move_on_after(0.5) as scope:
            await where.run(["sleep", "1000"])
        assert scope.cancelled_caught

    play(scenario)


def test_a_reader_that_stops_stops_the_writer(play: Play) -> None:
    """Back-pressure: far less than is written is on its way, and nothing is lost."""

    async def scenario(where: Where) -> None:
        program = (
            "import sys\n"
            "for n in range(256):\n"
            "    sys.stdout.buffer.write(bytes(65536))\n"
            "    print(n, file=sys.stderr, flush=True)\n"
        )
        python = sys.executable if isinstance(where, Host) else "python3"
        async with where.open([python, "-c", program]) as running:
            told = b""
            with trio.move_on_after(2):
                while chunk := await running.stderr.receive_some():
                    told += chunk
            written = len(told.splitlines()) * 65_536
            assert written < 4 * MEGABYTE
            size = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, running.stderr)
                async for chunk in running.stdout:
                    size += len(chunk)
            assert size == 256 * 65_536
            assert await running.wait() == 0

    play(scenario)


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


def test_a_fast_command_loses_nothing(play: Play) -> None:
    """The exit never overtakes the output."""

    async def scenario(where: Where) -> None:
        for number in range(100):
            done = await where.run(["echo", str(number)])
            assert done == Done(0, b"%d\n" % number, b"")

    play(scenario)


def test_many_at_once(play: Play) -> None:
    """A hundred, each with its own input and output."""

    async def scenario(where: Where) -> None:
        results: dict[int, bytes] = {}

        async def one(number: int) -> None:
            results[number] = (await where.run(["cat"], input=b"%d" % number)).out

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
        assert results == {number: b"%d" % number for number in range(100)}

    play(scenario)
