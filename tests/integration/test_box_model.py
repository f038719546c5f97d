"""The model of what users do to boxes, over real virtual machines."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from box_machine import BoxMachine, World
from census import processes_of
from conftest import kill_when_there
from hypothesis import HealthCheck, settings

import boxlite
from boxlite._process import ExitWatch, read_pid_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Stage


class RealWorld(World):
    """The real runtime over real machines, in a home that has a kit and a template."""

    source: ClassVar[Path]

    @asynccontextmanager
    async def open_runtime(self) -> AsyncIterator[boxlite.Runtime]:
        """Return a runtime in a home of its own."""
        home = Path(tempfile.mkdtemp())
        try:
            for name in ("kit", "templates"):
                subprocess.run(["cp", "-al", self.source / name, home / name], check=True)
            async with boxlite.open_runtime(home=home) as runtime:
                yield runtime
        finally:
            shutil.rmtree(home)

    async def kill(self, box_id: str, what: str) -> None:
        """Kill QEMU or the shim, and wait until the shim is gone: it has told what it had to."""
        layout = self.runtime.home.box(box_id)
        with ExitWatch.of(read_pid_file(layout.shim_pid)) as shim:
            await kill_when_there(getattr(layout, f"{what}_pid"), signal.SIGKILL)
            await shim.wait()

    def living(self) -> int:
        """Return how many VMs there are."""
        found = 0
        for pid in processes_of(self.runtime.home.root):
            with suppress(FileNotFoundError):
                program, _, _ = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")
                found += b"qemu-system" in program
        return found


class RealBoxMachine(BoxMachine):
    """The rules over real machines."""

    def make_world(self) -> World:
        """Return a new world."""
        return RealWorld()


@pytest.mark.parametrize("stage", [True], ids=["template"], indirect=True)
def test_real_boxes_do_what_the_model_says(stage: Stage) -> None:
    """A shorter run of what ``tests/property/test_box_states.py`` does at length."""
    from hypothesis.stateful import run_state_machine_as_test

    stage.play_in_box(lambda box: box.ping())
    RealWorld.source = stage.home.root
    run_state_machine_as_test(
        RealBoxMachine,
        settings=settings(
            max_examples=5,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
