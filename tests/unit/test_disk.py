"""A box's own disk: made, made larger, and copied with its holes."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from boxlite._errors import HostError
from boxlite._sparse import copy_sparse
from boxlite._vm import disk as module
from boxlite._vm.disk import find_mke2fs, grow_disk, make_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


def superblock(path: Path) -> dict[str, str]:
    """Return what e2fsprogs says about a file system."""
    tools = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        ["dumpe2fs", "-h", path],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": tools},
    )
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


@pytest.mark.parametrize("gib", [1, 100])
async def test_a_disk_is_an_empty_ext4_that_takes_what_it_holds(tmp_path: Path, gib: int) -> None:
    """Its journal is what makes it whole again; its size costs next to nothing."""
    path = tmp_path / "disk"
    await make_disk(path, gib=gib)
    found, status = superblock(path), path.stat()

    assert status.st_size == gib << 30
    assert status.st_blocks * 512 < 8 * MIB
    assert status.st_mode & 0o777 == 0o600
    assert int(found["Block count"]) * int(found["Block size"]) == gib << 30
    assert found["Reserved block count"] == "0"
    assert {"has_journal", "extent", "64bit"} <= set(found["Filesystem features"].split())
    assert found["Filesystem state"] == "clean"
    # What the guest grows it by is in the blocks that are reserved for that.
    assert "resize_inode" in found["Filesystem features"]
    journal = re.sub(r"\D", "", found.get("Total journal size", found.get("Journal size", "")))
    assert int(journal) == module._JOURNAL_MIB


async def test_a_disk_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """It may be somebody's only copy."""
    path = tmp_path / "disk"
    path.write_text("precious")

    with pytest.raises(HostError, match="1 GiB cannot be made: File exists"):
        await make_disk(path, gib=1)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("call", [make_disk, grow_disk])
async def test_a_size_that_no_file_can_have_names_the_option(
    tmp_path: Path, call: Callable[..., object]
) -> None:
    """Here 8 EiB less one GiB."""
    path = tmp_path / "disk"
    if call is grow_disk:
        path.touch()

    with pytest.raises(HostError, match=r"GiB.*: File too large") as caught:
        made = call(path, gib=(1 << 33) - 1)
        if made is not None:
            await made  # type: ignore[misc]

    assert "disk_size_gib" in caught.value.fix
    assert path.stat().st_size == 0


async def test_without_mke2fs_there_is_one_error_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for where root has it, whatever the PATH of the user is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mke2fs()
    monkeypatch.setattr(module, "_SEARCH_PATH", "")

    with pytest.raises(HostError, match="there is no mke2fs") as caught:
        await make_disk(tmp_path / "disk", gib=1)

    assert caught.value.fix == "Install it: apt-get install e2fsprogs"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no room >&2; exit 3", "no room"), ("exit 4", "mke2fs exited with 4")],
)
async def test_what_mke2fs_refuses_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    """Or by its exit code, if it has none."""
    program = tmp_path / "mke2fs"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(HostError, match=rf"{tmp_path}/disk cannot be made: .*{said}"):
        await make_disk(tmp_path / "disk", gib=1)


def test_a_disk_grows_and_never_shrinks(tmp_path: Path) -> None:
    """What is on it stays where it is."""
    path = tmp_path / "disk"
    path.write_bytes(b"data")
    for gib, size in [(1, 1), (3, 3), (2, 3)]:
        grow_disk(path, gib=gib)
        assert path.stat().st_size == size << 30

    assert path.stat().st_blocks * 512 < MIB
    with path.open("rb") as file:
        assert file.read(6) == b"data\0\0"
    with pytest.raises(HostError, match="cannot be made 1 GiB large: No such file"):
        grow_disk(tmp_path / "missing", gib=1)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file and an empty one, open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fds = [os.open(tmp_path / name, flags) for name in ("source", "target")]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def extents(fd: int) -> list[tuple[int, int]]:
    """Return where a file has data."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (0, []),
        (5, [0]),
        (4 * MIB, []),
        (4 * MIB, [0]),
        (4 * MIB, [2 * MIB]),
        (4 * MIB, [4 * MIB - 5]),
        (4 * MIB + 1, [0, MIB, 3 * MIB]),
        (64 << 30, [(64 << 30) - 9]),
    ],
    ids=["empty", "small", "hole", "start", "middle", "end", "several", "large"],
)
def test_a_copy_has_the_data_and_the_holes(
    files: tuple[int, int], size: int, written: list[int]
) -> None:
    """It is as large, takes as little, and reads the same."""
    source, target = files
    os.truncate(source, size)
    for at in written:
        os.pwrite(source, b"piece", at)

    copy_sparse(source, target)

    assert os.fstat(target).st_size == size
    assert extents(target) == extents(source)
    for begin, end in extents(source):
        assert os.pread(target, end - begin, begin) == os.pread(source, end - begin, begin)


@pytest.mark.parametrize(
    "left",
    [
        0,
        pytest.param(
            MIB,
        ),
    ],
)
def test_a_source_that_becomes_shorter_is_an_error(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Half a disk must not pass for a whole one."""
    source, target = files
    os.truncate(source, 4 * MIB)
    os.pwrite(source, bytes(4096), 0)
    os.pwrite(source, bytes(4096), 3 * MIB)
    copy = os.copy_file_range

    def shortening(source: int, target: int, *rest: int) -> int:
        if not left:
            os.truncate(source, 0)
            return copy(source, target, *rest)
        copied = copy(source, target, *rest)
        os.truncate(source, left)
        return copied

    monkeypatch.setattr(os, "copy_file_range", shortening)
    with pytest.raises(OSError, match="became shorter") as caught:
        copy_sparse(source, target)
    assert caught.value.errno == errno.EIO
