"""Roots: what layers may not do to them, and that making one leaves nothing but the root."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import stat
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import trio
import zstandard
from image_trees import tree_of_directory, tree_of_squashfs
from layers import (
    Image,
    Part,
    device,
    directory,
    fifo,
    file,
    hard,
    layer,
    make_image,
    opaque,
    symlink,
    white,
)

from boxlite._errors import HostError, ImageError, ImageRefusedError
from boxlite._images import flat_tar, flatten, squashfs
from boxlite._images.flatten import ConvertProgress, RootInfo, build_root
from boxlite._images.layer_import import layer_from_directory, layer_from_tar
from boxlite._images.layer_limits import LayerError, Limits
from boxlite._images.root_layers import RootLayers
from boxlite._images.root_tree import Directory, File

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def apply(*layers: Sequence[Part], limits: Limits | None = None) -> Directory:
    """Return the tree that layers make."""
    tree = RootLayers(limits or Limits())
    for parts in layers:
        fd = os.memfd_create("layer")
        try:
            os.write(fd, layer(*parts))
            tree.apply_file(fd)
        finally:
            os.close(fd)
    return tree.root


async def build(
    place: Path,
    image: Image,
    limits: Limits | None = None,
    on_progress: Callable[[ConvertProgress], object] | None = None,
) -> RootInfo:
    """Make the root of an image, as ``root`` in a directory, and with ``scratch`` there."""
    (place / "scratch").mkdir(exist_ok=True)
    return await build_root(
        image="the-image",
        layers=image.layers,
        diff_ids=image.diff_ids,
        scratch=place / "scratch",
        out=place / "root",
        limits=limits,
        on_progress=on_progress,
    )


def left_in(place: Path) -> list[str]:
    """Return what a conversion left, beside what was there."""
    return sorted({*os.listdir(place)} - {"scratch", "image", "bin"}) + os.listdir(
        place / "scratch"
    )


def fake_program(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script where ``tar2sqfs`` is looked for first."""
    (place / "bin").mkdir()
    program = place / "bin" / "tar2sqfs"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")


