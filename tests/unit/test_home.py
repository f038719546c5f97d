"""The home is made private, or refused with the reason and what to do."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from boxlite._errors import HostError, InvalidOptionError
from boxlite._home import examine_home, nearest_directory, prepare_home
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534


def as_nobody(check: str, home: Path) -> str:
    """Return the error text of a check made by a user without rights; empty if it passed.

    The child gives up its rights only after its imports: the interpreter itself may
    be out of that user's reach.
    """
    program = f"""
import os, sys
from pathlib import Path
from boxlite import _home
from boxlite._errors import BoxliteError
from boxlite._layout import HomeLayout

if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
try:
    _home.{check}(HomeLayout(Path(sys.argv[1])))
except BoxliteError as error:
    print(error)
"""
    argv = [sys.executable, "-c", program, str(home)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="boxlite-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_home_is_made_private(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is, others see nothing; and doing it again changes nothing."""
    home = HomeLayout(tmp_path / "a" / "home")
    before = os.umask(umask)
    try:
        prepare_home(home)
        prepare_home(home)
    finally:
        os.umask(before)

    for directory in (home.root, home.kit, home.tmp, home.boxes):
        assert mode(directory) == 0o700
    assert examine_home(home) == f"{home.root}, writable"


def test_examining_makes_nothing(tmp_path: Path) -> None:
    """``doctor`` looks; it does not touch."""
    home = HomeLayout(tmp_path / "a" / "home")

    assert examine_home(home) == f"{home.root} will be made"
    assert list(tmp_path.iterdir()) == []


def test_link_to_a_directory_is_a_home(tmp_path: Path) -> None:
    """Keeping the data on another disk is everyday."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    prepare_home(HomeLayout(tmp_path / "home"))

    assert (tmp_path / "disk" / "boxes").is_dir()


@pytest.mark.parametrize("check", [prepare_home, examine_home])
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("relative", "an absolute path"),
        ("{}/nul\0l", "a path without a NUL character"),
        ("{}/" + "x" * 256, "each part of at most 255"),
        ("{}" + "/x" * 3000, "at most 4,095 bytes"),
        ("{}/file", "a directory, and .*/file is not one"),
        ("{}/file/home", "a directory, and .*/file(/home)? is not one"),
        ("{}/dangling", "a directory, and .*/dangling is not one"),
    ],
)
def test_impossible_path_is_the_chooser_s_error(
    tmp_path: Path, check: Callable[[HomeLayout], object], name: str, allowed: str
) -> None:
    """Both ways to look agree, and both name the option."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidOptionError, match=allowed) as caught:
        check(HomeLayout(Path(name.format(tmp_path))))

    assert caught.value.field == "home"


@pytest.mark.parametrize("check", [prepare_home, examine_home])
@pytest.mark.parametrize("bits", [0o770, 0o702])
def test_home_that_others_may_change_is_refused(
    tmp_path: Path, check: Callable[[HomeLayout], object], bits: int
) -> None:
    """What lies there decides what runs in a box."""
    tmp_path.chmod(bits)
    with pytest.raises(HostError, match=f"by other users .mode {bits:04o}") as caught:
        check(HomeLayout(tmp_path))

    assert caught.value.fix.startswith(f"Run `chmod go-w {tmp_path}`")


@pytest.mark.parametrize("check", [prepare_home, examine_home])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another user's directory")
def test_home_of_another_user_is_refused(
    tmp_path: Path, check: Callable[[HomeLayout], object]
) -> None:
    """Running with sudo by mistake would leave files that the user cannot remove."""
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(HostError, match=r"belongs to .*uid 65534.*, and this is root \(uid 0\)"):
        check(HomeLayout(tmp_path))


@pytest.mark.parametrize("check", ["prepare_home", "examine_home"])
def test_home_that_cannot_be_made_says_where_and_how(open_dir: Path, check: str) -> None:
    """The fix makes the one directory, and takes nothing over that is somebody else's."""
    open_dir.chmod(0o555)
    said = as_nobody(check, open_dir / "home")

    assert "may not make or change" in said
    assert f"sudo install -d -m 0700 -o $USER {open_dir / 'home'}" in said
    assert "BOXLITE_HOME" in said


@pytest.mark.parametrize("check", ["prepare_home", "examine_home"])
def test_own_home_without_write_permission_is_refused(open_dir: Path, check: str) -> None:
    """Its owner can put that right."""
    home = open_dir / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    home.chmod(0o500)
    said = as_nobody(check, home)

    assert f"Run `chmod u+rwx {home}`" in said


def test_any_user_can_have_a_home(open_dir: Path) -> None:
    """Nothing here needs root."""
    open_dir.chmod(0o777)
    home = HomeLayout(open_dir / "home")

    assert as_nobody("prepare_home", home.root) == ""
    assert home.boxes.is_dir()


def test_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are not the trouble there, and changing them does not help."""

    def refuse(path: str, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(HostError, match="is read-only") as caught:
        prepare_home(HomeLayout(tmp_path / "home"))

    assert "Mount it writable" in caught.value.fix


@pytest.mark.parametrize("flags", [os.ST_RDONLY, 0])
def test_examining_tells_read_only_from_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """access(2) says no to both."""
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((*found[:8], flags, found[9], found.f_fsid))
    )
    said = "is read-only" if flags else "may not make or change"
    with pytest.raises(HostError, match=said):
        examine_home(HomeLayout(tmp_path / "home"))


def test_other_failures_keep_the_system_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quota, I/O errors, stale network mounts."""

    def refuse(path: str, *_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(HostError, match=os.strerror(errno.EDQUOT)):
        prepare_home(HomeLayout(tmp_path / "home"))


def test_nearest_directory_is_the_one_above_what_is_missing(tmp_path: Path) -> None:
    """It is where a missing path would be made."""
    assert nearest_directory(tmp_path / "a" / "b") == tmp_path
    assert nearest_directory(tmp_path) == tmp_path
