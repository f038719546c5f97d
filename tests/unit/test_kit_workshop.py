"""The workshop: programs that end with their caller, and a place that is cleared."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from boxlite._kit.workshop import last_words, open_workshop, run_program
from boxlite._layout import HomeLayout
from boxlite._process import ExitWatch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A home with a place for work in progress."""
    home = HomeLayout(tmp_path / "home")
    home.tmp.mkdir(parents=True)
    return home


def test_a_workshop_is_cleared_however_work_ends(home: HomeLayout) -> None:
    """What was moved out of it before stays."""
    kept = home.root / "kept"
    with pytest.raises(KeyError), open_workshop(home, "thing") as work:
        assert work.name.startswith("thing-")
        (work / "deep" / "er").mkdir(parents=True)
        (work / "made").write_text("whole")
        (work / "made").rename(kept)
        raise KeyError

    assert list(home.tmp.iterdir()) == []
    assert kept.read_text() == "whole"


async def test_a_program_runs_where_and_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without input, untranslated, with this process's variables and those given."""
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    said = await run_program(
        ["sh", "-c", 'cat; pwd; echo "$KEPT $GIVEN $LC_ALL"'],
        cwd=tmp_path,
        env={"GIVEN": "given"},
    )
    assert said.decode().splitlines() == [str(tmp_path), "kept given C"]


async def test_a_program_may_say_more_than_a_pipe_holds(tmp_path: Path) -> None:
    """Both outputs are read while it runs."""
    script = "import sys; sys.stderr.write('e' * 300_000); sys.stdout.write('o' * 300_000)"
    assert await run_program([sys.executable, "-c", script], cwd=tmp_path) == b"o" * 300_000


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo last >&2; exit 3", "last"),
        ("exit 3", "non-zero exit status 3"),
        ("kill -TERM $$", "SIGTERM"),
    ],
)
async def test_a_program_that_fails_has_last_words(tmp_path: Path, script: str, words: str) -> None:
    """Its own, or how it ended."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        await run_program(["sh", "-c", script], cwd=tmp_path)
    assert words in last_words(caught.value)


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The system's own."""
    with pytest.raises(FileNotFoundError):
        await run_program([str(tmp_path / "none")], cwd=tmp_path)


@pytest.mark.parametrize("leader", ["waits", "has gone"])
async def test_cancelling_ends_what_the_program_started(tmp_path: Path, leader: str) -> None:
    """Also when the program itself has ended: its children must not go on writing."""
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file};"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            program = ["sh", "-c", script + ("wait" if leader == "waits" else "exit 0")]

            async def run() -> None:
                await run_program(program, cwd=tmp_path)

            nursery.start_soon(run)
            while not pid_file.exists():
                await trio.lowlevel.checkpoint()
            child = ExitWatch(int(pid_file.read_text()))
            assert not child.has_ended()
            nursery.cancel_scope.cancel()
        with child:
            await child.wait()
