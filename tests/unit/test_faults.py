"""What the system refuses at each step of a start: one clear error, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from census import children, open_files
from fake_engine import FakeShim, fake_engine
from scarcity import few_descriptors
from shim_under_test import after, python, running_shim

import boxlite
from boxlite._layout import BoxLayout
from boxlite._process import ExitWatch, read_pid_file
from boxlite._startup import stages
from boxlite._startup.directory import make_directory
from boxlite._startup.groundwork import Groundwork
from boxlite._vm import shim as vm_shim
from boxlite._vm.shim_command import GuestIdentity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from boxlite._vm.shim import Chardevs

    Refuse = Callable[[pytest.MonkeyPatch], None]


@contextmanager
def nothing_left(home: Path) -> Iterator[None]:
    """Prove that the block leaves no descriptor, child or directory of a box."""
    files, processes = open_files(), children()
    yield
    assert open_files() == files
    assert children() == processes
    assert list((home / "boxes").iterdir()) == []
    assert list((home / "tmp").iterdir()) == []


def raising(number: int) -> Callable[..., Any]:
    """Return a function that the system refuses."""

    def refused(*_args: object, **_kwargs: object) -> Any:  # noqa: ANN401
        raise OSError(number, os.strerror(number))

    return refused


def refuse_box_directory(patch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def selective(path: Path, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if path.parent.name == "boxes":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        mkdir(path, *args, **kwargs)

    patch.setattr(Path, "mkdir", selective)


def refuse_socket_directory(patch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def selective(path: Path, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if path.name == "sockets":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
        mkdir(path, *args, **kwargs)

    patch.setattr(Path, "mkdir", selective)


def refuse_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stages, "write_record", raising(errno.ENOSPC))


def refuse_bind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(socket.socket, "bind", raising(errno.EADDRINUSE))


def refuse_listen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(socket.socket, "listen", raising(errno.ENOBUFS))


def refuse_accept(patch: pytest.MonkeyPatch) -> None:
    async def accept(_socket: object) -> object:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with trio.socket.socket() as any_socket:
        patch.setattr(type(any_socket), "accept", accept)


def refuse_connect(patch: pytest.MonkeyPatch) -> None:
    async def connect(_path: Path) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    patch.setattr(stages, "connect_unix", connect)


REFUSALS: list[tuple[Refuse, str]] = [
    (refuse_box_directory, "cannot be made: No space left on device"),
    (refuse_socket_directory, "cannot be made: Disk quota exceeded"),
    (refuse_record, "cannot be made: No space left on device"),
    (refuse_bind, "cannot listen on the socket .*ready.sock: Address already in use"),
    (refuse_listen, "cannot listen on the socket .*ready.sock: No buffer space available"),
    (refuse_accept, "the ready socket .* cannot accept a connection: Too many open files"),
]


@pytest.mark.parametrize(("refuse", "words"), REFUSALS, ids=lambda it: getattr(it, "__name__", ""))
async def test_a_refused_step_is_one_clear_error(
    refuse: Refuse, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A HostError that names the thing; nothing of the box is left."""
    async with (
        fake_engine(monkeypatch) as engine,
        boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime,
    ):

        async def never(_shim: FakeShim) -> None:
            await trio.sleep_forever()

        engine.boot = never
        await stages.load_session_code(None)  # type: ignore[arg-type]
        with nothing_left(runtime.home.root), monkeypatch.context() as patch:
            refuse(patch)
            with pytest.raises(boxlite.HostError, match=words):
                async with runtime.open_box(detach=True):
                    pytest.fail("the box started")
        assert engine.shims == {}


async def test_a_guest_that_cannot_be_reached_is_a_failed_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that it was ready, and its port refuses: the report says which call failed."""
    monkeypatch.setattr(stages, "_DEATH_SECONDS", 0.01)
    async with (
        fake_engine(monkeypatch) as engine,
        boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stages, "connect_unix", raising(errno.ECONNREFUSED))
            with pytest.raises(boxlite.BoxStartError, match="Connection refused") as caught:
                async with runtime.open_box():
                    pytest.fail("the box started")
        assert caught.value.report.kind is boxlite.CrashKind.GUEST_FAULT
        assert engine.shims == {}


async def test_a_shim_that_dies_between_ready_and_the_connection_is_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a refused connection."""
    async with (
        fake_engine(monkeypatch) as engine,
        boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime,
    ):

        async def dies(_path: Path) -> trio.SocketStream:
            (shim,) = engine.shims.values()
            shim.end(None, exit_code=-9)
            await trio.lowlevel.checkpoint()
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

        with monkeypatch.context() as patch:
            patch.setattr(stages, "connect_unix", dies)
            with pytest.raises(boxlite.BoxStartError, match="its shim was ended by SIGKILL"):
                async with runtime.open_box():
                    pytest.fail("the box started")


