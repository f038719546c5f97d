"""Getting a kernel package: downloaded and unpacked into the home, never installed.

apt verifies what it downloads against the signed package lists of the system,
so nothing here does. It needs no root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import HostError

from .kernel import Kernel, kernels_directory, read_release
from .kmod import index_modules, load_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from boxlite._layout import HomeLayout

#: Meta packages that depend on the newest kernel: Debian's for clouds, which is
#: small and has what a VM needs, Debian's for everything, Ubuntu's for VMs.
META_PACKAGES: Final = ("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual")

#: What is kept of a package's thousands of modules, beside what these depend on.
KEPT_MODULES: Final = (
    *("virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng"),
    *("virtio_balloon", "virtiofs", "vmw_vsock_virtio_transport", "9p", "9pnet_virtio"),
    *("squashfs", "erofs", "overlay", "ext4", "fuse"),
)

_RELEASE_PACKAGE = re.compile(r"linux-(?:image|modules)-\d[\w.+~-]*\Z")
_PACKAGE_MAX: Final = 8


async def fetch_kernel(home: HomeLayout) -> Kernel:
    """Download the distribution's kernel package and unpack it into the home.

    Cancelling it ends the download and leaves nothing behind; what it publishes
    is complete.

    Raises:
        HostError: There is no apt, no such package, or the download failed.
    """
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(
                f"no kernel was found, and without {program} none can be downloaded",
                fix="Name one: RuntimeOptions.kernel or BOXLITE_KERNEL.",
            )
    packages = await _kernel_packages()
    with _workshop(home) as work:
        archives, root, result = work / "archives", work / "root", work / "result"
        for directory in (archives, root, result):
            directory.mkdir()
        await _run(
            # Root's apt would hand the download to the user _apt, who cannot write here.
            ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", *packages],
            cwd=archives,
        )
        for archive in sorted(archives.glob("*.deb")):
            await _run(["dpkg-deb", "--extract", str(archive), str(root)], cwd=work)
        release = await trio.to_thread.run_sync(_select, root, result)
        return _publish(result, kernels_directory(home) / release, release)


async def _kernel_packages() -> list[str]:
    for meta in META_PACKAGES:
        done = await trio.run_process(
            ["apt-cache", "depends", "--recurse", "--important", meta],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        words = re.findall(r"[\w.+~-]+", done.stdout.decode(errors="replace"))
        found = sorted({word for word in words if _RELEASE_PACKAGE.match(word)})
        # "-unsigned" and "-dbg" are alternatives and extras, not the kernel.
        found = [name for name in found if not name.endswith(("-unsigned", "-dbg"))]
        if found:
            return found[:_PACKAGE_MAX]
    raise HostError(
        "no kernel was found, and apt knows no kernel package",
        fix="Run apt-get update, or name a kernel: RuntimeOptions.kernel or BOXLITE_KERNEL.",
    )


async def _run(command: Sequence[str], *, cwd: Path) -> None:
    try:
        await trio.run_process(
            command,
            cwd=cwd,
            capture_stdout=True,
            capture_stderr=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip().splitlines()
        raise HostError(
            f"the kernel package could not be had: {' '.join(command[:4])} ... failed:"
            f" {said[-1] if said else f'exit code {exc.returncode}'}",
            fix="Run apt-get update and try again, or name a kernel: BOXLITE_KERNEL.",
        ) from exc


@contextmanager
def _workshop(home: HomeLayout) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="kernel-", dir=home.tmp))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _select(root: Path, result: Path) -> str:
    """Copy the image and the modules that are kept; return the release."""
    for image in sorted(root.glob("boot/vmlinuz-*")):
        release = read_release(image)
        modules = root / "lib" / "modules" / (release or "")
        if not modules.is_dir():
            modules = root / "usr" / "lib" / "modules" / (release or "")
        if release is None or not modules.is_dir():
            continue
        index = index_modules(modules)
        kept = result / "lib" / "modules" / release
        kept.mkdir(parents=True)
        for name, data in load_order(KEPT_MODULES, index).items():
            (kept / f"{name}.ko").write_bytes(data)
        (result / "boot").mkdir()
        shutil.copyfile(image, result / "boot" / f"vmlinuz-{release}")
        return release
    raise HostError(
        "the kernel package has no kernel that boxlite understands",
        fix="Name one: RuntimeOptions.kernel or BOXLITE_KERNEL.",
    )


def _publish(result: Path, place: Path, release: str) -> Kernel:
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    result.rename(place)
    return Kernel(
        place / "boot" / f"vmlinuz-{release}", release, place / "lib" / "modules" / release
    )
