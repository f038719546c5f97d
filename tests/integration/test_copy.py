"""Files and trees copied into a real box and out of it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    InBox = Callable[[Callable[[boxlite.Box], Awaitable[Any]]], Any]
    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Return names, modes, times, contents and targets."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        about = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        target = path.readlink() if path.is_symlink() else ""
        when = about.st_mtime_ns // 10**9
        found[str(path.relative_to(root))] = (about.st_mode, when, content, target)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with something of everything."""
    root = tmp_path / "tree"
    (root / ("d" * 150) / "sub").mkdir(parents=True)
    (root / ("d" * 150) / "sub" / "grün").write_text("grün")
    (root / "large").write_bytes(os.urandom(5_000_000))
    (root / "empty").touch()
    (root / "script").write_text("#!/bin/sh\necho it runs\n")
    (root / "script").chmod(0o755)
    (root / "link").symlink_to("large")
    os.link(root / "script", root / "again")
    with (root / "holes").open("wb") as holes:
        holes.seek(50 << 20)
        holes.write(b"end")
    for number in range(300):
        (root / f"{number}.txt").write_text(str(number))
    return root


def test_a_tree_goes_in_and_comes_out_as_it_was(in_box: InBox, tree: Path, tmp_path: Path) -> None:
    """In the box it is what it was here; programs run, and holes take no memory."""

    async def scenario(box: boxlite.Box) -> None:
        told: list[boxlite.CopyProgress] = []
        done = await box.copy_in(tree, "/tmp/deep/er/tree", progress=told.append)
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        size -= (tree / "large").stat().st_size + (tree / "script").stat().st_size  # The links.
        assert done == boxlite.CopyResult(files=306, directories=3, links=1, bytes=size)
        assert told[-1].members == 310
        assert told[-1].bytes == size
        ran = await box.run(["./again"], cwd="/tmp/deep/er/tree")
        assert ran.stdout == b"it runs\n"
        used = await box.run(["du", "-k", "/tmp/deep/er/tree/holes"])
        assert int(used.stdout.split()[0]) < 100
        out = await box.copy_out(box.path("/tmp/deep/er/tree"), f"{tmp_path}/out/")
        assert out == done
        await box.run(["rm", "-r", "/tmp/deep"], check=True)

    in_box(scenario)
    assert facts(tmp_path / "out" / "tree") == facts(tree)
    assert (tmp_path / "out" / "tree" / "again").stat().st_nlink == 2


def test_a_file_is_named_by_its_target(in_box: InBox, tmp_path: Path) -> None:
    """With a slash at its end it is the directory, as for cp."""
    source = tmp_path / "source"
    source.write_bytes(b"one")

    async def scenario(box: boxlite.Box) -> None:
        await box.copy_in(source, "/tmp/copied/as")
        await box.copy_in(str(source), "/tmp/copied/")
        names = [path.name for path in await box.path("/tmp/copied").iterdir()]
        assert names == ["as", "source"]
        await box.copy_out("/tmp/copied/as", tmp_path / "back")
        await box.copy_out("/tmp/copied/as", f"{tmp_path}/into/")
        await box.run(["rm", "-r", "/tmp/copied"], check=True)

    in_box(scenario)
    assert (tmp_path / "back").read_bytes() == b"one"
    assert (tmp_path / "into" / "as").read_bytes() == b"one"


def test_content_that_looks_like_a_connection_is_content(in_box: InBox, tmp_path: Path) -> None:
    """HTTP/2's own beginning, at every place of every buffer on its way."""
    source = tmp_path / "source"
    data = (PREFACE + b"X") * 40_000
    source.write_bytes(data)

    async def scenario(box: boxlite.Box) -> None:
        await box.copy_in(source, "/tmp/preface")
        done = await box.run(["cat"], input=data)
        assert done.stdout == data
        await box.path("/tmp/preface").write_bytes(data)
        await box.copy_out("/tmp/preface", tmp_path / "back")

    in_box(scenario)
    assert (tmp_path / "back").read_bytes() == data


