"""Making a root: what is made, whose fault a failure is, and that nothing else is left."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
from image_trees import tree_of_squashfs
from layers import (
    Image,
    file,
    hard,
    layer,
    make_image,
    white,
)

from boxlite._errors import HostError, ImageRefusedError
from boxlite._images import flat_tar, flatten, squashfs
from boxlite._images.flatten import ConvertProgress, RootInfo, build_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from boxlite._images.layer_limits import Limits


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


async def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    """A root may be in use; a new one takes its place only when it is whole."""
    (tmp_path / "root").write_text("in use")

    with pytest.raises(HostError, match="root cannot be made: File exists"):
        await build(tmp_path, make_image(tmp_path / "image", [layer(file(b"f"))]))
    assert (tmp_path / "root").read_text() == "in use"
