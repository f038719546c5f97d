"""Downloading a kernel package, with programs of our own in the place of apt's."""

from __future__ import annotations

import lzma
import os
import struct
from typing import TYPE_CHECKING

import pytest
import trio

from boxlite import HostError
from boxlite._kit import fetch_kernel, find_kernel
from boxlite._kit.kernel import kernels_directory
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RELEASE = "6.1.0-56-cloud-amd64"


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A home with its directories."""
    home = HomeLayout(tmp_path / "home")
    for directory in (home.root, home.kit, home.tmp):
        directory.mkdir()
    return home


@pytest.fixture(autouse=True)
def no_other_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine has is not these tests' business."""
    monkeypatch.delenv("BOXLITE_KERNEL", raising=False)
    monkeypatch.setattr("boxlite._kit.kernel._SYSTEM_BOOT", tmp_path / "no-boot")
    monkeypatch.setattr("boxlite._kit.kernel._SYSTEM_MODULES", tmp_path / "no-modules")


class Apt:
    """The directory on PATH that has the programs, and the package they deal in.

    Args:
        root: Where it may make files.
    """

    def __init__(self, root: Path) -> None:
        self.programs = root / "bin"
        self.package = root / "package"
        self.log = root / "log"
        self.programs.mkdir()
        self.knows(
            "linux-image-cloud-amd64\n"
            f"  Depends: linux-image-{RELEASE}\n"
            f" |Depends: linux-image-{RELEASE}-unsigned\n"
            f"linux-image-{RELEASE}\n  Depends: kmod\n  Depends: linux-base"
        )
        self.program("apt-get", "for last; do :; done; touch $last.deb")
        self.program("dpkg-deb", f"cp -r {self.package}/. $3")

    def program(self, name: str, script: str) -> None:
        """Make a program that notes how it was called, then does what a shell script says."""
        path = self.programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{script}\n')
        path.chmod(0o755)

    def knows(self, depends: str, meta: str = "linux-image-cloud-amd64") -> None:
        """Let apt-cache know one meta package."""
        self.program(
            "apt-cache",
            f'test "$4" = {meta} || {{ echo "E: No packages found" >&2; exit 100; }}\n'
            f"cat <<END\n{depends}\nEND",
        )

    def calls(self, name: str) -> list[str]:
        """Return how a program was called, its name left out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """A machine whose apt has one kernel."""
    apt = Apt(tmp_path)
    monkeypatch.setenv("PATH", f"{apt.programs}{os.pathsep}{os.environ['PATH']}")
    modules = apt.package / "lib" / "modules" / RELEASE / "kernel"
    modules.mkdir(parents=True)
    (apt.package / "boot").mkdir()
    image = bytearray(0x600)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    image[0x500 : 0x500 + len(RELEASE) + 1] = f"{RELEASE} ".encode()
    (apt.package / "boot" / f"vmlinuz-{RELEASE}").write_bytes(image)
    (modules / "virtio_blk.ko.xz").write_bytes(lzma.compress(b"\0depends=virtio\0"))
    (modules / "virtio.ko").write_bytes(b"\0depends=\0")
    (modules / "floppy.ko").write_bytes(b"\0depends=\0")
    (modules.parent / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return apt


async def test_a_kernel_is_unpacked_into_the_home(home: HomeLayout, apt: Apt) -> None:
    """The image, and of the modules those that a guest could want, decompressed."""
    kernel = await fetch_kernel(home)

    assert kernel == find_kernel(None, home)
    assert kernel.release == RELEASE
    assert {path.name for path in kernel.modules.iterdir()} == {
        "modules.builtin",
        "virtio.ko",
        "virtio_blk.ko",
    }
    assert (kernel.modules / "virtio_blk.ko").read_bytes() == b"\0depends=virtio\0"
    assert list(home.tmp.iterdir()) == []
    (download,) = apt.calls("apt-get")
    assert download.endswith(f"download linux-image-{RELEASE}")


async def test_a_distribution_may_have_the_modules_in_a_package_of_their_own(
    home: HomeLayout, apt: Apt
) -> None:
    """As Ubuntu has; nothing else that the kernel depends on is downloaded."""
    apt.knows(
        "linux-image-virtual\n  Depends: linux-image-6.8.0-31-generic\n"
        "linux-image-6.8.0-31-generic\n  Depends: linux-modules-6.8.0-31-generic\n"
        " |Recommends: grub-pc\n  Suggests: linux-image-6.8.0-31-generic-dbg\n",
        meta="linux-image-virtual",
    )
    await fetch_kernel(home)
    (download,) = apt.calls("apt-get")
    assert download.split()[-3:] == [
        "download",
        "linux-image-6.8.0-31-generic",
        "linux-modules-6.8.0-31-generic",
    ]


async def test_modules_below_usr_are_found(home: HomeLayout, apt: Apt) -> None:
    """Where /lib is a link, newer packages say so."""
    (apt.package / "usr").mkdir()
    (apt.package / "lib").rename(apt.package / "usr" / "lib")
    kernel = await fetch_kernel(home)
    assert (kernel.modules / "virtio.ko").exists()


async def test_callers_share_one_download(home: HomeLayout, apt: Apt) -> None:
    """So that no kernel is replaced under a box that is about to boot it."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(fetch_kernel, home)
    assert len(apt.calls("apt-get")) == 1


