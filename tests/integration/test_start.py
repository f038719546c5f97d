"""Starting a box, or not: cancelling at every stage, bad hosts, homes and options."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from census import Census
from conftest import READY_TIMEOUT, Stage, second_home
from hypothesis import HealthCheck, given, settings, strategies as st

import boxlite
from boxlite._kit import find_kernel
from boxlite._options import MEMORY_MIB_MIN
from boxlite._startup.pipeline import Together
from boxlite._startup.tables import BOX_START

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]

STAGES = [
    stage.name
    for entry in BOX_START
    for stage in (entry.stages if isinstance(entry, Together) else (entry,))
]


def test_a_box_leaves_nothing_behind(in_runtime: InRuntime) -> None:
    """Start, use, stop: the census is as before; every stage was timed.

    It has the least memory that is allowed, so that this is known to be enough.
    """

    async def scenario(runtime: boxlite.Runtime) -> None:
        least = MEMORY_MIB_MIN
        async with runtime.open_box(ready_timeout=READY_TIMEOUT, memory_mib=least) as box:
            done = await box.run(["python3", "-c", "import asyncio, json; print('hi')"])
            assert done.stdout == b"hi\n"
            assert sorted(name for name, _ in box.timings) == sorted(STAGES)
            assert all(seconds >= 0 for _, seconds in box.timings)
        with pytest.raises(boxlite.StateError, match="closed"):
            await box.run(["true"])

    in_runtime(scenario)


@settings(max_examples=14, deadline=None, suppress_health_check=list(HealthCheck))
@given(stage_name=st.sampled_from(STAGES), what=st.sampled_from(["began", "done"]))
def test_cancelling_at_any_stage_leaves_nothing_behind(
    in_runtime: InRuntime, stage_name: str, what: str
) -> None:
    """Whatever has been made by then is undone, at once."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with trio.CancelScope() as scope:

            def on_stage(event: boxlite.StageEvent) -> None:
                if (event.stage, event.what) == (stage_name, what):
                    scope.cancel()

            async with runtime.open_box(on_stage=on_stage, ready_timeout=READY_TIMEOUT):
                await trio.lowlevel.checkpoint()
                pytest.fail("the box started")
        assert scope.cancelled_caught

    in_runtime(scenario)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seconds=st.floats(0, 6))
def test_cancelling_at_any_moment_leaves_nothing_behind(
    in_runtime: InRuntime, seconds: float
) -> None:
    """Also between the stages, and while the guest boots."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with trio.move_on_after(seconds):
            async with runtime.open_box(ready_timeout=READY_TIMEOUT) as box:
                await box.run(["sleep", "1000"])

    in_runtime(scenario)


def test_a_listener_that_fails_fails_the_start(in_runtime: InRuntime) -> None:
    """The user's own exception comes out, and nothing is left."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        def on_stage(event: boxlite.StageEvent) -> None:
            if event.stage == "guest_ready":
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            async with runtime.open_box(on_stage=on_stage):
                pytest.fail("the box started")

    in_runtime(scenario)


