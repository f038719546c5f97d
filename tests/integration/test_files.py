"""Files of a box, beside those of this machine through ``trio.Path``: the same scenarios."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import Stage

    Scenario = Callable[[Any], Awaitable[None]]
    Play = Callable[[Scenario], None]
    InBox = Callable[[Callable[[boxlite.Box], Awaitable[Any]]], Any]


@pytest.fixture(params=["host", "box"])
def play(request: pytest.FixtureRequest, stage: Stage, tmp_path: Path) -> Play:
    """Play a scenario in an empty directory: of this machine, or of the shared box."""

    def on_host(scenario: Scenario) -> None:
        trio.run(scenario, trio.Path(tmp_path))

    def in_box(scenario: Scenario) -> None:
        async def prepared(box: boxlite.Box) -> None:
            directory = box.path(f"/tmp/{tmp_path.name}-{stage.home.root.name}")
            await directory.mkdir()
            try:
                await scenario(directory)
            finally:
                await box.run(["rm", "-rf", str(directory)], check=True)

        stage.play_in_box(prepared)

    return on_host if request.param == "host" else in_box


@pytest.mark.parametrize("size", [0, 1, 524_288, 524_289, 3_000_000])
def test_bytes_are_written_and_read(play: Play, size: int) -> None:
    """In pieces where they are many; a second time, what was there is gone."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        data = os.urandom(size)
        path = directory / "file"
        assert await path.write_bytes(data + b"longer") == size + 6
        assert await path.write_bytes(data) == size
        assert await path.read_bytes() == data
        found = await path.stat()
        assert (found.st_size if isinstance(found, os.stat_result) else found.size) == size

    play(scenario)


def test_text_is_encoded(play: Play) -> None:
    """As it is asked for."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        path = directory / "text"
        await path.write_text("grün\n")
        assert await path.read_bytes() == "grün\n".encode()
        assert await path.read_text() == "grün\n"
        with pytest.raises(UnicodeDecodeError):
            await path.read_text("ascii")
        assert await path.read_text("ascii", "replace") == "gr\ufffd\ufffdn\n"

    play(scenario)


def test_what_is_there_is_told(play: Play) -> None:
    """And what is not."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        file, sub = directory / "file", directory / "sub"
        await file.write_bytes(b"x")
        await sub.mkdir()
        found = [(await it.exists(), await it.is_file(), await it.is_dir()) for it in (file, sub)]
        assert found == [(True, True, False), (True, False, True)]
        for missing in (directory / "missing", file / "below"):
            assert not await missing.exists()
            assert not await missing.is_dir()
            assert not await missing.is_file()

    play(scenario)


def test_directories_are_made_listed_and_removed(play: Play) -> None:
    """With those above them, if asked for."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        deep = directory / "a" / "b" / "c"
        with pytest.raises(FileNotFoundError):
            await deep.mkdir()
        await deep.mkdir(parents=True)
        await deep.mkdir(exist_ok=True)
        with pytest.raises(FileExistsError):
            await deep.mkdir()
        for name in ("z", "y", "ü", " "):
            await (deep / name).write_bytes(b"")
        assert sorted(path.name for path in await deep.iterdir()) == [" ", "y", "z", "ü"]
        with pytest.raises(OSError, match="not empty") as caught:
            await deep.rmdir()
        assert caught.value.errno == errno.ENOTEMPTY
        for path in await deep.iterdir():
            await path.unlink()
        await deep.rmdir()
        assert not await deep.exists()
        with pytest.raises(FileExistsError):
            await (directory / "a").mkdir()
        await (directory / "f").write_bytes(b"")
        with pytest.raises(FileExistsError):
            await (directory / "f").mkdir(exist_ok=True)

    play(scenario)


def test_removing_and_renaming(play: Play) -> None:
    """Replacing what is there."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        one, two = directory / "one", directory / "two"
        await one.write_bytes(b"1")
        await two.write_bytes(b"2")
        assert await one.rename(two) == two
        assert await two.read_bytes() == b"1"
        assert not await one.exists()
        with pytest.raises(FileNotFoundError):
            await one.unlink()
        await one.unlink(missing_ok=True)
        await two.rename(str(one))
        await one.chmod(0o640)
        assert stat.S_IMODE(_mode(await one.stat())) == 0o640
        await one.unlink()

    play(scenario)


def _mode(found: Any) -> int:  # noqa: ANN401 - one of two kinds
    mode: int = found.st_mode if isinstance(found, os.stat_result) else found.mode
    return mode


