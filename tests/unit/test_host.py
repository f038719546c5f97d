"""What a machine must have: each lack is found, named, and has a fix."""

from __future__ import annotations

import errno
import os
import platform
import resource
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from boxlite import _host
from boxlite._errors import HostError
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in place of /proc."""
    proc = tmp_path / "proc"
    proc.mkdir()
    monkeypatch.setattr(_host, "_PROC", proc)
    return proc


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "x86_64")])
def test_other_platforms_are_refused(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    """The guest is an x86-64 Linux, and so must the host be."""
    monkeypatch.setattr(_host, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(HostError, match=f"this is {system} on {machine}"):
        _host.examine_platform()


def test_missing_proc_is_refused(proc: Path) -> None:
    """Sockets are reached through it."""
    with pytest.raises(HostError, match="is not mounted") as caught:
        _host.examine_proc()

    assert "mount -t proc" in caught.value.fix


def test_proc_of_another_namespace_is_refused(proc: Path) -> None:
    """Process ids in it would mean other processes."""
    (proc / "self").symlink_to("1")
    with pytest.raises(HostError, match="another PID namespace: it calls this process 1"):
        _host.examine_proc()


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSYS, "has no pidfd_open"), (errno.EPERM, "is forbidden here")]
)
def test_missing_pidfds_are_refused(
    monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """An old kernel and a strict filter have different cures."""

    def refuse(_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(HostError, match=said):
        _host.examine_pidfd()


def test_python_without_pidfds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds of it are made against old headers."""
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(HostError, match="this Python was built without"):
        _host.examine_pidfd()


@pytest.mark.parametrize(
    ("limits", "fix"), [((64, 4096), "Run `ulimit -n 1024`."), ((64, 64), "as root")]
)
def test_low_limit_of_open_files_is_refused(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], fix: str
) -> None:
    """Whether the user can raise it depends on the hard limit."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    with pytest.raises(HostError, match="may have 64 open files here") as caught:
        _host.examine_open_files()

    assert fix in caught.value.fix


def test_unlimited_open_files_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIM_INFINITY is -1, which is not less than enough."""
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )

    assert _host.examine_open_files() == "no limit"


@pytest.mark.parametrize(
    ("free_mib", "kit", "enough"),
    [(1024, False, True), (1023, False, False), (64, True, True), (63, True, False)],
)
def test_free_space_for_what_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, kit: bool, enough: bool
) -> None:
    """A kit takes much room, once; a box little."""
    home = HomeLayout(tmp_path / "home")
    if kit:
        (home.kit / "kernel").mkdir(parents=True)
    space = SimpleNamespace(f_bavail=free_mib << 8, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    if enough:
        assert _host.examine_disk(home) == f"{free_mib} MiB free"
    else:
        with pytest.raises(HostError, match=f"{free_mib} MiB are free"):
            _host.examine_disk(home)


def test_free_space_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    """As with a home below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be told: Not a directory"):
        _host.examine_disk(HomeLayout(tmp_path / "file" / "home"))


def meminfo(available_mib: int, swap_mib: int) -> str:
    """Return what /proc/meminfo says, in short."""
    return (
        f"MemTotal: 99999999 kB\nMemAvailable:    {available_mib << 10} kB\n"
        f"SwapFree:  {swap_mib << 10} kB\n"
    )


@pytest.mark.parametrize(
    ("available", "swap", "limits", "enough"),
    [
        (400, 0, {}, True),
        (300, 0, {}, False),
        (300, 100, {}, True),
        (4000, 0, {"": "max", "a/b": str(400 << 20)}, True),
        (4000, 0, {"a": str(300 << 20), "a/b": "max"}, False),
    ],
)
def test_memory_is_what_host_and_control_groups_allow(
    proc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    swap: int,
    limits: dict[str, str],
    enough: bool,
) -> None:
    """A container's limit ends a box as surely as a full machine does."""
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(_host, "_CGROUPS", groups)
    (proc / "meminfo").write_text(meminfo(available, swap))
    (proc / "self").mkdir()
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (groups / "a" / "b").mkdir(parents=True)
    for group, limit in limits.items():
        (groups / group / "memory.max").write_text(f"{limit}\n")
    if enough:
        assert _host.examine_memory(256) == "400 MiB available"
    else:
        with pytest.raises(HostError, match="300 MiB of memory are available, and a box of 256"):
            _host.examine_memory(256)


@pytest.mark.parametrize("text", [None, "", "MemAvailable: lots\nSwapFree: 0 kB\n", "x"])
def test_memory_that_cannot_be_told_stops_nobody(proc: Path, text: str | None) -> None:
    """It is the kernel that decides in the end."""
    if text is not None:
        (proc / "meminfo").write_text(text)

    assert _host.examine_memory(256) == "not known"


def test_downloader_is_needed_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what is missing, and the way that needs neither."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="without apt-get, apt-cache, dpkg-deb none can"):
        _host.examine_downloader()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tmp_path / name).touch(mode=0o755)
    assert "will be downloaded" in _host.examine_downloader()
    (tmp_path / "dpkg-deb").unlink()
    with pytest.raises(HostError, match="without dpkg-deb none") as caught:
        _host.examine_downloader()

    assert "BOXLITE_KERNEL" in caught.value.fix


def test_this_machine_passes_where_it_can_run_the_tests() -> None:
    """The real files have the form that is expected."""
    assert _host.examine_platform().startswith("Linux ")
    assert _host.examine_proc() == "mounted"
    assert _host.examine_pidfd() == "available"
    assert _host.examine_memory(1).endswith(" MiB available")
