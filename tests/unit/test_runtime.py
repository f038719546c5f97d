"""A runtime and its home: the lock, what is tidied and what is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import boxlite
from boxlite._ownership import FAILURES_KEPT
from boxlite._process import process_start_time

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_a_home_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """With everything in it that a box needs."""
    home = tmp_path / "a" / "home"
    async with boxlite.open_runtime(home=home) as runtime:
        assert runtime.home.root.stat().st_mode & 0o777 == 0o700
        assert runtime.home.lock.read_text() == f"{os.getpid()}\n"
        assert {path.name for path in home.iterdir()} >= {"boxes", "kit", "lock", "tmp"}


async def test_a_home_has_one_runtime_at_a_time(tmp_path: Path) -> None:
    """In this process or another; afterwards it is free again."""
    async with boxlite.open_runtime(home=tmp_path / "home"):
        with pytest.raises(boxlite.RuntimeInUseError, match=f"process {os.getpid()}"):
            async with boxlite.open_runtime(home=tmp_path / "home"):
                pytest.fail("two runtimes")
    async with boxlite.open_runtime(home=tmp_path / "home"):
        pass


async def test_a_runtime_that_was_killed_does_not_keep_its_home(tmp_path: Path) -> None:
    """The lock is the kernel's, not the file's."""
    program = (
        "import os, sys, trio, boxlite\n"
        "async def main():\n"
        "    async with boxlite.open_runtime(home=sys.argv[1]):\n"
        "        os.kill(os.getpid(), 9)\n"
        "trio.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "home")])
    assert done.returncode == -9

    async with boxlite.open_runtime(home=tmp_path / "home"):
        pass


async def test_opening_tidies_what_a_killed_program_left(tmp_path: Path) -> None:
    """Work in progress goes; of failed boxes the newest stay; a living box is not touched."""
    home = tmp_path / "home"
    async with boxlite.open_runtime(home=home):
        (home / "tmp" / "half").mkdir()
        (home / "tmp" / "half" / "file").write_text("x")
        (home / "tmp" / "link").symlink_to("/etc")
        for number in range(FAILURES_KEPT + 5):
            box = home / "boxes" / f"old{number}"
            box.mkdir()
            os.utime(box, (number, number))
        living = home / "boxes" / "living"
        living.mkdir()
        (living / "shim.pid").write_text(f"{os.getpid()}\n{process_start_time(os.getpid())}\n")
        os.utime(living, (0, 0))

    async with boxlite.open_runtime(home=home):
        assert list((home / "tmp").iterdir()) == []
        left = {path.name for path in (home / "boxes").iterdir()}

    assert left == {"living", *(f"old{number}" for number in range(5, FAILURES_KEPT + 5))}


async def test_opening_keeps_the_disk_of_a_box_that_can_be_started_again(tmp_path: Path) -> None:
    """However many are older than it; a disk that nobody can start from explains nothing."""
    home = tmp_path / "home"
    async with boxlite.open_runtime(home=home):
        for name, files in {
            "kept": ("box.json", "disk", "exit"),
            "stopped": ("disk", "exit"),
            "detached": ("box.json",),
            "living": ("disk",),
        }.items():
            box = home / "boxes" / name
            box.mkdir()
            for file in files:
                (box / file).write_text("x")
            os.utime(box, (0, 0))
        identity = f"{os.getpid()}\n{process_start_time(os.getpid())}\n"
        (home / "boxes" / "living" / "shim.pid").write_text(identity)

    async with boxlite.open_runtime(home=home):
        left = {
            path.name: {file.name for file in path.iterdir()} for path in (home / "boxes").iterdir()
        }
        assert left == {
            "kept": {"box.json", "disk", "exit"},
            "stopped": {"exit"},
            "detached": {"box.json"},
            "living": {"disk", "shim.pid"},
        }
        for number in range(FAILURES_KEPT):
            (home / "boxes" / f"new{number}").mkdir()
        for name in ("kept", "stopped", "detached"):
            os.utime(home / "boxes" / name, (0, 0))
    async with boxlite.open_runtime(home=home):
        left = {path.name: set() for path in (home / "boxes").iterdir()}

    assert left.keys() == {"kept", "living", *(f"new{n}" for n in range(FAILURES_KEPT))}


async def test_the_failures_that_are_kept_are_the_newest_with_or_without_a_disk(
    tmp_path: Path,
) -> None:
    """What was to be explained is not explained by an older one."""
    boxes = tmp_path / "home" / "boxes"
    async with boxlite.open_runtime(home=tmp_path / "home"):
        for number in range(FAILURES_KEPT + 1):
            (boxes / f"old{number}").mkdir()
        (boxes / "old0" / "disk").touch()
        for number in range(FAILURES_KEPT + 1):
            os.utime(boxes / f"old{number}", (number, number))
    async with boxlite.open_runtime(home=tmp_path / "home"):
        assert not (boxes / "old0").exists()


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path / "disk").mkdir(parents=True)])
async def test_what_does_not_belong_among_the_boxes_is_no_reason_not_to_start(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """A stray file, or a directory where a disk should be."""
    home = tmp_path / "home"
    async with boxlite.open_runtime(home=home):
        make(home / "boxes" / "stray")
    async with boxlite.open_runtime(home=home):
        pass


async def test_a_closed_runtime_opens_no_box(tmp_path: Path) -> None:
    """And says which state it is in."""
    async with boxlite.open_runtime(home=tmp_path / "home") as runtime:
        pass

    with pytest.raises(boxlite.StateError, match="open a box.*closed"):
        async with runtime.open_box():
            pytest.fail("a box of a closed runtime")
    assert "closed" in repr(runtime)


async def test_cancelling_a_runtimes_block_frees_its_home(tmp_path: Path) -> None:
    """At once."""
    with trio.CancelScope() as scope:
        async with boxlite.open_runtime(home=tmp_path / "home"):
            scope.cancel()
            await trio.sleep_forever()

    async with boxlite.open_runtime(home=tmp_path / "home"):
        pass
