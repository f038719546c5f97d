"""Boxes from templates: alike in everything that may be, different in everything that must be."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from census import Census, processes_of
from conftest import READY_TIMEOUT, forget

import boxlite
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import Stage

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]

# What these start is their own; of the session they take the kernel and the root.
pytestmark = pytest.mark.parametrize("stage", [True], ids=[""], indirect=True, scope="session")

BOXES = 20
#: Clocks of the guests are compared with the host's, to this many seconds.
CLOCK_SECONDS = 0.1

# Prints what a machine must not share with another one, and its clock.
UNIQUE = """
import json, os, secrets, time
now = time.time()
print(json.dumps({
    "getrandom": os.getrandom(16).hex(),
    "uuid": open("/proc/sys/kernel/random/uuid").read().strip(),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "secrets": secrets.token_hex(16),
    "hash": hash("x"),
    "hostname": os.uname().nodename,
    "machine_id": open("/etc/machine-id").read().strip(),
    "address": id(object()),
    "now": now,
}))
"""

# Opens a box; killed at any moment by the test.
PROGRAM = """
import sys, trio, boxlite
async def main():
    async with boxlite.open_runtime(home=sys.argv[1]) as runtime:
        async with runtime.open_box(ready_timeout=120) as box:
            print((await box.run(["echo", "works"])).stdout.decode(), flush=True)
trio.run(main)
"""


@pytest.fixture
def home(stage: Stage, tmp_path: Path) -> HomeLayout:
    """A home without templates, with the session's kernel and root file system."""

    async def boot() -> None:
        await stage._shared_box()

    stage.play(boot)
    home = HomeLayout(tmp_path / "home")
    home.root.mkdir(mode=0o700)
    subprocess.run(["cp", "-al", str(stage.home.kit), str(home.kit)], check=True)
    return home


def in_home(
    home: HomeLayout, scenario: Callable[[boxlite.Runtime], Awaitable[None]], *, warm: int = 0
) -> None:
    """Run a scenario in a runtime of its own."""

    async def main() -> None:
        with trio.fail_after(READY_TIMEOUT * 2):
            async with boxlite.open_runtime(home=home.root, warm=warm) as runtime:
                await scenario(runtime)

    trio.run(main)
    assert list(home.tmp.iterdir()) == []
    assert list(home.boxes.iterdir()) == []
    assert list(processes_of(home.root)) == []


async def works(runtime: boxlite.Runtime) -> list[str]:
    """Start a box, use it, and return the stages of its start."""
    async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
        done = await box.run(["echo", "works"], check=True)
        assert done.stdout == b"works\n"
        return [name for name, _ in box.timings]


def test_boxes_of_one_template_differ_where_they_must(in_runtime: InRuntime) -> None:
    """Twenty boxes: no two share random numbers, hashes, names or ids, and all know the time."""
    seen: list[dict[str, Any]] = []
    lags: list[float] = []

    async def scenario(runtime: boxlite.Runtime) -> None:
        for _ in range(BOXES):
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                # The first run has Python's files read; only the second one tells the time.
                await box.run(["python3", "-c", UNIQUE], check=True)
                before = time.time()
                done = await box.run(["python3", "-c", UNIQUE], check=True)
                after = time.time()
            said = json.loads(done.stdout)
            now = said.pop("now")
            # Inside the call, as the host sees it, or that far outside.
            lags.append(max(before - now, now - after, 0.0))
            seen.append(said)

    in_runtime(scenario)
    for name in seen[0]:
        assert len({said[name] for said in seen}) == BOXES, name
    assert max(lags) <= CLOCK_SECONDS


def test_callers_share_one_build(home: HomeLayout) -> None:
    """Three boxes that are wanted at once cost one template."""
    builds: list[str] = []

    def on_stage(event: boxlite.StageEvent) -> None:
        if (event.stage, event.what) == ("template", "done") and event.seconds > 0.5:
            builds.append(event.box_id)

    async def scenario(runtime: boxlite.Runtime) -> None:
        async def one() -> None:
            async with runtime.open_box(ready_timeout=READY_TIMEOUT, on_stage=on_stage) as box:
                await box.ping()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        (info,) = await runtime.templates()
        assert info.machine["memory_mib"] == "256"
        assert (await runtime.prepare_template()).made_at == info.made_at

    in_home(home, scenario)
    assert len(list(home.templates.iterdir())) == 1


