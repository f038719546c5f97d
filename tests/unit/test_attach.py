"""Attaching to a box that was left running, over an engine of tasks: what its guest may do."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from fake_engine import FakeEngine, fake_engine
from fake_guest import NONCE

import boxlite
from boxlite import BoxState
from boxlite._images.config import ImageConfig
from boxlite._images.platform import Platform
from boxlite._layout import BoxLayout
from boxlite._options import BoxOptions
from boxlite._startup import directory as directory_module
from boxlite._startup.directory import make_directory, remove_directory
from boxlite._startup.record import Record, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOTS = Path("/home/images/roots")


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeEngine]:
    """An engine."""
    async with fake_engine(monkeypatch) as engine:
        yield engine


@asynccontextmanager
async def left_box(home: Path) -> AsyncIterator[tuple[boxlite.Runtime, str]]:
    """Give a runtime, and the id of a box that was left running."""
    async with boxlite.open_runtime(home=home, templates=False) as runtime:
        async with runtime.open_box(detach=True) as box:
            pass
        yield runtime, box.id


async def attach_and_stop(runtime: boxlite.Runtime, box_id: str) -> None:
    """Find it, use it, and stop it."""
    async with runtime.attach(box_id) as box:
        assert (await box.run(["true"])).exit_code == 0
        await box.stop()
    assert box.state is BoxState.STOPPED
    assert not runtime.home.box(box_id).root.exists()


async def test_the_end_of_somebody_elses_answer_is_passed_over(
    engine: FakeEngine, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A program that was killed leaves bytes on their way: the next connection is clean."""
    garbled: list[int] = []

    async def garble_twice(stream: trio.SocketStream) -> None:
        garbled.append(1)
        if len(garbled) == 2:
            engine.answer = None
        async with stream:
            await stream.send_all(b"\0the rest of an answer to somebody else" * 10)

    async with left_box(tmp_path / "home") as (runtime, box_id):
        engine.answer = garble_twice
        await attach_and_stop(runtime, box_id)

    assert len(garbled) == 2