def test_what_cannot_be_done_is_the_kernels_own_error(play: Play) -> None:
    """With the path in it."""

    async def scenario(directory: Any) -> None:  # noqa: ANN401
        await (directory / "file").write_bytes(b"")
        for path, function, kind in (
            (directory / "none", "read_bytes", FileNotFoundError),
            (directory / "file" / "x", "read_bytes", NotADirectoryError),
            (directory, "read_bytes", IsADirectoryError),
            (directory / "none", "stat", FileNotFoundError),
            (directory / "none", "iterdir", FileNotFoundError),
            (directory / "file", "iterdir", NotADirectoryError),
            (directory / "none", "rmdir", FileNotFoundError),
        ):
            with pytest.raises(kind) as caught:
                list(await getattr(path, function)())
            assert caught.value.filename == str(path)
        with pytest.raises((IsADirectoryError, PermissionError)):
            await directory.unlink()

    play(scenario)


def test_patterns(play: Play) -> None:
    """As pathlib has them."""

    def below(*names: str) -> Callable[[str], set[str]]:
        return lambda root: {f"{root}/{name}" for name in names}

    expected = {
        "*.py": below("a.py"),
        "**/*.py": below("a.py", "s/c.py", "s/t/d.py"),
        "s/*": below("s/c.py", "s/t"),
        "?.txt": below("b.txt"),
        "[ab].*": below("a.py", "b.txt"),
        "none*": below(),
        "s/t/d.py": below("s/t/d.py"),
    }

    async def checked(directory: Any) -> None:  # noqa: ANN401
        for name in ("a.py", "b.txt", "s/c.py", "s/t/d.py", "s/t/e.txt"):
            path = directory / name
            await path.parent.mkdir(parents=True, exist_ok=True)
            await path.write_bytes(b"")
        for pattern, found in expected.items():
            mine = {str(path) for path in await directory.glob(pattern)}
            assert mine == found(str(directory)), pattern

    play(checked)


def test_links_are_followed_or_not(in_box: InBox) -> None:
    """``**`` does not enter them, so that a loop of them ends."""

    async def scenario(box: boxlite.Box) -> None:
        root = box.path("/tmp/links")
        await root.mkdir()
        await box.run(["sh", "-c", "ln -s /tmp/links loop; ln -s none dead"], cwd=str(root))
        assert (await (root / "loop").stat()).is_dir
        assert (await (root / "loop").stat(follow_symlinks=False)).is_symlink
        assert not await (root / "dead").exists()
        found = await root.glob("**/*")
        assert [path.name for path in found] == ["dead", "loop"]

    in_box(scenario)


def test_what_would_wait_for_ever_is_not_read(in_box: InBox) -> None:
    """A fifo, a device; and a file without end has a limit."""

    async def scenario(box: boxlite.Box) -> None:
        await box.run(["mkfifo", "/tmp/fifo"], check=True)
        for path in ("/tmp/fifo", "/dev/zero"):
            with pytest.raises(OSError, match="Invalid argument"):
                await box.path(path).read_bytes()
        with pytest.raises(OSError, match="No such device|Invalid argument"):
            await box.path("/tmp/fifo").write_bytes(b"x")
        await box.run(["truncate", "-s", "10000000000", "/tmp/huge"], check=True)
        with pytest.raises(OSError, match="too large"):
            await box.path("/tmp/huge").read_bytes(max_bytes=1 << 20)
        size = 0
        async for piece in box.path("/tmp/huge").pieces():
            size += len(piece)
            if size > 1 << 20:
                break
        assert b"Linux" in await box.path("/proc/version").read_bytes()

    in_box(scenario)


def test_many_names(in_box: InBox) -> None:
    """More than one message of them."""

    async def scenario(box: boxlite.Box) -> None:
        await box.path("/tmp/many").mkdir()
        await box.run(["sh", "-c", "for n in $(seq 2500); do : > $n; done"], cwd="/tmp/many")
        names = [path.name for path in await box.path("/tmp/many").iterdir()]
        assert names == sorted(str(number) for number in range(1, 2501))

    in_box(scenario)


def test_a_path_is_absolute_and_not_of_the_host(in_box: InBox) -> None:
    """Nothing on the host that opens files takes it."""

    async def scenario(box: boxlite.Box) -> None:
        for wrong in ("relative", "", "/a\0b", 7):
            with pytest.raises(boxlite.InvalidOptionError, match="path"):
                box.path(wrong)  # type: ignore[arg-type]
        path = box.path("/etc/passwd")
        with pytest.raises(TypeError):
            os.fspath(path)  # type: ignore[call-overload]
        assert path == box.path("/etc") / "passwd"
        assert (path.name, str(path.parent)) == ("passwd", "/etc")
        assert "BoxPath '/etc/passwd'" in repr(path)
        with pytest.raises(boxlite.InvalidOptionError, match="pattern"):
            await path.glob("../*")

    in_box(scenario)