def test_what_is_there_is_replaced_or_not(in_box: InBox, tmp_path: Path) -> None:
    """Directories are merged; a file that is not to be replaced is named."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("new")

    async def scenario(box: boxlite.Box) -> None:
        there = box.path("/tmp/there")
        await there.mkdir()
        await (there / "f").write_text("old")
        await (there / "mine").write_text("mine")
        with pytest.raises(FileExistsError) as caught:
            await box.copy_in(source, there, overwrite=False)
        assert caught.value.filename == "/tmp/there/f"
        assert await (there / "f").read_text() == "old"
        await box.copy_in(source, there)
        assert await (there / "f").read_text() == "new"
        assert await (there / "mine").read_text() == "mine"
        with pytest.raises(FileExistsError):
            await box.copy_out(there, source, overwrite=False)
        assert sorted(path.name for path in source.iterdir()) == ["f"]
        await box.run(["rm", "-r", "/tmp/there"], check=True)

    in_box(scenario)


def test_what_cannot_be_copied_is_an_error_of_the_system(in_box: InBox, tmp_path: Path) -> None:
    """With its path; nothing is made on either side."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(FileNotFoundError):
            await box.copy_in(tmp_path / "none", "/tmp/none")
        assert not await box.path("/tmp/none").exists()
        with pytest.raises(FileNotFoundError) as caught:
            await box.copy_out("/tmp/none", tmp_path / "none")
        assert caught.value.filename == "/tmp/none"
        with pytest.raises(NotADirectoryError):
            await box.copy_in(__file__, "/etc/passwd/x")
        with pytest.raises(IsADirectoryError):
            await box.copy_in(__file__, "/tmp")
        await box.run(["mkfifo", "/tmp/a-fifo"], check=True)
        with pytest.raises(OSError, match="it is a fifo"):
            await box.copy_out("/tmp/a-fifo", tmp_path / "none")
        await box.run(["rm", "/tmp/a-fifo"], check=True)

    in_box(scenario)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "copy"),
    [
        ("source", lambda box: box.copy_in("", "/tmp/x")),
        ("source", lambda box: box.copy_in(b"/tmp/x", "/tmp/x")),
        ("target", lambda box: box.copy_in(__file__, "relative")),
        ("target", lambda box: box.copy_in(__file__, "/a\0b")),
        ("target", lambda box: box.copy_in("/", "/tmp/")),
        ("source", lambda box: box.copy_out("relative", "/tmp/x")),
        ("target", lambda box: box.copy_out("/etc/passwd", "")),
        ("target", lambda box: box.copy_out("/", "/tmp/")),
        ("target", lambda box: box.copy_out("/tmp/..", "/tmp/x/")),
        ("target", lambda box: box.copy_in(__file__, "/" + "x" * 5000)),
        ("target", lambda box: box.copy_in(__file__, "/\ud800")),
        ("max_bytes", lambda box: box.copy_out("/etc/passwd", "/tmp/x", max_bytes=-1)),
        ("overwrite", lambda box: box.copy_in(__file__, "/tmp/x", overwrite=1)),
        ("keep_owners", lambda box: box.copy_out("/etc/passwd", "/tmp/x", keep_owners="no")),
        ("outside_links", lambda box: box.copy_out("/etc", "/tmp/x", outside_links=None)),
    ],
)
def test_a_bad_argument_is_named(
    in_box: InBox, field: str, copy: Callable[[boxlite.Box], Awaitable[object]]
) -> None:
    """Before anything is made."""

    async def scenario(box: boxlite.Box) -> None:
        with pytest.raises(boxlite.InvalidOptionError) as caught:
            await copy(box)
        assert caught.value.field == field

    in_box(scenario)


def test_links_out_of_the_copy_are_refused_unless_wanted(in_box: InBox, tmp_path: Path) -> None:
    """Whoever opens one on the host would read a file of the host."""

    async def scenario(box: boxlite.Box) -> None:
        script = "mkdir /tmp/l && cd /tmp/l && ln -s /etc/passwd out && ln -s f in && echo > f"
        await box.run(["sh", "-c", script], check=True)
        with pytest.raises(boxlite.CopyRefusedError, match="'/etc/passwd'") as caught:
            await box.copy_out("/tmp/l", tmp_path / "refused")
        assert caught.value.member == "out"
        await box.copy_out("/tmp/l", tmp_path / "taken", outside_links=True)
        with pytest.raises(boxlite.CopyRefusedError, match="more than 10"):
            await box.copy_out("/etc", tmp_path / "refused", max_bytes=10)
        await box.run(["rm", "-r", "/tmp/l"], check=True)

    in_box(scenario)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "out").readlink().as_posix() == "/etc/passwd"


