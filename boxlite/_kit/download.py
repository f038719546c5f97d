"""Getting a kernel package: downloaded and unpacked into the home, never installed.

apt verifies what it downloads against the signed package lists of the system,
so nothing here does. It needs no root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from boxlite._errors import HostError

from .kernel import Kernel, kernels_directory, newest_downloaded, read_release
from .kmod import BUILTIN_LIST, index_modules, load_order
from .workshop import last_words, open_workshop, run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from boxlite._layout import HomeLayout

#: Meta packages that depend on the newest kernel: Debian's for clouds, which is
#: small and has what a VM needs, Debian's for everything, Ubuntu's for VMs.
META_PACKAGES: Final = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual")
#: Of these, the ones that can have volumes. They boot half as fast again.
SHARING_META_PACKAGES: Final = META_PACKAGES[1:]

#: What is kept of a package's thousands of modules, beside what these depend on.
KEPT_MODULES: Final = (
    *("virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng"),
    *("virtio_balloon", "virtiofs", "vmw_vsock_virtio_transport", "9p", "9pnet_virtio"),
    *("squashfs", "erofs", "overlay", "ext4", "crc32c_generic", "fuse"),
)

_RELEASE_PACKAGE = re.compile(r"linux-(?:image|modules)-\d[\w.+~-]*\Z")
_PACKAGE_MAX: Final = 8

# One download at a time per home; entries go when nobody waits any more.
_downloads: WeakValueDictionary[Path, trio.Lock] = WeakValueDictionary()


async def fetch_kernel(
    home: HomeLayout,
    fits: Callable[[Kernel], bool] = lambda _: True,
    *,
    packages: Sequence[str] = META_PACKAGES,
) -> Kernel:
    """Download the distribution's kernel package and unpack it into the home.

    Of several callers one downloads, and the others get what it got. Cancelling
    it ends the download and leaves nothing behind; what it publishes is complete.

    Args:
        home: The home that keeps the kernel.
        fits: Tells whether a kernel that was downloaded before will do.
        packages: Meta packages, one of which depends on a kernel that will.

    Raises:
        HostError: There is no apt, no such package, or the download failed.
    """
    lock = _downloads.setdefault(home.root, trio.Lock())
    async with lock:
        return newest_downloaded(home, fits) or await _download(home, packages)


async def _download(home: HomeLayout, metas: Sequence[str]) -> Kernel:
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(
                f"no kernel was found, and without {program} none can be downloaded",
                fix="Name one: RuntimeOptions.kernel or BOXLITE_KERNEL.",
            )
    try:
        with open_workshop(home, "kernel") as work:
            archives, root, result = work / "archives", work / "root", work / "result"
            for directory in (archives, root, result):
                directory.mkdir()
            packages = await _kernel_packages(work, metas)
            await run_program(
                # Root's apt would hand the download to the user _apt, who cannot write here.
                ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", *packages],
                cwd=archives,
            )
            for archive in sorted(archives.glob("*.deb")):
                await run_program(["dpkg-deb", "--extract", str(archive), str(root)], cwd=work)
            release = await trio.to_thread.run_sync(_select, root, result)
            return _publish(result, kernels_directory(home) / release, release)
    except subprocess.CalledProcessError as exc:
        raise HostError(
            f"the kernel package could not be had: {exc.cmd[0]} failed: {last_words(exc)}",
            fix="Run apt-get update and try again, or name a kernel: BOXLITE_KERNEL.",
        ) from exc
    except OSError as exc:
        raise HostError(
            f"the kernel package could not be kept in {home.root}: {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc


async def _kernel_packages(work: Path, metas: Sequence[str]) -> Sequence[str]:
    """Return the packages to download: the kernel and, on Ubuntu, its modules.

    Raises:
        HostError: apt knows none.
    """
    for meta in metas:
        try:
            told = await run_program(
                ["apt-cache", "depends", "--recurse", "--important", meta], cwd=work
            )
        except subprocess.CalledProcessError:
            continue  # Another distribution's name: apt has never heard of it.
        words = set(re.findall(r"[\w.+~-]+", told.decode(errors="replace")))
        # "-unsigned" and "-dbg" are alternatives and extras, not the kernel.
        found = sorted(
            word
            for word in words
            if _RELEASE_PACKAGE.match(word) and not word.endswith(("-unsigned", "-dbg"))
        )
        if found:
            return found[:_PACKAGE_MAX]
    raise HostError(
        "no kernel was found, and apt knows no kernel package",
        fix="Run apt-get update, or name a kernel: RuntimeOptions.kernel or BOXLITE_KERNEL.",
    )


def _select(root: Path, result: Path) -> str:
    """Copy the image and the modules that are kept; return the release."""
    for image in sorted(root.glob("boot/vmlinuz-*")):
        release = read_release(image)
        if release is None:
            continue
        # The second where /lib is a link to /usr/lib, and packages know it.
        for library in (root / "lib", root / "usr" / "lib"):
            modules = library / "modules" / release
            if modules.is_dir():
                _keep(image, modules, result, release)
                return release
    raise HostError(
        "the kernel package has no kernel that boxlite understands",
        fix="Name one: RuntimeOptions.kernel or BOXLITE_KERNEL.",
    )


def _keep(image: Path, modules: Path, result: Path, release: str) -> None:
    kept = result / "lib" / "modules" / release
    boot = result / "boot"
    kept.mkdir(parents=True)
    boot.mkdir()
    for name, data in load_order(KEPT_MODULES, index_modules(modules)).items():
        _write(kept / f"{name}.ko", data)
    if (modules / BUILTIN_LIST).exists():
        _write(kept / BUILTIN_LIST, (modules / BUILTIN_LIST).read_bytes())
    _write(boot / f"vmlinuz-{release}", image.read_bytes())


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole on the disk before its directory is published."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(result: Path, place: Path, release: str) -> Kernel:
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        # What is there did not count as a kernel, or nothing would have been downloaded.
        shutil.rmtree(place)
    result.rename(place)
    return Kernel(
        place / "boot" / f"vmlinuz-{release}", release, place / "lib" / "modules" / release
    )
