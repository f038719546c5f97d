"""Finding a kernel for the guest, without ever installing one on the host.

In this order: the one that the user names; the newest one in ``/boot`` that
this user can read; the newest one that an earlier download left in the home.
Failing all, :mod:`boxlite._kit.download` gets Debian's or Ubuntu's package.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from boxlite._layout import HomeLayout

KERNEL_VARIABLE: Final = "BOXLITE_KERNEL"
_SYSTEM_BOOT: Final = Path("/boot")
_SYSTEM_MODULES: Final = Path("/lib/modules")

# The x86 boot protocol: the magic "HdrS" at 0x202, and at 0x20E the offset,
# less 0x200, of a text that begins with the release (Documentation/arch/x86/boot.rst).
_MAGIC_OFFSET: Final = 0x202
_VERSION_POINTER_OFFSET: Final = 0x20E
_VERSION_BYTES: Final = 256
_HEADER_BYTES: Final = 64 << 10


@attrs.frozen
class Kernel:
    """A kernel that a guest can boot.

    Args:
        image: The bzImage.
        release: What ``uname -r`` says under it.
        modules: The directory of its modules.
    """

    image: Path
    release: str
    modules: Path


def kernels_directory(home: HomeLayout) -> Path:
    """Return where downloaded kernels are kept, one directory per release."""
    return home.kit / "kernels"


def find_kernel(override: Path | None, home: HomeLayout) -> Kernel | None:
    """Return the kernel to use, or None if one has to be downloaded.

    Args:
        override: The bzImage that the user names; else ``$BOXLITE_KERNEL`` counts.
        home: Where downloaded kernels are.

    Raises:
        InvalidOptionError: The named kernel cannot be used; the error says why.
    """
    if override is not None:
        return _named("kernel", override)
    if named := os.environ.get(KERNEL_VARIABLE):
        return _named(KERNEL_VARIABLE, Path(named))
    return _newest(_SYSTEM_BOOT, _SYSTEM_MODULES) or newest_downloaded(home)


def newest_downloaded(
    home: HomeLayout, fits: Callable[[Kernel], bool] = lambda _: True
) -> Kernel | None:
    """Return the newest kernel that an earlier download left in the home, or None.

    Args:
        home: The home.
        fits: Tells whether a kernel will do.
    """
    found = sorted(kernels_directory(home).glob("*"), key=_version_key, reverse=True)
    for root in found:
        kernel = _newest(root / "boot", root / "lib" / "modules")
        if kernel is not None and fits(kernel):
            return kernel
    return None


def read_release(image: Path) -> str | None:
    """Return the release that a bzImage carries, or None if it is no bzImage.

    Raises:
        OSError: It cannot be read.
    """
    with image.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != b"HdrS":
        return None
    (pointer,) = struct.unpack_from("<H", header, _VERSION_POINTER_OFFSET)
    text = header[pointer + 0x200 : pointer + 0x200 + _VERSION_BYTES].split(b"\0")[0]
    words = text.decode("ascii", errors="replace").split()
    return words[0] if words else None


def _named(field: str, image: Path) -> Kernel:
    allowed = "a bzImage for x86-64 that this user can read"
    try:
        release = read_release(image)
    except OSError as exc:
        raise InvalidOptionError(field, str(image), f"{allowed} ({exc.strerror})") from exc
    if release is None:
        raise InvalidOptionError(field, str(image), f"{allowed} (this file is none)")
    candidates = (
        image.absolute().parent.parent / "lib" / "modules" / release,
        image.absolute().parent / "lib" / "modules" / release,
        _SYSTEM_MODULES / release,
    )
    for modules in candidates:
        if modules.is_dir():
            return Kernel(image.absolute(), release, modules)
    raise InvalidOptionError(
        field,
        str(image),
        "a bzImage whose modules are there; looked in " + ", ".join(map(str, candidates)),
    )


def _newest(boot: Path, modules: Path) -> Kernel | None:
    for image in sorted(boot.glob("vmlinuz-*"), key=_version_key, reverse=True):
        try:
            release = read_release(image)
        except OSError:
            continue  # Ubuntu keeps its kernels readable to root alone.
        if release is not None and (modules / release).is_dir():
            return Kernel(image, release, modules / release)
    return None


def _version_key(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]
