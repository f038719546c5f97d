"""What a box needs of this machine, looked at before anything is made or fetched.

A check says what it found or raises the error that the lack deserves.
``boxlite doctor`` shows all of them; starting a box stops at the first error.
With the verdict on KVM and the version of QEMU remembered in the home, all of it takes
some milliseconds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from ._errors import BoxliteError, HostError
from ._home import examine_home, prepare_home
from ._host import (
    examine_busybox,
    examine_disk,
    examine_downloader,
    examine_memory,
    examine_open_files,
    examine_pidfd,
    examine_platform,
    examine_proc,
)
from ._images.squashfs import find_tar2sqfs
from ._kit.kernel import find_kernel
from ._layout import HomeLayout
from ._vm.accel import choose_accelerator
from ._vm.disk import find_mke2fs
from ._vm.qemu import find_qemu, qemu_version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ._kit.kernel import Kernel
    from ._options import RuntimeOptions
    from ._vm.accel import AccelVerdict
    from ._vm.qemu import QemuVersion

    _Examine = Callable[["_Examination"], Awaitable["Check | str"]]

__all__ = ["Check", "Preflight", "Wanted", "preflight", "prepare_home", "run_checks"]


@attrs.frozen(kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What, in a word or two.
        ok: It is as it should be.
        required: Without it no box runs.
        found: What is there, or what is wrong; a sentence without a full stop.
        fix: What to do about it, if it is not ok.
    """

    name: str
    ok: bool
    required: bool
    found: str
    fix: str | None = None


@attrs.frozen(kw_only=True)
class Preflight:
    """What a box will run with.

    Args:
        qemu: The program.
        qemu_version: Its version.
        accelerator: KVM or TCG, and why.
        kernel: The guest's kernel; None if one has to be downloaded.
    """

    qemu: Path
    qemu_version: QemuVersion
    accelerator: AccelVerdict
    kernel: Kernel | None


@attrs.frozen(kw_only=True)
class Wanted:
    """What the machine is to be looked at for.

    Args:
        home: The home that is to be used. It need not exist.
        qemu: The QEMU program, if one is given.
        kernel: The kernel, if one is given.
        accelerator: What is asked for: see :class:`~boxlite.RuntimeOptions`.
        memory_mib: The memory that a box is to have, in MiB.
    """

    home: HomeLayout
    qemu: Path | None = None
    kernel: Path | None = None
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    memory_mib: int = 256

    @classmethod
    def by(cls, options: RuntimeOptions, *, memory_mib: int) -> Wanted:
        """Return what a runtime with these options wants for a box."""
        return cls(
            home=HomeLayout(options.home),
            qemu=options.qemu,
            kernel=options.kernel,
            accelerator=options.accelerator,
            memory_mib=memory_mib,
        )


@attrs.define
class _Examination:
    """What is asked for; and what the checks found, for the box to use."""

    wanted: Wanted

    qemu: Path = attrs.field(init=False)
    version: QemuVersion = attrs.field(init=False)
    accelerator: AccelVerdict = attrs.field(init=False)
    kernel: Kernel | None = attrs.field(init=False)


async def run_checks(wanted: Wanted) -> list[Check]:
    """Look at everything and say what was found: what is missing is data, not an error.

    Makes no home and fetches nothing. It may be cancelled at any time.
    """
    examination = _Examination(wanted)
    return [await _checked(name, examine, examination) for name, examine in _CHECKS]


async def _checked(name: str, examine: _Examine, examination: _Examination) -> Check:
    try:
        found = await examine(examination)
    except HostError as error:
        return Check(name=name, ok=False, required=True, found=error.problem, fix=error.fix)
    except BoxliteError as error:
        return Check(name=name, ok=False, required=True, found=str(error))
    if isinstance(found, str):
        return Check(name=name, ok=True, required=True, found=found)
    return found


async def preflight(wanted: Wanted) -> Preflight:
    """Return what a box will run with, or raise what stands in its way.

    Makes no home and fetches nothing. It may be cancelled at any time.

    Raises:
        HostError: This machine lacks something; says what, and how to get it.
        InvalidOptionError: The home, QEMU or kernel that was given cannot be used.
    """
    examination = _Examination(wanted)
    for _, examine in _CHECKS:
        await examine(examination)
    return Preflight(
        qemu=examination.qemu,
        qemu_version=examination.version,
        accelerator=examination.accelerator,
        kernel=examination.kernel,
    )


def _in_thread(examine: Callable[[_Examination], Check | str]) -> _Examine:
    """Return the check for Trio: even a look at a path may block, on a network."""

    async def examine_in_thread(examination: _Examination) -> Check | str:
        return await trio.to_thread.run_sync(examine, examination)

    return examine_in_thread


async def _examine_qemu(examination: _Examination) -> str:
    qemu = await trio.to_thread.run_sync(find_qemu, examination.wanted.qemu)
    version = await qemu_version(qemu, cache_dir=examination.wanted.home.root)
    examination.qemu, examination.version = qemu, version
    return f"{qemu}, version {version}"


async def _examine_accelerator(examination: _Examination) -> Check:
    wanted = examination.wanted.accelerator
    verdict = await choose_accelerator(wanted, cache_dir=examination.wanted.home.root)
    examination.accelerator = verdict
    # Without KVM a box is slow, not impossible: worth a note, and no more.
    return Check(
        name=_ACCELERATOR,
        ok=verdict.kvm_usable or wanted == "tcg",
        required=wanted == "kvm",
        found=f"{verdict.accelerator.value}: {verdict.reason}",
        fix=verdict.fix,
    )


def _examine_kernel(examination: _Examination) -> str:
    kernel = find_kernel(examination.wanted.kernel, examination.wanted.home)
    examination.kernel = kernel
    return examine_downloader() if kernel is None else os.fspath(kernel.image)


def _examine_images(_: _Examination) -> Check | str:
    try:
        return f"{find_tar2sqfs()}, {find_mke2fs()}"
    except HostError as error:
        # The built-in image needs neither.
        return Check(name=_IMAGES, ok=False, required=False, found=error.problem, fix=error.fix)


_ACCELERATOR: Final = "accelerator"
_IMAGES: Final = "images"

#: What the others stand on comes first, what takes longest last.
_CHECKS: Final[tuple[tuple[str, _Examine], ...]] = (
    ("platform", _in_thread(lambda _: examine_platform())),
    ("/proc", _in_thread(lambda _: examine_proc())),
    ("pidfd", _in_thread(lambda _: examine_pidfd())),
    ("open files", _in_thread(lambda _: examine_open_files())),
    ("home", _in_thread(lambda examination: examine_home(examination.wanted.home))),
    ("disk", _in_thread(lambda examination: examine_disk(examination.wanted.home))),
    ("memory", _in_thread(lambda examination: examine_memory(examination.wanted.memory_mib))),
    ("busybox", _in_thread(lambda _: examine_busybox())),
    (_IMAGES, _in_thread(_examine_images)),
    ("kernel", _in_thread(_examine_kernel)),
    ("QEMU", _examine_qemu),
    (_ACCELERATOR, _examine_accelerator),
)
