"""What a box is given of the host: opened, looked at, and shared as it was found."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from census import open_files

from boxlite._errors import HostError, InvalidOptionError
from boxlite._startup.volumes import file_name, open_volumes, share_volumes
from boxlite._volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    """What closes everything; afterwards nothing more is open than before."""
    before = open_files()
    with ExitStack() as undo:
        yield undo
    assert open_files() == before


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


SOURCES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, r"that this user can read \(No such file"),
    (lambda path: path.symlink_to("nowhere"), r"that this user can read \(No such file"),
    (lambda path: path.symlink_to(path), r"that this user can read \(Too many levels"),
    (lambda path: path.symlink_to("/dev/null"), "a directory or a regular file"),
    (os.mkfifo, "a directory or a regular file"),
    (_socket, r"that this user can read \(No such device"),
]


@pytest.mark.parametrize(
    ("make", "allowed"), SOURCES, ids=["missing", "dangling", "loop", "device", "fifo", "socket"]
)
def test_what_cannot_be_a_volume_is_named_at_once(
    tmp_path: Path, undo: ExitStack, make: Callable[[Path], object], allowed: str
) -> None:
    """Nothing is waited for, and the error says which of them it is."""
    make(tmp_path / "it")

    with pytest.raises(InvalidOptionError, match=allowed) as caught:
        open_volumes([Volume(tmp_path, "/a"), Volume(tmp_path / "it", "/b")], undo)

    assert caught.value.field == "volumes[1].source"


@pytest.mark.parametrize("read_only", [True, False])
def test_directories_and_files_are_opened_and_left_as_they_are(
    tmp_path: Path, undo: ExitStack, read_only: bool
) -> None:
    """A link at the end is followed; nothing is made, and no attribute stays."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    names = ["directory", "file", "link"]
    opened = open_volumes(
        [Volume(tmp_path / name, f"/{name}", read_only=read_only) for name in names], undo
    )

    assert [each.is_file for each in opened] == [False, True, True]
    for each, name in zip(opened, ["directory", "file", "file"], strict=True):
        assert os.fstat(each.fd).st_ino == (tmp_path / name).stat().st_ino
        assert not os.get_inheritable(each.fd)
        assert os.listxattr(each.fd) == []
    assert {path.name for path in tmp_path.iterdir()} == set(names)


@pytest.mark.parametrize(
    ("number", "allowed"),
    [
        (errno.ENOTSUP, "on a file system with extended attributes"),
        (errno.EACCES, r"one that this user may change.*Permission denied"),
        (errno.EROFS, r"one that this user may change.*Read-only file system"),
    ],
)
def test_a_writable_volume_needs_a_place_for_what_the_guest_sets(
    tmp_path: Path,
    undo: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    allowed: str,
) -> None:
    """Found out before a box finds out; a read-only volume does without."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    open_volumes([Volume(tmp_path, "/a")], undo)
    with pytest.raises(InvalidOptionError, match=allowed) as caught:
        open_volumes([Volume(tmp_path, "/a", read_only=False)], undo)

    assert caught.value.field == "volumes[0].source"


def test_what_even_root_may_not_change_cannot_be_written_to(
    undo: ExitStack,
) -> None:
    """A kernel file system takes nobody's attributes."""
    with pytest.raises(InvalidOptionError, match="for a volume to write to"):
        open_volumes([Volume("/proc/self", "/a", read_only=False)], undo)


def test_a_single_file_is_shared_in_a_directory_of_its_own(tmp_path: Path, undo: ExitStack) -> None:
    """Under the name that the box knows it by; a directory is shared itself."""
    source, own = tmp_path / "source.txt", tmp_path / "box" / "volumes"
    source.write_text("text")
    opened = open_volumes(
        [Volume(tmp_path, "/data"), Volume(source, "/etc/app.conf/", read_only=False)], undo
    )
    shared = share_volumes(opened, own, undo)

    assert shared[0].fd == opened[0].fd
    assert [each.read_only for each in shared] == [True, False]
    assert os.listdir(shared[1].fd) == ["app.conf"] == [file_name(opened[1].volume)]
    assert [path.name for path in own.iterdir()] == ["1"]
    assert (own / "1").stat().st_mode & 0o777 == 0o700
    assert (own / "1" / "app.conf").samefile(source)
    # A box that is started again finds its directories there.
    again = share_volumes(opened, own, undo)
    assert os.listdir(again[1].fd) == ["app.conf"]


@pytest.mark.parametrize("swap", ["file", "link"])
def test_the_link_is_to_the_file_that_was_opened(
    tmp_path: Path, undo: ExitStack, swap: str
) -> None:
    """Whatever has its name by then: what was checked is what is shared."""
    source = tmp_path / "source"
    source.write_text("checked")
    opened = open_volumes([Volume(source, "/file")], undo)
    source.rename(tmp_path / "elsewhere")
    if swap == "file":
        source.write_text("swapped")
    else:
        source.symlink_to("/etc/passwd")

    share_volumes(opened, tmp_path / "volumes", undo)

    shared = tmp_path / "volumes" / "0" / "file"
    assert not shared.is_symlink()
    assert shared.read_text() == "checked"


def _removed(source: Path, _patch: pytest.MonkeyPatch) -> None:
    source.unlink()


def _elsewhere(_source: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    patch.setattr(os, "link", refuse)


@pytest.mark.parametrize(
    ("harm", "target", "said", "fix"),
    [
        (_removed, "/file", "No such file", "Share the directory"),
        (_elsewhere, "/file", "Invalid cross-device link", "on the file system of {}/box"),
        (lambda *_: None, "/" + "x" * 256, "File name too long", "Share the directory"),
    ],
)
def test_a_file_that_cannot_be_linked_to_is_one_error(
    tmp_path: Path,
    undo: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    target: str,
    said: str,
    fix: str,
) -> None:
    """With what can be done instead."""
    source = tmp_path / "source"
    source.write_text("text")
    opened = open_volumes([Volume(source, target)], undo)
    harm(source, monkeypatch)

    with pytest.raises(HostError, match=f"{source} cannot be shared by itself: {said}") as caught:
        share_volumes(opened, tmp_path / "box" / "volumes", undo)
    assert fix.format(tmp_path) in caught.value.fix
