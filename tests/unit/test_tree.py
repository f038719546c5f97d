"""A tree packed and unpacked is the same tree; what is in the way, or vanishes, is told."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from tars import ROOT, directory, file, link, packed, tar

from boxlite._publish import Staging, remove
from boxlite._tree.pack import Span, pack
from boxlite._tree.unpack import Rules, Unpacker

if TYPE_CHECKING:
    from pathlib import Path


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def unpack(data: bytes, target: Path, rules: Rules | None = None) -> None:
    """Unpack a tar."""
    fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    unpacker = Unpacker(fd, os.fsencode(target.name), rules or Rules(links_out=True, set_ids=True))
    try:
        unpacker.feed(data)
        unpacker.finish()
    finally:
        unpacker.close()
        os.close(fd)


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what is to survive a copy."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        about = path.lstat()
        kind = stat.S_IFMT(about.st_mode)
        found[str(path.relative_to(root))] = (
            about.st_mode,
            about.st_mtime_ns // 10**9,
            path.read_bytes() if kind == stat.S_IFREG else b"",
            path.readlink() if kind == stat.S_IFLNK else "",
            about.st_nlink if kind == stat.S_IFREG else 0,
        )
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with something of everything."""
    root = tmp_path / "tree"
    (root / "sub" / ("d" * 200) / ("e" * 200)).mkdir(parents=True)
    (root / "sub" / ("d" * 200) / ("e" * 200) / ("f" * 200)).write_bytes(b"deep")
    (root / "empty").mkdir()
    (root / "file").write_bytes(os.urandom(300_000))
    (root / "no bytes").touch()
    (root / "grün\n\x1b").write_text("odd name")
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o4755)
    os.link(root / "file", root / "sub" / "again")
    (root / "link").symlink_to("sub/again")
    (root / "dangling").symlink_to("x" * 300)
    with (root / "holes").open("wb") as holes:
        for place in (0, 1 << 20, 5 << 20):
            holes.seek(place)
            holes.write(b"data")
        holes.truncate(1 << 30)
    os.utime(root / "file", (1, 1_000_000_000))
    (root / "locked").mkdir()
    (root / "locked" / "f").touch()
    (root / "locked").chmod(0o500)
    os.utime(root / "sub", (1, 2_000_000_000))
    return root


def test_a_tree_arrives_as_it_was(tree: Path, tmp_path: Path) -> None:
    """Names, modes, times, links of both kinds, content; holes stay holes."""
    data = packed(tree)
    unpack(data, tmp_path / "copy")
    copied = tmp_path / "copy" / "holes"

    assert facts(tmp_path / "copy") == facts(tree)
    assert len(data) < 2_000_000
    assert copied.stat().st_blocks < 1000


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_another_tar_reads_it(tree: Path, tmp_path: Path) -> None:
    """GNU's, with holes and long names."""
    (tmp_path / "made.tar").write_bytes(packed(tree))
    subprocess.run(["tar", "xpf", "made.tar"], cwd=tmp_path, check=True)

    assert facts(tmp_path / "copy") == facts(tree)


