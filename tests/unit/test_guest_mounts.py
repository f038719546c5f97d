"""What the guest mounts and makes for its commands, on a machine that only notes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from boxlite._rpc._generated.boxlite.v1 import VolumeMount
from boxlite.guest import image_root, kernel, nodes, volumes
from boxlite.guest.namespaces import Namespaces


class Mounts:
    """Notes mounts on directories of the test's."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing = ""
        patch.setattr(kernel, "mount", self._mount)
        patch.setattr(kernel, "unmount", lambda target: self.calls.append(("unmount", target)))
        self.passage = str(root / "passage")
        patch.setattr(volumes, "_PASSAGE", self.passage)

    def _mount(self, source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        assert Path(target).exists()
        self.calls.append((source, target, kind, flags, data))
        if target == self.failing:
            raise OSError(5, "Input/output error", target)


@pytest.mark.parametrize("read_only", [True, False])
def test_volumes_are_mounted_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, read_only: bool
) -> None:
    """What is missing on the way is made; of a single file nothing but it is to be seen."""
    mounts = Mounts(monkeypatch, tmp_path)
    (tmp_path / "there").write_text("the image's own")
    paths = [tmp_path / "a" / "b", tmp_path / "there", tmp_path / "c" / "new"]
    volumes.mount_volumes(
        [
            VolumeMount(tag="v0", path=os.fsencode(paths[0]), read_only=read_only),
            VolumeMount(tag="v1", path=os.fsencode(paths[1]), read_only=read_only, file=b"there"),
            VolumeMount(tag="v2", path=os.fsencode(paths[2]), read_only=read_only, file=b"new"),
        ]
    )

    flags = kernel.MS_NOSUID | kernel.MS_NODEV | (kernel.MS_RDONLY if read_only else 0)
    options = volumes._OPTIONS
    assert mounts.calls == [
        ("v0", str(paths[0]), "9p", flags, options),
        ("v1", mounts.passage, "9p", flags, options),
        (f"{mounts.passage}/there", str(paths[1]), "", kernel.MS_BIND, ""),
        ("unmount", mounts.passage),
        ("v2", mounts.passage, "9p", flags, options),
        (f"{mounts.passage}/new", str(paths[2]), "", kernel.MS_BIND, ""),
        ("unmount", mounts.passage),
    ]
    assert paths[0].is_dir()
    assert paths[1].read_text() == "the image's own"
    assert paths[2].is_file()
    assert not Path(mounts.passage).exists()


@pytest.mark.parametrize("at", ["passage", "file"])
def test_a_file_that_cannot_be_mounted_leaves_no_passage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: str
) -> None:
    """The directory beside it must not stay reachable."""
    mounts = Mounts(monkeypatch, tmp_path)
    mounts.failing = str(tmp_path / at)
    volume = VolumeMount(tag="v0", path=os.fsencode(tmp_path / "file"), file=b"file")

    with pytest.raises(OSError, match="Input/output") as caught:
        volumes.mount_volumes([volume])
    assert caught.value.filename == mounts.failing
    assert not Path(mounts.passage).exists()
    assert (("unmount", mounts.passage) in mounts.calls) is (at == "file")


@pytest.mark.parametrize("path", [b"", b"data", b"./x", b"/a\0b"])
def test_a_place_that_is_no_absolute_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: bytes
) -> None:
    """Where it would lead depends on where the agent is."""
    mounts = Mounts(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        volumes.mount_volumes([VolumeMount(tag="v0", path=path)])

    assert caught.value.filename == path
    assert mounts.calls == []


@pytest.mark.parametrize(
    "leads",
    [
        *("/proc/sys", "/sys/fs", "/dev/shm/x"),
        pytest.param(
            "/proc",
        ),
    ],
)
def test_a_link_of_the_image_leads_no_volume_over_the_kernels_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leads: str
) -> None:
    """Whatever its own path looks like."""
    mounts = Mounts(monkeypatch, tmp_path)
    (tmp_path / "link").symlink_to(leads)
    with pytest.raises(OSError, match="one of the kernel's own"):
        volumes.mount_volumes([VolumeMount(tag="v0", path=os.fsencode(tmp_path / "link"))])

    assert mounts.calls == []


def test_nodes_are_made_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a box none of the machine's own; a link counts as there, wherever it leads."""
    made: list[str] = []
    there = {"/dev/null", "/dev/stdin"}
    monkeypatch.setattr(os.path, "lexists", lambda path: path in there)
    monkeypatch.setattr(os, "mknod", lambda path, _mode, _device: made.append(path))
    monkeypatch.setattr(os, "symlink", lambda _target, path: made.append(path))
    monkeypatch.setattr(os, "chmod", lambda path, _mode: None)
    nodes.make_nodes(machine=False)
    box = set(made)
    nodes.make_nodes(machine=True)

    assert box.isdisjoint(there)
    assert {"/dev/zero", "/dev/urandom", "/dev/tty", "/dev/fd"} <= box
    assert set(made) - box == {"/dev/console", "/dev/ptmx"}
    assert not {name for name in made if "vd" in name or "mem" in name}


def test_a_disk_is_found_by_its_serial_and_named_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine may have disks, but none of that serial."""
    monkeypatch.setattr(os, "listdir", lambda _: ["vda", "loop0"])
    with pytest.raises(FileNotFoundError, match="no such disk.*changes-of-no-box"):
        image_root._disk("changes-of-no-box")


def test_a_directory_of_the_kernels_is_no_link_of_the_image(tmp_path: Path) -> None:
    """Process 1, which mounts it, is not in the image: a link would lead it astray."""
    image_root._require_directory(str(tmp_path / "proc"))
    image_root._require_directory(str(tmp_path / "proc"))
    (tmp_path / "link").symlink_to("proc")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError, match="the image has something else there"):
            image_root._require_directory(str(tmp_path / name))


@pytest.mark.parametrize("answer", [b"\0", b"13", b""])
@pytest.mark.parametrize("order", [b"14 /new root\n", b"\n"])
def test_process_1_says_whether_it_has_done_it(answer: bytes, order: bytes) -> None:
    """An error of its is the caller's; one that has died is one, too."""
    orders, reports = os.pipe(), os.pipe()
    found = Namespaces(mounts=-1, processes=-1, orders=orders[1], reports=reports[0])

    def call() -> None:
        if order == b"\n":
            found.enter_root()
        else:
            found.mount_proc("/new root", 14)

    os.write(reports[1], answer)
    os.close(reports[1])
    try:
        if answer == b"\0":
            call()
        else:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                call()
            assert caught.value.errno == int(answer or b"5")
        assert os.read(orders[0], 100) == order
    finally:
        for fd in (*orders, reports[0]):
            os.close(fd)