def test_a_deadline_that_passes_tells_how_far_the_guest_came(in_runtime: InRuntime) -> None:
    """The shim is alive, the kernel may have spoken, and the stages are timed."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(boxlite.BoxStartTimeoutError, match="not ready within 0.02 s") as caught:
            async with runtime.open_box(ready_timeout=0.02):
                pytest.fail("the box started")
        report = caught.value.report
        evidence = dict(report.evidence)
        assert report.kind is boxlite.CrashKind.TIMEOUT
        assert evidence["shim"] == "alive"
        assert evidence["ready socket"] == "there"
        assert "shim" in evidence["stages done"]
        for path in dict(report.files)["console"].parent.iterdir():
            path.unlink()
        dict(report.files)["console"].parent.rmdir()

    in_runtime(scenario)


def test_a_runtime_that_closes_ends_the_boxes_of_other_tasks(tmp_path: Path, stage: Stage) -> None:
    """Their blocks are cancelled, and they are told why."""
    home = second_home(tmp_path, stage)

    async def main() -> None:
        errors: list[Exception] = []
        inside = trio.Event()

        async def other(runtime: boxlite.Runtime) -> None:
            try:
                async with runtime.open_box(ready_timeout=READY_TIMEOUT):
                    inside.set()
                    await trio.sleep_forever()
            except boxlite.StateError as exc:
                errors.append(exc)

        async with trio.open_nursery() as nursery:
            async with boxlite.open_runtime(home=home) as runtime:
                nursery.start_soon(other, runtime)
                await inside.wait()
        assert "closed" in str(errors[0])
        with pytest.raises(boxlite.StateError, match="open runtime"):
            async with runtime.open_box():
                pytest.fail("the box started")

    trio.run(main)
    assert list((home / "boxes").iterdir()) == []


def test_a_second_runtime_on_one_home_is_refused(stage: Stage) -> None:
    """The error names the home and its holder."""

    async def main() -> None:
        async with boxlite.open_runtime(home=stage.home.root):
            pytest.fail("two runtimes")

    with pytest.raises(boxlite.RuntimeInUseError) as caught:
        trio.run(main)
    assert caught.value.owner == os.getpid()
    assert str(stage.home.root) in str(caught.value)


def test_a_home_with_a_very_long_path_works(tmp_path: Path, stage: Stage) -> None:
    """Sockets are reached by descriptor, so 108 bytes are no limit."""
    deep = tmp_path.joinpath(*["d" * 50] * 4)
    deep.mkdir(parents=True)
    home = second_home(deep, stage)

    async def main() -> bytes:
        async with (
            boxlite.open_runtime(home=home) as runtime,
            runtime.open_box(ready_timeout=READY_TIMEOUT) as box,
        ):
            return (await box.run(["echo", "deep"])).stdout

    assert trio.run(main) == b"deep\n"


def refused(options: dict[str, Any], **box: Any) -> boxlite.BoxliteError:  # noqa: ANN401
    """Return the error that keeps a box from starting."""

    async def main() -> None:
        async with (
            boxlite.open_runtime(**options) as runtime,
            runtime.open_box(**box),
        ):
            pytest.fail("the box started")

    with pytest.raises(boxlite.BoxliteError) as caught:
        trio.run(main)
    return caught.value


def test_what_this_machine_lacks_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """No QEMU, no kernel, a kernel that is none: each with its fix, and no box directory."""
    home = tmp_path / "home"
    not_a_kernel = tmp_path / "vmlinuz"
    not_a_kernel.write_bytes(b"not a kernel")

    assert "/no/qemu" in str(refused({"home": home, "qemu": "/no/qemu"}))
    assert "/no/kernel" in str(refused({"home": home, "kernel": "/no/kernel"}))
    assert str(not_a_kernel) in str(refused({"home": home, "kernel": not_a_kernel}))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BOXLITE_QEMU", raising=False)
    kernel = find_kernel(None, stage.home)
    assert kernel is not None
    error = refused({"home": home, "kernel": kernel.image})
    assert isinstance(error, boxlite.HostError)
    assert "qemu-system-x86" in str(error)

    assert list((home / "boxes").iterdir()) == []
    assert list((home / "tmp").iterdir()) == []


def test_a_home_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file in its place, and a name that is too long."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")

    assert str(in_the_way) in str(refused({"home": in_the_way}))
    assert "at most 255" in str(refused({"home": tmp_path / ("x" * 300)}))


def test_bad_box_options_are_refused_at_once(stage: Stage) -> None:
    """Before a stage has begun."""

    async def scenario() -> None:
        before = Census.take(stage.home.root)
        began: list[boxlite.StageEvent] = []
        for changes in ({"cpus": 0}, {"memory_mib": 1}, {"memory": 5}, {"image": "No Such"}):
            with pytest.raises(boxlite.InvalidOptionError):
                async with stage.runtime.open_box(on_stage=began.append, **changes):
                    pytest.fail("the box started")
        assert began == []
        assert Census.take(stage.home.root) == before

    stage.play(scenario)


def test_a_program_that_is_killed_takes_its_box_along(tmp_path: Path, stage: Stage) -> None:
    """The shim notices that its parent is gone, and nothing of the box goes on."""
    home = second_home(tmp_path, stage)
    program = (
        "import sys, trio, boxlite\n"
        "async def main():\n"
        "    async with boxlite.open_runtime(home=sys.argv[1]) as runtime:\n"
        "        async with runtime.open_box(ready_timeout=float(sys.argv[2])) as box:\n"
        "            print(box.id, flush=True)\n"
        "            await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    from boxlite._layout import HomeLayout
    from boxlite._process import ExitWatch, read_pid_file

    with subprocess.Popen(
        [sys.executable, "-c", program, str(home), str(READY_TIMEOUT)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        layout = HomeLayout(home).box(child.stdout.readline().decode().strip())
        shim, vm = read_pid_file(layout.shim_pid), read_pid_file(layout.vm_pid)
        assert shim is not None
        assert vm is not None
        with ExitWatch(shim.pid) as shim_watch, ExitWatch(vm.pid) as vm_watch:
            assert not vm_watch.has_ended()
            child.kill()

            async def both() -> None:
                with trio.fail_after(30):
                    await shim_watch.wait()
                    await vm_watch.wait()

            trio.run(both)

    async def reopen() -> bytes:
        async with (
            boxlite.open_runtime(home=home) as runtime,
            runtime.open_box(ready_timeout=READY_TIMEOUT) as box,
        ):
            return (await box.run(["echo", "again"])).stdout

    assert trio.run(reopen) == b"again\n"