@pytest.fixture
async def sleeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[boxlite.Runtime]:
    """A runtime with real shims over a program that is no VM and does nothing."""

    class Sleeper:
        def __init__(self, **_fields: object) -> None:
            pass

        def argv(self, *, chardevs: Chardevs, **_: object) -> list[str]:
            return ["sleep", "1000"]

    async def nothing(*_args: object, **_kwargs: object) -> Any:  # noqa: ANN401
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Groundwork, "host", nothing)
    monkeypatch.setattr(Groundwork, "kit", nothing)
    monkeypatch.setattr(stages, "Machine", Sleeper)
    # It opens descriptors for good, which are nobody's leak.
    await stages.load_session_code(None)  # type: ignore[arg-type]
    async with boxlite.open_runtime(home=tmp_path / "home", templates=False) as runtime:
        yield runtime


@pytest.mark.parametrize("free", range(26))
async def test_running_out_of_descriptors_anywhere_is_one_error(
    free: int, sleeping: boxlite.Runtime
) -> None:
    """With so many left, and a real shim: an error of the host, or a guest that is late."""
    with nothing_left(sleeping.home.root):
        with pytest.raises(boxlite.BoxliteError) as caught, few_descriptors(free):
            async with sleeping.open_box(ready_timeout=0.05):
                pytest.fail("the box started")
        if isinstance(caught.value, boxlite.BoxStartTimeoutError):
            # That it was late is told even where no file could be opened.
            assert "not ready within 0.05 s" in str(caught.value)
            shutil.rmtree(dict(caught.value.report.files)["console"].parent)
        else:
            assert isinstance(caught.value, boxlite.HostError)
            assert "Too many open files" in str(caught.value)


async def test_no_process_to_be_had_is_one_error(
    sleeping: boxlite.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fork(2) says EAGAIN when a limit is reached."""
    monkeypatch.setattr(subprocess, "Popen", raising(errno.EAGAIN))
    with nothing_left(sleeping.home.root):
        with pytest.raises(boxlite.HostError, match="temporarily unavailable.*ulimit -u"):
            async with sleeping.open_box():
                pytest.fail("the box started")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_a_shim_that_cannot_be_watched_is_not_left_running(
    number: int, sleeping: boxlite.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started, and the descriptor for its end is not to be had."""
    monkeypatch.setattr(os, "pidfd_open", raising(number))
    with nothing_left(sleeping.home.root):
        with pytest.raises(boxlite.HostError, match="cannot be watched"):
            async with sleeping.open_box():
                pytest.fail("the box started")


async def test_stopping_without_descriptors_leaves_nothing_all_the_same(
    tmp_path: Path, sleeping: boxlite.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM cannot be watched to its end; its shim sees to that when the lifeline is closed."""
    layout = BoxLayout(tmp_path / "box")
    make_directory(layout)
    files, processes = open_files(), children()
    shim = vm_shim.spawn_shim(
        layout,
        nonce="0" * 32,
        identity=GuestIdentity(hostname="box", machine_id="0" * 32),
        make_argv=lambda _chardevs: ["sleep", "1000"],
    )
    with trio.fail_after(30):
        while (vm := read_pid_file(layout.vm_pid)) is None:
            await trio.lowlevel.checkpoint()
        with ExitWatch.of(vm) as vm_watch, ExitWatch(shim.pid) as shim_watch:
            with monkeypatch.context() as patch:
                patch.setattr("boxlite._vm.shim.TERM_SECONDS", 0.0)
                patch.setattr(os, "pidfd_open", raising(errno.EMFILE))
                with pytest.raises(boxlite.HostError, match="Too many open files"):
                    await shim.stop()
            await vm_watch.wait()
            await shim_watch.wait()
    # It is reaped with the next one.
    assert vm_shim.running_shim(layout) is None
    assert children() == processes
    assert open_files() == files


async def test_a_clock_that_jumps_disturbs_no_shim(tmp_path: Path) -> None:
    """The wall clock of a host is set while boxes run; only stamps in files may show it."""
    jumping = (
        "import time\n"
        "jumps = iter([1e9, 4e9, 0.0, 1e9] * 1000)\n"
        "time.time = lambda: next(jumps)\n"
        "time.time_ns = lambda: int(next(jumps) * 1e9)\n"
    )
    quick = ["--guest-seconds", "0"]
    async with running_shim(tmp_path / "box", wrap=after(jumping), options=quick) as shim:
        await shim.become_ready()
        shim.process.terminate()
        record = await shim.ended()

    assert record["type"] == "exit"
    assert record["requested"] is True


@pytest.mark.parametrize("name", ["shim.pid", "vm.pid"])
async def test_a_shim_killed_between_two_writes_takes_its_vm_along(
    tmp_path: Path, name: str
) -> None:
    """At the very moment at which one of its files appears."""
    vm = python("import time\nwhile True: time.sleep(1000)")
    async with running_shim(tmp_path / "box", vm) as shim:
        while not (tmp_path / "box" / name).exists():
            await trio.lowlevel.checkpoint()
        shim.process.kill()
        await shim.process.wait()
        await shim.vm_gone()

    assert not (tmp_path / "box" / "exit").exists()


def test_a_census_sees_what_is_left() -> None:
    """The proof itself would fail if something were left."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "boxes").mkdir()
        (home / "tmp").mkdir()
        with pytest.raises(AssertionError), nothing_left(home):
            leak = os.open(os.devnull, os.O_RDONLY)
        os.close(leak)
        with pytest.raises(AssertionError), nothing_left(home):
            child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        with pytest.raises(AssertionError), nothing_left(home):
            (home / "boxes" / "left").mkdir()
