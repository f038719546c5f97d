"""A directory or a tar of this machine becomes a root."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
import trio
from image_trees import tree_of_directory, tree_of_squashfs

from boxlite._errors import ImageError
from boxlite._images.flatten import build_root
from boxlite._images.layer_import import layer_from_directory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with everything that a user may make."""
    top = tmp_path / "top"
    (top / "d" / "e").mkdir(parents=True)
    (top / "d" / "file").write_bytes(b"data" * 1000)
    (top / "d" / "file").chmod(0o4755)
    os.link(top / "d" / "file", top / "hard")
    (top / "link").symlink_to("/d/../file/")
    os.mkfifo(top / "fifo", 0o622)
    (top / ("n" * 255)).write_bytes(b"")
    (top / os.fsdecode(b"\xff")).write_bytes(b"odd")
    os.setxattr(top / "d" / "file", "user.x", b"a\0b=\n")
    os.setxattr(top, "user.root", b"r")
    os.utime(top / "d", (7, 7))
    if os.geteuid() == 0:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(top / "hard", 3_000_000, 4)
        os.setxattr(top / "link", "trusted.t", b"1", follow_symlinks=False)
    return top


async def test_a_directory_becomes_a_root(tree: Path, tmp_path: Path) -> None:
    """All of it, by way of a layer that is always the same."""
    descriptor = await layer_from_directory(tree, tmp_path / "layer")
    again = await layer_from_directory(tree, tmp_path / "again")

    await build_root(
        image=str(tree),
        layers=[(descriptor, tmp_path / "layer")],
        diff_ids=[descriptor.digest],
        scratch=tmp_path,
        out=tmp_path / "root",
    )

    assert again == descriptor
    assert tree_of_squashfs(tmp_path / "root", tmp_path) == tree_of_directory(tree)


async def test_a_directory_with_a_whiteout_in_it_is_no_root(tmp_path: Path) -> None:
    """As a layer it would lack that file, and another one."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / ".wh.x").write_bytes(b"")

    with pytest.raises(ImageError, match=r"\.wh\.x: its name would be a whiteout"):
        await layer_from_directory(tmp_path / "top", tmp_path / "layer")
    assert os.listdir(tmp_path) == ["top"]


async def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    """Nothing is left of it."""
    with pytest.raises(ImageError, match="missing.*No such file"):
        await layer_from_directory(tmp_path / "missing", tmp_path / "layer")
    assert os.listdir(tmp_path) == []


async def test_cancelling_an_import_leaves_nothing(tmp_path: Path) -> None:
    """It has to end in the middle of a file, too."""
    (tmp_path / "top").mkdir()
    with (tmp_path / "top" / "big").open("wb") as big:
        big.truncate(20 << 30)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer_from_directory, tmp_path / "top", tmp_path / "layer")
            while not (tmp_path / "layer").exists():
                await trio.lowlevel.checkpoint()
            scope.cancel()

    assert os.listdir(tmp_path) == ["top"]
