"""Asking a program: bounded in time and in bytes, and nothing of it survives."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from boxlite._process import wait_ended
from boxlite._program import Answer, ask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def python(program: str) -> Sequence[str]:
    """Return the command line of a Python program."""
    return [sys.executable, "-I", "-S", "-c", program]


async def test_answer_has_output_and_exit_code() -> None:
    """Both outputs are kept apart."""
    answer = await ask(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), seconds=30
    )

    assert answer == Answer(exit_code=3, stdout=b"out\n", stderr=b"err\n")


async def test_program_reads_its_input_to_the_end() -> None:
    """More than a pipe holds, so it is written while the answer is read."""
    data = b"x" * 300_000
    answer = await ask(
        python("import sys; sys.stdout.write(sys.stdin.read())"),
        stdin=data,
        seconds=30,
        max_bytes=1 << 20,
    )

    assert answer == Answer(exit_code=0, stdout=data, stderr=b"")


async def test_program_need_not_read_its_input() -> None:
    """A broken pipe is no failure of the program that did not care."""
    answer = await ask(python("print('done')"), stdin=b"x" * 300_000, seconds=30)

    assert answer == Answer(exit_code=0, stdout=b"done\n", stderr=b"")


async def test_program_without_input_reads_none() -> None:
    """It must not wait for a terminal, or take what was meant for the caller."""
    answer = await ask(python("import sys; print(len(sys.stdin.read()))"), seconds=30)

    assert answer.stdout == b"0\n"


async def test_death_by_signal_is_a_negative_exit_code() -> None:
    """It died by itself: that is an answer, and not a lack of patience."""
    answer = await ask(python("import os; os.abort()"), seconds=30)

    assert answer.exit_code == -6


async def test_slow_program_is_killed() -> None:
    """No exit code says that it did not end by itself."""
    answer = await ask(python("import time; time.sleep(1000)"), seconds=0.1)

    assert answer.exit_code is None


async def test_flood_is_cut_and_ended() -> None:
    """A program that never stops writing costs a bounded amount of memory."""
    answer = await ask(python("while True: print('x' * 4096)"), seconds=30, max_bytes=10_000)

    assert answer.exit_code is None
    assert len(answer.stdout) == 10_000


async def test_program_that_cannot_be_executed_is_an_oserror(tmp_path: Path) -> None:
    """The caller knows what it wanted to run, and can say what that means."""
    with pytest.raises(FileNotFoundError):
        await ask([str(tmp_path / "nothing")], seconds=30)


async def test_cancelling_kills_and_reaps_the_whole_session(tmp_path: Path) -> None:
    """A wrapper's child ends with it, and no zombie stays."""
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    script = f"sleep 1000 & echo $$ $! > {fifo}; wait"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ask(["/bin/sh", "-c", script], seconds=1000))
        wrapper, child = map(int, (await trio.Path(fifo).read_text()).split())
        nursery.cancel_scope.cancel()

    with pytest.raises(ProcessLookupError):
        os.kill(wrapper, 0)
    with trio.fail_after(30):
        await wait_ended(child)


def test_last_words_are_one_printable_line() -> None:
    """They go into an error, so no escape sequence and no essay may come through."""
    said = b"first\n\x1b[31mlast " + b"x" * 1000 + b"\n\n"
    words = Answer(exit_code=1, stdout=b"", stderr=said).last_words

    assert words.startswith("[31mlast xxx")
    assert len(words) == 200
