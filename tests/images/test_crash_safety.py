"""A program that is killed while it pulls costs nothing but time.

It is killed with SIGKILL, at random moments of a pull: whatever is there then, the next
pull makes the image of it, and a prune leaves nothing but the image.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio
from census import processes_of
from image_layer import LayerTar
from image_trees import differences, tree_of_directory, tree_of_squashfs
from registry_server import noise

import boxlite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from image_layout import Layout
    from image_registry import Registry

PROGRAM: Final = Path(__file__).with_name("pull_program.py")
KILLS: Final = 50
#: After so many kills on top of each other, a pull has to make it good.
KILLS_IN_A_ROW: Final = 5
#: What a machine that is busy may take for what takes milliseconds.
PATIENCE_SECONDS: Final = 60.0
#: The phases of a pull, in their order, by the beginning of the line with which each begins.
PHASES: Final = (
    "",  # It has been started, and has not said anything.
    "manifest verified",
    "config downloading",
    "layer downloading",
    "layer verified",
    "unpack",
    "pack",
)


@attrs.frozen
class Program:
    """A pull that runs in a process of its own, and a group of its own."""

    process: subprocess.Popen[bytes]

    def lines(self, seconds: float = PATIENCE_SECONDS) -> Iterator[str]:
        """Yield what it prints until it ends, or for some time."""
        assert self.process.stdout is not None
        fd, rest = self.process.stdout.fileno(), b""
        deadline = time.monotonic() + seconds
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(fd, 65536)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode()

    def run_to(self, phase: str, more: float) -> str:
        """Let it come to a phase, or one after it, and go on for some seconds.

        Returns:
            Its last line by then; ``ready`` if it has pulled the image.
        """
        last = ""
        if phase:
            later = PHASES[PHASES.index(phase) :]
            for last in self.lines():
                if last in (*later, "ready"):
                    break
        for last in self.lines(more):
            if last == "ready":
                break
        return last

    def kill(self, home: Path) -> list[int]:
        """Kill its group. It is gone when this returns.

        Returns:
            The packers that it had running at that moment. They are no members of the group.
        """
        packers: list[int] = []
        if self.process.returncode is not None:
            return packers
        with suppress(ProcessLookupError):
            # One that is stopped neither ends nor starts any while they are looked for.
            os.killpg(self.process.pid, signal.SIGSTOP)
            packers = [pid for pid in processes_of(home) if name_of(pid) == "tar2sqfs"]
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return packers


def name_of(pid: int) -> str:
    """Return what a process is called; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextmanager
def pulling(home: Path, reference: str) -> Iterator[Program]:
    """Run the program, and kill it after the block."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with subprocess.Popen(
        [sys.executable, PROGRAM, home, reference],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        program = Program(process)
        try:
            yield program
        finally:
            program.kill(home)


def wait_for_the_end(pid: int, seconds: float) -> None:
    """Wait until a process has ended that is not a child of ours."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], seconds)[0], Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        os.close(fd)


def content_of(directory: Path) -> dict[str, str]:
    """Return the digest of each file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if not path.is_dir()
    }


async def check(home: Path, reference: str, expected: dict[str, str]) -> None:
    """Make sure that a home has an image, and after a prune nothing else."""
    async with boxlite.open_runtime(home=home) as runtime:
        assert list(runtime.home.tmp.iterdir()) == []
        image = await runtime.images.get(reference)
        assert [each.name for each in await runtime.images.list()] == [image.name]
        pruned = await runtime.images.prune()
        assert pruned.images == ()
        assert await runtime.images.get(reference) == image
        found = content_of(runtime.home.images)
    # When it was pulled is in the file of the name.
    [name] = [path for path in found if path.startswith("names/")]
    found.pop(name)
    assert found == expected


@pytest.fixture(scope="module")
def large(
    registry: Registry, busybox: Layout, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Layout, str]:
    """An image that takes some time to download and to convert, and its reference."""
    directory = tmp_path_factory.mktemp("large")
    image = busybox.derive(directory / "image")
    for number in range(2):
        with LayerTar(directory / f"{number}.tar") as layer:
            layer.directory(f"data{number}")
            for index in range(64):
                layer.file(f"data{number}/{index}", noise(128 << 10, seed=64 * number + index))
        image.add_layer(layer.path)
    return image, registry.push(image, "test/large:latest")


def test_a_pull_that_is_killed_at_any_moment_can_be_done_again(
    large: tuple[Layout, str], tmp_path: Path
) -> None:
    """Fifty kills, in every phase: the image comes right in the end, and no garbage stays."""
    image, reference = large
    home, images = tmp_path / "home", tmp_path / "home" / "images"
    rng = random.Random(20251125)
    with pulling(home, reference) as program:
        assert list(program.lines())[-1] == "ready"
    expected = content_of(images)
    [name] = [path for path in expected if path.startswith("names/")]
    expected.pop(name)
    trio.run(check, home, reference, expected)
    [root] = (images / "roots").iterdir()
    if os.geteuid() == 0:
        unpacked = tree_of_directory(image.unpack(tmp_path / "unpacked"))
        assert differences(unpacked, tree_of_squashfs(root, tmp_path)) == []

    killed: Counter[str] = Counter()
    in_a_row = packing = 0
    shutil.rmtree(images)
    while killed.total() < KILLS:
        with pulling(home, reference) as program:
            last = program.run_to(rng.choice(PHASES), rng.choice((0, 0.002, 0.01, 0.05)))
            packers = program.kill(home)
        assert last == "ready" or program.process.returncode == -signal.SIGKILL
        for pid in packers:
            # It ends because its input does.
            wait_for_the_end(pid, PATIENCE_SECONDS)
        assert list(processes_of(home)) == []
        if last != "ready":
            killed[last] += 1
            in_a_row += 1
            packing += len(packers)
        if last == "ready" or in_a_row == KILLS_IN_A_ROW:
            with pulling(home, reference) as program:
                assert list(program.lines())[-1] == "ready"
            trio.run(check, home, reference, expected)
            shutil.rmtree(images)
            in_a_row = 0
    assert {"", "layer downloading", "layer verified", "pack"} <= killed.keys()
    assert packing > 0