def test_a_target_that_is_a_link_is_where_that_leads(in_box: InBox, tmp_path: Path) -> None:
    """It is the user's own, unlike those in a copy."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    async def scenario(box: boxlite.Box) -> None:
        await box.copy_out("/etc/passwd", f"{tmp_path}/link/")
        await box.run(["sh", "-c", "mkdir /tmp/t && echo > /tmp/t/f"], check=True)
        await box.copy_out("/tmp/t", tmp_path / "link")
        await box.run(["rm", "-r", "/tmp/t"], check=True)

    in_box(scenario)
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["f", "passwd"]
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_counted(in_box: InBox, tmp_path: Path) -> None:
    """Never dropped in silence."""

    async def scenario(box: boxlite.Box) -> None:
        await box.run(["sh", "-c", "mkdir /tmp/s && mkfifo /tmp/s/fifo"], check=True)
        done = await box.copy_out("/tmp/s", tmp_path / "out")
        assert (done.skipped, done.skipped_names) == (1, ("/tmp/s/fifo: it is a fifo",))
        os.mkfifo(tmp_path / "out" / "mine")
        done = await box.copy_in(tmp_path / "out", "/tmp/s/in")
        assert done.skipped_names == (f"{tmp_path}/out/mine: it is a fifo",)
        await box.run(["rm", "-r", "/tmp/s"], check=True)

    in_box(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_kept_if_asked_for(in_box: InBox, tmp_path: Path) -> None:
    """By number; otherwise everything is root's there, and one's own here."""
    source = tmp_path / "source"
    source.write_text("")
    os.chown(source, 1234, 5678)

    async def scenario(box: boxlite.Box) -> None:
        for keep, expected in ((False, (0, 0)), (True, (1234, 5678))):
            await box.copy_in(source, "/tmp/owned", keep_owners=keep)
            found = await box.path("/tmp/owned").stat()
            assert (found.uid, found.gid) == expected
            await box.copy_out("/tmp/owned", tmp_path / "back", keep_owners=keep)
            here = (tmp_path / "back").stat()
            assert (here.st_uid, here.st_gid) == expected

    in_box(scenario)


def test_cancelled_copies_leave_nothing_and_disturb_nothing(
    in_runtime: InRuntime, tmp_path: Path
) -> None:
    """At twenty moments of a copy each way; the census of the box follows."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(bytes(8 << 20))
    for number in range(100):
        (source / f"{number}").write_text("x")

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(ready_timeout=120) as box:
            await box.copy_in(source, "/tmp/source")
            for number in range(20):
                with trio.CancelScope() as scope:
                    seen = 0

                    def cancel(_: boxlite.CopyProgress, after: int = number // 2) -> None:
                        nonlocal seen
                        seen += 1
                        if seen > after:
                            scope.cancel()

                    if number % 2:
                        await box.copy_in(source, "/tmp/in", progress=cancel)
                    else:
                        await box.copy_out("/tmp/source", tmp_path / "out", progress=cancel)
                assert sorted(path.name for path in tmp_path.iterdir()) in (
                    ["source"],
                    ["out", "source"],  # It was complete when it was cancelled.
                )
            assert (await box.run(["echo", "well"])).stdout == b"well\n"
            assert box._use.start.session.open_calls == 0

    in_runtime(scenario)


def test_copies_and_commands_go_on_side_by_side(in_box: InBox, tmp_path: Path) -> None:
    """None waits for another's end."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 << 20))

    async def scenario(box: boxlite.Box) -> None:
        async def there_and_back(number: int) -> None:
            await box.copy_in(source, f"/tmp/side/{number}")
            await box.copy_out(f"/tmp/side/{number}", tmp_path / f"{number}")

        async def command(number: int) -> None:
            done = await box.run(["cat"], input=b"%d" % number)
            assert done.stdout == b"%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(there_and_back, number)
                nursery.start_soon(command, number)
        await box.run(["rm", "-r", "/tmp/side"], check=True)

    in_box(scenario)
    for number in range(5):
        assert (tmp_path / f"{number}").read_bytes() == source.read_bytes()


def test_a_full_box_says_so(in_box: InBox, tmp_path: Path) -> None:
    """ENOSPC of the guest is ENOSPC here; the box goes on."""
    source = tmp_path / "source"
    source.write_bytes(bytes(4 << 20))

    async def scenario(box: boxlite.Box) -> None:
        mount = "mkdir /tmp/small && mount -t tmpfs -o size=1m none /tmp/small"
        await box.run(["sh", "-c", mount], check=True)
        with pytest.raises(OSError, match="No space left") as caught:
            await box.copy_in(source, "/tmp/small/f")
        assert caught.value.filename == "/tmp/small/f"
        await box.run(["umount", "/tmp/small"], check=True)

    in_box(scenario)