REFUSED: dict[str, list[list[Part]]] = {
    "the root as a link": [[symlink(b".", b"/etc")]],
    "the root as a file": [[file(b"a/..", b"x")]],
    "a file on the way": [[file(b"a")], [file(b"a/b")]],
    "a device on the way": [[device(b"a", tarfile.CHRTYPE, 1, 3)], [file(b"a/b/c")]],
    "a loop": [[symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")]],
    "a link to itself": [[symlink(b"a", b"a/a/a"), file(b"a/x")]],
    "a hard link to nothing": [[hard(b"a", b"b")]],
    "a hard link to itself": [[file(b"a"), hard(b"a", b"a")]],
    "a hard link out": [[hard(b"a", b"../../../../etc/passwd")]],
    "a hard link through a link out": [[symlink(b"s", b"/../../etc"), hard(b"a", b"s/passwd")]],
    "a hard link to a directory": [[directory(b"d"), hard(b"a", b"d")]],
    "a hard link to the root": [[hard(b"a", b"..")]],
    "a hard link to what is hidden": [[file(b"f")], [white(b"f"), hard(b"a", b"f")]],
    "a whiteout of no name": [[file(b"f")], [file(b".wh.")]],
    "a whiteout of the directory it is in": [[file(b"d/f")], [file(b"d/.wh..")]],
    "a whiteout of the directory above": [[file(b"d/f")], [file(b"d/.wh...")]],
    "a name that is too long": [[file(b"n" * 256)]],
    "a directory with such a name": [[file(b"n" * 256 + b"/f")]],
    "such a name by way of a link": [[symlink(b"l", b"n" * 256), file(b"l/f")]],
    "a link to nothing": [[symlink(b"l", b"")]],
    "a path too long by way of links": [
        [symlink(b"l", b"/".join([b"d" * 250] * 15)), file(b"l/" + b"/".join([b"e" * 250] * 3))]
    ],
    "a way too long by way of links": [
        [
            symlink(b"a", b"/".join([b"."] * 2000)),
            *(symlink(b"b%d" % n, b"a/" * 900) for n in range(9)),
            file(b"/".join(b"b%d" % n for n in range(9)) + b"/f"),
        ]
    ],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_root_can_have_is_refused(name: str) -> None:
    """The member that is at fault is named."""
    with pytest.raises(LayerError) as caught:
        apply(*REFUSED[name])

    assert caught.value.member
    assert caught.value.problem


def test_nothing_leads_out_of_the_root() -> None:
    """Whatever is above the root is the root, in names, in links, and through them."""
    root = apply(
        [directory(b"in"), symlink(b"in/up", b"../../../.."), symlink(b"abs", b"//..//")],
        [file(b"/one"), file(b"../../two"), file(b"in/up/three"), file(b"abs/in/../four")],
    )

    assert sorted(root.children) == [b"abs", b"four", b"in", b"one", b"three", b"two"]
    assert sorted(root.children[b"in"].children) == [b"up"]  # type: ignore[attr-defined]


def test_aufs_directories_are_left_out() -> None:
    """They have what AUFS needed for hard links, and containerd leaves them out too."""
    root = apply([directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/12.34"), file(b"f")])

    assert sorted(root.children) == [b"f"]


def test_attributes_that_a_root_cannot_have_are_left_out() -> None:
    """ACLs are not in squashfs; overlayfs would take its own attributes for orders."""
    kept = {b"user.a": b"1", b"trusted.b": b"2", b"security.capability": b"3"}
    dropped = {
        b"system.posix_acl_access": b"4",
        b"security.selinux": b"5",
        b"trusted.overlay.redirect": b"/etc",
        b"trusted.overlay.opaque": b"y",
        b"user." + b"n" * 251: b"6",
        b"other": b"7",
    }
    root = apply([file(b"f", xattrs=kept | dropped), symlink(b"l", b"f", xattrs=kept)])

    assert dict(root.children[b"f"].xattrs) == kept
    assert sorted(dict(root.children[b"l"].xattrs)) == [b"security.capability", b"trusted.b"]


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(entries=5), "more than 5 entries"),
        (Limits(image_bytes=100), "more than 100 bytes of files"),
        (Limits(metadata_bytes=20), "more than 20 bytes of names"),
        (Limits(path_bytes=3), "is too long"),
    ],
)
def test_limits_hold_for_the_image(limits: Limits, problem: str) -> None:
    """They count over all layers, also what a later layer removes."""
    one = [file(b"name%d" % number, b"x" * 30) for number in range(4)]

    with pytest.raises(LayerError, match=problem):
        apply(one, [opaque(), *one], limits=limits)


def test_many_entries_take_little_memory() -> None:
    """A root of a million files must fit."""
    parts = [file(b"directory/%06d" % number, b"") for number in range(4_000)]
    data = layer(*parts, format=tarfile.USTAR_FORMAT)
    fd = os.memfd_create("layer")
    tree = RootLayers(Limits())
    try:
        os.write(fd, data)
        tracemalloc.start()
        try:
            tree.apply_file(fd)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    finally:
        os.close(fd)

    assert held / len(parts) < 450


def test_a_deep_tree_is_walked_without_recursion() -> None:
    """As deep as a path can be, and whiteouts go down there too."""
    deep = b"/".join([b"d"] * 2000)
    root = apply([file(deep)], [file(deep + b"2"), white(b"d")])
    parts = list(flat_tar.FlatTar(root).parts())

    assert len([part for part in parts if isinstance(part, bytes)]) > 2000


async def test_a_root_is_made_and_counted(tmp_path: Path) -> None:
    """What is told of it is true, and nothing but it is left."""
    data = os.urandom(3 << 20)
    image = make_image(
        tmp_path / "image",
        [
            layer(file(b"old", data)),
            layer(white(b"old"), file(b"d/new", data), hard(b"h", b"d/new")),
        ],
        ["gzip", "zstd"],
    )
    told: list[ConvertProgress] = []

    info = await build(tmp_path, image, on_progress=told.append)

    tree = tree_of_squashfs(tmp_path / "root", tmp_path)
    assert sorted(tree) == [b".", b"d", b"d/new", b"h"]
    assert tree[b"h"].names == (b"d/new", b"h")
    assert tree[b"h"].size == len(data)
    size = (tmp_path / "root").stat().st_size
    assert info == RootInfo(size=size, entries=4, file_bytes=len(data))
    assert {each.step for each in told} == {"unpack", "pack"}
    unpacked = [each for each in told if each.step == "unpack"]
    assert unpacked[-1].done_bytes == unpacked[-1].total_bytes
    assert all(each.done_bytes <= each.total_bytes and each.image == "the-image" for each in told)
    assert left_in(tmp_path) == ["root"]


async def test_the_same_image_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root may be named by its image, and compared."""
    image = make_image(
        tmp_path / "image", [layer(*(file(b"f%d" % n, os.urandom(300_000)) for n in range(9)))]
    )
    found = []
    for jobs in (1, 2, 4):
        monkeypatch.setattr(squashfs, "processors", lambda jobs=jobs: jobs)
        await build(tmp_path, image)
        found.append((tmp_path / "root").read_bytes())
        (tmp_path / "root").unlink()

    assert found[0] == found[1] == found[2]


async def test_a_refused_image_is_named_with_its_member(tmp_path: Path) -> None:
    """Whoever made the image can find what is wrong with it."""
    image = make_image(tmp_path / "image", [layer(file(b"ok"), hard(b"bad\xff", b"nothing"))])

    with pytest.raises(ImageRefusedError, match="the-image.*bad.*hard link") as caught:
        await build(tmp_path, image)

    assert caught.value.member == "bad\\xff"
    assert left_in(tmp_path) == []


async def test_every_layer_has_a_diff_id(tmp_path: Path) -> None:
    """Otherwise one would be mounted that nobody verified."""
    image = make_image(tmp_path / "image", [layer(file(b"a")), layer(file(b"b"))])

    with pytest.raises(ImageRefusedError, match="2 layers and its configuration has 1"):
        await build(tmp_path, Image(layers=image.layers, diff_ids=image.diff_ids[:1]))


async def test_more_owners_than_squashfs_has_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table has 65,536 places; the error names the image instead of an overflow."""
    monkeypatch.setattr(flat_tar, "OWNERS_MAX", 10)
    image = make_image(tmp_path / "image", [layer(*(file(b"%d" % n, uid=n) for n in range(20)))])

    with pytest.raises(ImageRefusedError, match="more than 10 owners"):
        await build(tmp_path, image)
    assert left_in(tmp_path) == []


async def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not part of most systems."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="apt-get install squashfs-tools-ng"):
        await build(tmp_path, make_image(tmp_path / "image", [layer()]))


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "cat >/dev/null; echo first >&2; echo 'x: No space left on device' >&2; exit 1",
            "No space",
        ),
        ("exit 3", "tar2sqfs exited with 3"),
        ("exit 0", "tar2sqfs exited with 0"),
        ("kill -9 $$", "tar2sqfs exited with -9"),
        ("touch $9; exec yes bad >&2", "bad|exited"),
    ],
)
async def test_a_program_that_fails_is_a_fault_of_this_machine(
    script: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said last is in the error; a success without having read is none."""
    fake_program(tmp_path, monkeypatch, script)
    monkeypatch.setattr(flatten, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(flatten, "PATIENCE_RATE", 1 << 40)
    image = make_image(tmp_path / "image", [layer(file(b"big", os.urandom(3 << 20)))])

    with pytest.raises(HostError, match=problem if "yes" not in script else "did not end within"):
        await build(tmp_path, image)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "script", ["exec sleep 1000", "cat >/dev/null; exec sleep 1000", "sleep 1000"]
)
async def test_a_program_that_hangs_is_killed(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it reads or not: the thread that writes ends with it."""
    fake_program(tmp_path, monkeypatch, script)
    monkeypatch.setattr(flatten, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(flatten, "PATIENCE_RATE", 1 << 40)
    image = make_image(tmp_path / "image", [layer(file(b"big", os.urandom(3 << 20)))])

    with pytest.raises(HostError, match="did not end within"):
        await build(tmp_path, image)
    assert left_in(tmp_path) == []


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    """At each of the moments at which progress is told, and before the first."""
    image = make_image(
        tmp_path / "image", [layer(file(b"f%d" % n, os.urandom(9 << 20))) for n in range(3)]
    )
    descriptors = sorted(os.listdir("/proc/self/fd"))

    async def was_cancelled(moment: int) -> bool:
        told = 0

        def tell(_: ConvertProgress) -> None:
            nonlocal told
            told += 1
            if told == moment:
                scope.cancel()

        with trio.CancelScope() as scope:
            if moment == 0:
                scope.cancel()
            await build(tmp_path, image, on_progress=tell)
        return scope.cancelled_caught

    moments = 0
    while await was_cancelled(moments):
        assert left_in(tmp_path) == []
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        moments += 1

    assert moments > 5
    assert left_in(tmp_path) == ["root"]


async def test_a_listener_that_raises_ends_the_conversion(tmp_path: Path) -> None:
    """Its error arrives as it is, not in a group."""
    image = make_image(tmp_path / "image", [layer(file(b"f", os.urandom(9 << 20)))])

    def tell(progress: ConvertProgress) -> None:
        if progress.step == "pack":
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await build(tmp_path, image, on_progress=tell)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_a_fault_of_this_machine(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the image."""

    def full(fd: int, data: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("boxlite._images.layer_spool.write_all", full)
    with pytest.raises(HostError, match="no room in .* the image the-image"):
        await build(tmp_path, make_image(tmp_path / "image", [layer(file(b"f"))]))
    assert left_in(tmp_path) == []


async def test_room_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filling a disk to find out that it is too small hurts others."""
    monkeypatch.setattr(flatten, "_room", lambda _: 10)

    with pytest.raises(HostError, match="no room"):
        await build(tmp_path, make_image(tmp_path / "image", [layer(file(b"f"))]))


async def test_a_scratch_that_is_not_there_is_a_fault_of_this_machine(tmp_path: Path) -> None:
    """The error says which directory."""
    image = make_image(tmp_path / "image", [layer(file(b"f"))])

    with pytest.raises(HostError, match="cannot be unpacked in .*missing"):
        await build_root(
            image="x",
            layers=image.layers,
            diff_ids=image.diff_ids,
            scratch=tmp_path / "missing",
            out=tmp_path / "root",
        )


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


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
async def test_a_tar_becomes_a_root(tree: Path, suffix: str, tmp_path: Path) -> None:
    """However it is compressed."""
    plain = await layer_from_directory(tree, tmp_path / "layer")
    archive = tmp_path / f"root.tar{suffix}"
    data = (tmp_path / "layer").read_bytes()
    match suffix:
        case ".gz":
            data = gzip.compress(data)
        case ".xz":
            data = lzma.compress(data)
        case ".zst":
            data = zstandard.compress(data)
    archive.write_bytes(data)

    assert await layer_from_tar(archive, tmp_path / "from-tar") == plain


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
    with pytest.raises(ImageError, match="missing.*No such file"):
        await layer_from_tar(tmp_path / "missing", tmp_path / "layer")
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(9 << 20)))
    with pytest.raises(ImageRefusedError, match="more than"):
        await layer_from_tar(
            tmp_path / "bomb", tmp_path / "layer", limits=Limits(ratio=10, ratio_floor_bytes=1)
        )
    assert os.listdir(tmp_path) == ["bomb"]


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


def test_replaced_files_lose_their_other_names() -> None:
    """A hard link of a lower layer keeps the old data when one of its names is replaced."""
    root = apply([file(b"a", b"old"), hard(b"b", b"a"), fifo(b"p")], [file(b"a", b"newer")])
    a, b = root.children[b"a"], root.children[b"b"]

    assert isinstance(a, File)
    assert isinstance(b, File)
    assert (a.size, a.layer, b.size, b.layer) == (5, 1, 3, 0)