def test_a_single_file_and_a_link_to_it(tree: Path, tmp_path: Path) -> None:
    """A link that is named itself is followed."""
    unpack(packed(tree / "link"), tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == (tree / "file").read_bytes()
    assert not (tmp_path / "copy").is_symlink()


def test_what_is_no_file_is_left_out_and_told(tree: Path, tmp_path: Path) -> None:
    """Unless it is what was asked for."""
    os.mkfifo(tree / "fifo")
    told: list[tuple[bytes, str]] = []
    unpack(packed(tree, lambda path, why: told.append((path, why))), tmp_path / "copy")

    assert told == [(os.fsencode(tree / "fifo"), "it is a fifo")]
    assert not (tmp_path / "copy" / "fifo").exists()
    with pytest.raises(OSError, match="it is a fifo"):
        packed(tree / "fifo")
    with pytest.raises(FileNotFoundError):
        packed(tree / "nothing")


def test_what_vanishes_meanwhile_is_told(tree: Path) -> None:
    """A file between the listing and its turn."""
    told: list[str] = []
    parts = pack(os.fsencode(tree), lambda path, why: told.append(why))
    assert next(parts) is not None
    (tree / "script").unlink()
    shutil.rmtree(tree / "empty")
    list(parts)

    assert told == ["it vanished", "it vanished"]


def test_closing_early_closes_the_file(tree: Path) -> None:
    """A copy can be cancelled anywhere."""
    before = len(os.listdir("/proc/self/fd"))
    parts = pack(os.fsencode(tree / "file"), lambda path, why: None)
    while not isinstance(next(parts), Span):
        pass
    during = len(os.listdir("/proc/self/fd"))
    parts.close()

    assert (during, len(os.listdir("/proc/self/fd"))) == (before + 1, before)


@as_root
def test_owners_are_kept_if_asked_for(tree: Path, tmp_path: Path) -> None:
    """By number; otherwise everything belongs to whoever unpacks."""
    os.chown(tree / "file", 1234, 5678)
    os.chown(tree / "link", 3_000_000_000, 7, follow_symlinks=False)
    os.chown(tree / "empty", 11, 12)
    data = packed(tree)
    for owners, expected in (
        (True, [(1234, 5678), (3_000_000_000, 7), (11, 12)]),
        (False, [(0, 0)] * 3),
    ):
        target = tmp_path / f"copy-{owners}"
        unpack(data, target, Rules(owners=owners, links_out=True))
        found = [(target / name).lstat() for name in ("file", "link", "empty")]
        assert [(each.st_uid, each.st_gid) for each in found] == expected


def test_into_what_is_there(tmp_path: Path) -> None:
    """As a guest unpacks: directories are used as they are, files replaced or not."""
    target = tmp_path / "copy"
    (target / "d").mkdir(parents=True)
    (target / "d").chmod(0o711)
    (target / "d" / "f").write_text("old")
    (target / "d" / "mine").write_text("mine")
    data = tar(ROOT, directory(b"copy/d", 0o777), file(b"copy/d/f", b"new"), link(b"copy/l", b"d"))
    with pytest.raises(FileExistsError) as caught:
        unpack(data, target, Rules(into_what_is_there=True))
    assert os.fsencode(caught.value.filename) == b"copy/d/f"
    for _ in range(2):
        unpack(data, target, Rules(into_what_is_there=True, replace=True))

    assert (target / "d" / "f").read_text() == "new"
    assert (target / "d" / "mine").read_text() == "mine"
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o711
    with pytest.raises(IsADirectoryError):
        unpack(tar(file(b"copy")), target, Rules(into_what_is_there=True, replace=True))


def staged(target: Path, data: bytes) -> Staging:
    """Return a copy that is complete and not yet in place."""
    staging = Staging(target)
    unpack(data, target.parent / os.fsdecode(staging.name))
    return staging


def test_a_copy_is_put_in_place_whole(tmp_path: Path) -> None:
    """Directories above it are made; nothing else is left."""
    staging = staged(tmp_path / "a" / "b" / "target", tar(ROOT, file(b"copy/f")))
    staging.publish(replace=False)
    staging.close()

    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "a",
        "a/b",
        "a/b/target",
        "a/b/target/f",
    ]


def test_a_copy_that_is_not_put_in_place_is_gone(tmp_path: Path) -> None:
    """With the directories that were made for it."""
    staging = staged(tmp_path / "a" / "b" / "target", tar(ROOT, file(b"copy/f")))
    staging.close()

    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_merged_into_a_directory(tmp_path: Path) -> None:
    """What is there and not in the copy stays; locked directories arrive locked."""
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    (target / "d" / "mine").touch()
    (target / "f").write_text("old")
    data = tar(
        ROOT,
        directory(b"copy/d", 0o500),
        file(b"copy/d/theirs"),
        file(b"copy/f", b"new"),
        directory(b"copy/l", 0o500),
        file(b"copy/l/f"),
    )
    staging = staged(target, data)
    staging.publish(replace=True)
    staging.close()

    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        *("d", "d/mine", "d/theirs", "f", "l", "l/f"),
    ]
    assert (target / "f").read_text() == "new"
    assert stat.S_IMODE((target / "l").stat().st_mode) == 0o500
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize(
    ("data", "replace", "error"),
    [
        (tar(ROOT, file(b"copy/a"), file(b"copy/f")), False, FileExistsError),
        (tar(ROOT, file(b"copy/a"), directory(b"copy/f")), True, NotADirectoryError),
        (tar(ROOT, file(b"copy/a"), file(b"copy/d")), True, IsADirectoryError),
        (tar(ROOT, file(b"copy/a"), link(b"copy/d", b"f")), True, IsADirectoryError),
        (tar(file(b"copy")), True, IsADirectoryError),
    ],
)
def test_what_is_in_the_way_is_seen_before_anything_is_moved(
    data: bytes, replace: bool, error: type[OSError], tmp_path: Path
) -> None:
    """All of a copy or nothing."""
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    (target / "f").write_text("old")
    before = facts(target)
    staging = staged(target, data)
    with pytest.raises(error):
        staging.publish(replace=replace)
    staging.close()

    assert facts(target) == before
    assert os.listdir(tmp_path) == ["target"]


def test_a_file_replaces_a_file_or_does_not(tmp_path: Path) -> None:
    """As it was asked for."""
    target = tmp_path / "target"
    target.write_text("old")
    for replace, content in ((False, "old"), (True, "new")):
        staging = staged(target, tar(file(b"copy", b"new")))
        if replace:
            staging.publish(replace=True)
        else:
            with pytest.raises(FileExistsError):
                staging.publish(replace=False)
        staging.close()
        assert target.read_text() == content

    assert os.listdir(tmp_path) == ["target"]


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    """Is fine: a copy may end before it begins."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    remove(fd, b"nothing")
    os.close(fd)