def test_a_damaged_template_is_made_anew(home: HomeLayout) -> None:
    """Damage that is seen costs a build; what only QEMU sees, one failed start with its story."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        info = await runtime.prepare_template(ready_timeout=READY_TIMEOUT)
        directory = home.templates / info.key
        os.truncate(directory / "memory", 4096)
        await works(runtime)
        (again,) = await runtime.templates()
        assert again.made_at > info.made_at

        # As if it had been made by a QEMU that writes nonsense.
        state = directory / "state"
        state.write_bytes(b"nonsense" * 100)
        description = json.loads((directory / "template.json").read_text())
        description["state_sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
        (directory / "template.json").write_text(json.dumps(description))
        with pytest.raises(boxlite.BoxStartError, match="template") as caught:
            await works(runtime)
        assert caught.value.report.kind is boxlite.CrashKind.TEMPLATE
        assert "load of migration failed" in caught.value.report.cause
        assert await runtime.templates() == []
        forget(caught.value)
        await works(runtime)

    in_home(home, scenario)


def test_a_cancelled_build_leaves_nothing(home: HomeLayout) -> None:
    """Whoever waited for it makes the template then."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        before = Census.take(home.root)
        with trio.move_on_after(2):
            await works(runtime)
        assert Census.take(home.root) == before
        assert list(home.tmp.iterdir()) == []
        assert await runtime.templates() == []
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_after, scope, 1.0)
                await works(runtime)
            nursery.start_soon(works, runtime)
        assert len(await runtime.templates()) == 1

    in_home(home, scenario)


async def _cancel_after(scope: trio.CancelScope, seconds: float) -> None:
    await trio.sleep(seconds)
    scope.cancel()


def test_a_program_killed_during_a_build_leaves_a_home_that_works(home: HomeLayout) -> None:
    """At random moments of it, saving and publishing included."""
    chance = random.Random(3)
    with (home.root.parent / "output").open("wb") as output:
        for moment in (0.6, *(chance.uniform(0.5, 7.0) for _ in range(5))):
            with subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(home.root)],
                stdout=output,
                stderr=output,
            ) as program:
                try:
                    program.wait(moment)
                except subprocess.TimeoutExpired:
                    program.send_signal(signal.SIGKILL)
        # Those that ran to their end worked.
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(home.root)],
            capture_output=True,
            check=False,
            timeout=READY_TIMEOUT,
        )
    assert done.stderr == b""
    assert done.stdout == b"works\n\n"
    assert list(home.tmp.iterdir()) == []


def test_a_warm_box_is_a_box_like_another(home: HomeLayout) -> None:
    """It has its own options and identity, its death is told as such, and the pool fills up."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        await runtime.wait_warm()
        names = set()
        for number in range(3):
            async with runtime.open_box(env={"NUMBER": str(number)}) as box:
                assert [name for name, _ in box.timings] == ["handover"]
                done = await box.run(["sh", "-c", "echo $NUMBER; hostname"], check=True)
                said, hostname = done.stdout.decode().split()
                assert (said, hostname) == (str(number), f"box-{box.id}")
                names.add(hostname)
            await runtime.wait_warm()
        assert len(names) == 3
        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.open_box() as box:
                os.kill(box.shim_pid, signal.SIGKILL)
                await trio.sleep_forever()
        assert caught.value.report.kind is boxlite.CrashKind.SHIM_LOST
        forget(caught.value)
        with trio.move_on_after(0.2):
            async with runtime.open_box() as box:
                await trio.sleep_forever()
        await runtime.wait_warm()
        assert runtime.warm_boxes == 2

    in_home(home, scenario, warm=2)