async def test_a_box_that_was_left_running_is_not_stopped_in_silence(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Its block has ended: whoever wants to stop it has to attach to it."""
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        async with runtime.open_box(detach=True) as box:
            pass
        with pytest.raises(boxlite.StateError, match="closed"):
            await box.stop()
        await attach_and_stop(runtime, box.id)
        async with runtime.open_box() as box:
            pass
        await box.stop()


async def test_a_guest_that_only_garbles_is_given_up_and_left_running(
    engine: FakeEngine, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What is wrong on this side is no reason to end somebody's box."""

    async def garble(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"nothing but noise" * 10)

    async with left_box(tmp_path / "home") as (runtime, box_id):
        engine.answer = garble
        with pytest.raises(boxlite.BoxStartError, match="cannot be attached to") as caught:
            async with runtime.attach(box_id):
                pytest.fail("attached to noise")
        assert caught.value.report.kind is boxlite.CrashKind.GUEST_FAULT
        engine.answer = None
        await attach_and_stop(runtime, box_id)


async def test_a_guest_that_is_silent_is_given_up_and_left_running(
    engine: FakeEngine, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """After the deadline of one question."""

    async def be_silent(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                pass

    async with left_box(tmp_path / "home") as (runtime, box_id):
        engine.answer = be_silent
        with pytest.raises(boxlite.BoxStartError, match="did not answer within 5 s"):
            async with runtime.attach(box_id):
                pytest.fail("attached to silence")
        engine.answer = None
        await attach_and_stop(runtime, box_id)


async def test_a_box_that_dies_under_the_attachment_is_told_as_dead(
    engine: FakeEngine, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Not as one that does not answer."""

    async def die(stream: trio.SocketStream) -> None:
        (shim,) = engine.shims.values()
        shim.end({"type": "signal", "exit_code": 137, "signal": "SIGKILL"})
        await trio.aclose_forcefully(stream)

    async with left_box(tmp_path / "home") as (runtime, box_id):
        engine.answer = die
        with pytest.raises(boxlite.BoxCrashedError, match="ended by SIGKILL") as caught:
            async with runtime.attach(box_id):
                pytest.fail("attached to the dead")
        assert dict(caught.value.report.evidence)["command line"] == "qemu-system-fake"


async def test_a_living_box_that_is_not_detached_is_refused(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Another program's shim is about to notice that its program is gone."""
    async with left_box(tmp_path / "home") as (runtime, box_id):
        runtime.home.box(box_id).record.unlink()
        with pytest.raises(boxlite.StateError, match="not detached"):
            async with runtime.attach(box_id):
                pytest.fail("attached")
        write_record(runtime.home.box(box_id), Record(options=BoxOptions(detach=True), nonce=NONCE))
        await attach_and_stop(runtime, box_id)
        with pytest.raises(boxlite.InvalidOptionError):
            async with runtime.attach(box_id):
                pytest.fail("attached to nothing")
    with pytest.raises(boxlite.StateError, match="closed"):
        async with runtime.attach(box_id):
            pytest.fail("a closed runtime")


async def test_an_end_in_the_tick_in_which_the_block_ends_is_no_crash(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """There was nobody left whom it could have disturbed."""
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        async with runtime.open_box() as box:
            await box.run(["true"])
            engine.shims[box.id].end({"type": "exit", "exit_code": 0})
        assert box.state is BoxState.STOPPED
        assert list(runtime.home.boxes.iterdir()) == []


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"version": 2, "options": {}}',
        b'{"version": 1, "options": {"colour": "red"}}',
        b'{"version": 1, "options": {"cpus": -1}}',
        b'{"version": 1}',
    ],
)
def test_a_record_that_makes_no_sense_is_an_error_that_names_it(
    tmp_path: Path, record: bytes
) -> None:
    """It is not guessed what the box is."""
    layout = BoxLayout(tmp_path)
    layout.record.write_bytes(record)

    with pytest.raises(boxlite.HostError, match=r"box.json does not say what the box is"):
        read_record(layout, ROOTS)


def test_a_record_is_for_its_owner_and_is_read_back(tmp_path: Path) -> None:
    """It holds the values of variables."""
    layout = BoxLayout(tmp_path)
    options = BoxOptions(
        detach=True,
        env={"A": "1", "B": "2"},
        memory_mib=512,
        volumes=[boxlite.Volume("/srv", "/data", read_only=False)],
        rlimits={"nofile": (1, 2), "core": 0},
    )
    config = ImageConfig(env=("A=b",), labels={"x": "y"}, platform=Platform())
    image = boxlite.Image(
        name="alpine:latest",
        digest=f"sha256:{'0' * 64}",
        config=config,
        layers_bytes=1,
        root=ROOTS / "root",
        root_bytes=2,
        added_at=3.0,
    )
    record = Record(options=options, nonce=NONCE, image=image)
    assert read_record(layout, ROOTS) is None

    write_record(layout, record)

    assert read_record(layout, ROOTS) == record
    assert layout.record.stat().st_mode & 0o777 == 0o600
    assert json.loads(layout.record.read_text())["version"] == 3
    layout.record.unlink()
    layout.record.symlink_to("/etc/passwd")
    with pytest.raises(boxlite.HostError, match="not a regular file"):
        read_record(layout, ROOTS)


def test_a_directory_goes_with_what_nobody_expected_in_it(tmp_path: Path) -> None:
    """What is known goes by name, the rest by looking."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    (layout.root / "shim.pid.new").write_text("")
    (layout.root / "unknown").mkdir()
    (layout.root / "unknown" / "file").write_text("")

    remove_directory(layout, keep_evidence=False)
    remove_directory(layout, keep_evidence=False)

    assert not layout.root.exists()


def test_of_a_failed_box_what_explains_it_stays(tmp_path: Path) -> None:
    """And nothing else."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    for path in (*layout.evidence, layout.shim_pid, layout.vm_pid, layout.record):
        path.write_text("")

    remove_directory(layout, keep_evidence=True)

    assert {path.name for path in layout.root.iterdir()} == {
        *("exit", "shim.stderr", "console.log", "console.log.old"),
    }


def test_a_directory_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has to look at it."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    (layout.root / "stuck").write_text("")

    def rmtree(path: Path) -> None:
        raise OSError(1, os.strerror(1), str(path))

    monkeypatch.setattr(directory_module, "remove_tree", rmtree)
    with pytest.raises(boxlite.HostError, match="box, cannot be removed.*not permitted"):
        remove_directory(layout, keep_evidence=False)


def test_the_directory_of_a_box_is_used_again(tmp_path: Path) -> None:
    """Its sockets may be there still: its program was killed, or its VM."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    layout.ready_socket.touch()
    layout.disk.write_text("disk")

    make_directory(layout, again=True)

    assert list(layout.sockets.iterdir()) == []
    assert layout.disk.read_text() == "disk"
    layout.sockets.rmdir()
    layout.sockets.write_text("in the way")
    with pytest.raises(FileExistsError):
        make_directory(layout, again=True)
    assert layout.disk.read_text() == "disk"


@pytest.mark.parametrize("keep_evidence", [True, False])
def test_a_disk_that_is_kept_keeps_its_record(tmp_path: Path, *, keep_evidence: bool) -> None:
    """The rest goes; what explains a failure only if there was none."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    for path in (layout.disk, layout.record, layout.console_log, layout.shim_pid):
        path.write_text("")
    (layout.volumes / "0").mkdir(parents=True)

    remove_directory(layout, keep_evidence=keep_evidence, keep_disk=True)

    kept = {"disk", "box.json"} | ({"console.log"} if keep_evidence else set())
    assert {path.name for path in layout.root.iterdir()} == kept


def test_a_directory_that_exists_belongs_to_somebody_else(tmp_path: Path) -> None:
    """It is not touched."""
    layout = BoxLayout(tmp_path / "box")
    layout.root.mkdir()
    (layout.root / "precious").write_text("")

    with pytest.raises(FileExistsError):
        make_directory(layout)

    assert [path.name for path in layout.root.iterdir()] == ["precious"]
