"""Real virtual machines for tests: one runtime and one box are shared by the session.

Booting under software emulation takes seconds, so tests that do not harm their
box share one. Trio runs in a thread of its own for the whole session; a test
hands it an async scenario and gets the result. Every scenario with a box of its
own is followed by a census: what was there before is there after, and nothing
else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
import trio.testing
from census import Census
from images.conftest import (
    app as app,
    app_reference as app_reference,
    busybox as busybox,
    busybox_reference as busybox_reference,
    debian as debian,
    debian_reference as debian_reference,
    image_tools as image_tools,
    registry as registry,
)
from loop_thread import LoopThread

import boxlite
from boxlite._layout import HomeLayout
from boxlite._process import ExitWatch, read_pid_file

if TYPE_CHECKING:
    import signal
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")

#: Under software emulation with both CPUs busy, a boot has been seen to take 20 s.
READY_TIMEOUT = 120.0
SCENARIO_SECONDS = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there is no QEMU, unless this machine promised to have one."""
    able = shutil.which("qemu-system-x86_64") or os.environ.get("BOXLITE_QEMU")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if not able and not os.environ.get("BOXLITE_TESTS_REQUIRE_VM"):
                item.add_marker(pytest.mark.skip(reason="qemu-system-x86_64 is not installed"))


def forget(error: boxlite.BoxStartError | boxlite.BoxCrashedError) -> None:
    """Check that the files that the report names explain the failure, and remove them."""
    files = dict(error.report.files)
    directory = files["console"].parent
    assert {path.name for path in directory.iterdir()} <= {
        "exit",
        "shim.stderr",
        "console.log",
        "console.log.old",
    }
    shutil.rmtree(directory)


async def kill_when_there(pid_file: Path, number: signal.Signals) -> None:
    """Wait until a pid file names a process, and signal that process."""
    while (process := read_pid_file(pid_file)) is None:
        await trio.lowlevel.checkpoint()
    with ExitWatch.of(process) as watch:
        watch.send_signal(number)


class Stage(LoopThread):
    """A runtime and, once asked for, a box."""

    seconds = SCENARIO_SECONDS

    def __init__(self, home: Path, *, templates: bool) -> None:
        self.home = HomeLayout(home)
        self._options: Any = {"home": home, "templates": templates}
        self._shared: boxlite.Box | None = None
        super().__init__()

    def open_runtime(self) -> AbstractAsyncContextManager[boxlite.Runtime]:
        """Return the runtime of the home."""
        return boxlite.open_runtime(**self._options)

    def play_counted(self, scenario: Callable[[boxlite.Runtime], Awaitable[T]]) -> T:
        """Run a scenario that opens its own boxes; prove that nothing of them is left."""

        async def counted() -> T:
            # The first use of the guest session imports modules that open descriptors.
            await self._shared_box()
            # Its tasks have what they hold while they wait.
            await trio.testing.wait_all_tasks_blocked()
            before = Census.take(self.home.root)
            result = await scenario(self.runtime)
            assert Census.take(self.home.root) == before
            return result

        return self.play(counted)

    async def _shared_box(self) -> boxlite.Box:
        if self._shared is None:
            self._shared = await self.nursery.start(self._keep_box)
        return self._shared

    async def _keep_box(self, *, task_status: trio.TaskStatus[boxlite.Box]) -> None:
        async with self.runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
            task_status.started(box)
            await trio.sleep_forever()

    def play_in_box(self, scenario: Callable[[boxlite.Box], Awaitable[T]]) -> T:
        """Run a scenario in the shared box, which it must leave as it was."""

        async def shared() -> T:
            return await scenario(await self._shared_box())

        return self.play(shared)


@pytest.fixture(scope="session", params=[True, False], ids=["template", "boot"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The session's loop, runtime and shared box: once with templates, once without."""
    stage = Stage(tmp_path_factory.mktemp("home"), templates=request.param)
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def in_box(stage: Stage) -> Callable[[Callable[[boxlite.Box], Awaitable[Any]]], Any]:
    """Call it with a scenario to run in the shared box."""
    return stage.play_in_box


@pytest.fixture(scope="session")
def in_runtime(stage: Stage) -> Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]:
    """Call it with a scenario that opens boxes; a census follows."""
    return stage.play_counted


def second_home(tmp_path: Path, stage: Stage) -> Path:
    """Return a fresh home that has the session's kit and templates."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for made in (stage.home.kit, stage.home.templates):
        subprocess.run(["cp", "-al", str(made), str(home / made.name)], check=True)
    return home