async def test_half_a_kernel_is_replaced(home: HomeLayout, apt: Apt) -> None:
    """What does not count as a kernel must not stay in the way of one."""
    (kernels_directory(home) / RELEASE / "boot").mkdir(parents=True)
    (kernels_directory(home) / RELEASE / "boot" / f"vmlinuz-{RELEASE}").touch()
    assert (await fetch_kernel(home)).modules.is_dir()


@pytest.mark.parametrize(
    ("harm", "problem", "fix"),
    [
        (
            lambda apt: apt.knows("", meta="nothing"),
            "apt knows no kernel package",
            "apt-get update",
        ),
        (
            lambda apt: apt.program("apt-get", "echo 'E: Failed to fetch it' >&2; exit 100"),
            "apt-get failed: E: Failed to fetch it",
            "apt-get update",
        ),
        (
            lambda apt: apt.program("dpkg-deb", "exit 2"),
            "dpkg-deb failed: .*status 2",
            "BOXLITE_KERNEL",
        ),
        (
            lambda apt: apt.program("dpkg-deb", "mkdir $3/boot; touch $3/boot/vmlinuz-1"),
            "no kernel that boxlite understands",
            "BOXLITE_KERNEL",
        ),
    ],
    ids=["unknown", "no network", "broken package", "no kernel in it"],
)
async def test_what_goes_wrong_is_told_with_a_way_out(
    home: HomeLayout, apt: Apt, harm: Callable[[Apt], object], problem: str, fix: str
) -> None:
    """One error each, and nothing left in the home."""
    harm(apt)
    with pytest.raises(HostError, match=problem) as caught:
        await fetch_kernel(home)
    assert fix in caught.value.fix
    assert list(home.tmp.iterdir()) == []
    assert find_kernel(None, home) is None


async def test_without_apt_the_user_is_asked_for_a_kernel(
    home: HomeLayout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another distribution is not a bug."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="without apt-get") as caught:
        await fetch_kernel(home)
    assert "BOXLITE_KERNEL" in caught.value.fix


async def test_a_home_that_cannot_be_written_is_named(home: HomeLayout, apt: Apt) -> None:
    """A full disk looks the same."""
    home.tmp.rmdir()
    with pytest.raises(HostError, match=f"{home.root}: No such file"):
        await fetch_kernel(home)
    assert apt.calls("apt-get") == []


@pytest.mark.parametrize("program", ["apt-cache", "apt-get", "dpkg-deb"])
async def test_cancelling_leaves_nothing(home: HomeLayout, apt: Apt, program: str) -> None:
    """At whichever program; its children, which go on writing, are gone as well."""
    apt.program(program, "(while :; do date > file.$$; rm -f file.$$; done) & wait")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_kernel, home)
            while not apt.calls(program):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    assert list(home.tmp.iterdir()) == []
    assert list(home.kit.iterdir()) == []
