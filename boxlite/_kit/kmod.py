"""Kernel modules: finding them, and the order in which they can be loaded.

A package that was only unpacked has no ``modules.dep``, so dependencies are
read from the modules themselves: each says ``depends=a,b`` in its ``.modinfo``
section (kernel: scripts/mod/modpost.c). Names use ``_`` where files may use ``-``.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from boxlite._errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DEPENDS = re.compile(rb"(?:\A|\0)depends=([^\0]*)\0")
#: Beside the modules: those that are part of the kernel image, one path a line.
BUILTIN_LIST: Final = "modules.builtin"
_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst")


def index_modules(directory: Path) -> dict[str, Path]:
    """Return every module below a directory by its name."""
    found = {}
    for path in sorted(directory.rglob("*.ko*")):
        if path.name.endswith(_SUFFIXES):
            found[_name(path.name)] = path
    return found


def _name(path: str) -> str:
    return path.rpartition("/")[2].split(".")[0].replace("-", "_")


def missing_modules(wanted: Iterable[str], index: Mapping[str, Path], directory: Path) -> list[str]:
    """Return those that a kernel has neither as a module nor built in, as far as can be told.

    Args:
        wanted: Names of modules.
        index: What :func:`index_modules` found.
        directory: Where the kernel's modules are. Without a list of what is built
            in there, nothing counts as missing.
    """
    try:
        lines = (directory / BUILTIN_LIST).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    builtin = {_name(line) for line in lines}
    return [name for name in wanted if name not in index and name not in builtin]


def read_module(path: Path) -> bytes:
    """Return a module as the kernel loads it, decompressed.

    Raises:
        HostError: It is compressed with zstd and there is no ``zstd`` program.
    """
    if path.name.endswith(".xz"):
        return lzma.decompress(path.read_bytes())
    if path.name.endswith(".zst"):
        if shutil.which("zstd") is None:
            raise HostError(
                f"the kernel module {path} is compressed and there is no zstd program",
                fix="Install it: apt-get install zstd",
            )
        done = subprocess.run(["zstd", "-dcq", path], stdout=subprocess.PIPE, check=True)
        return done.stdout
    return path.read_bytes()


def load_order(wanted: Iterable[str], index: Mapping[str, Path]) -> dict[str, bytes]:
    """Return modules and all that they depend on, in an order in which they load.

    A module that is not there is built into the kernel, or not needed: the
    guest finds out which.

    Args:
        wanted: Names of modules.
        index: What :func:`index_modules` found.
    """
    ordered: dict[str, bytes] = {}
    visiting: set[str] = set()

    def visit(name: str) -> None:
        path = index.get(name)
        if path is None or name in ordered or name in visiting:
            return
        visiting.add(name)
        data = read_module(path)
        found = _DEPENDS.search(data)
        for dependency in found.group(1).decode("ascii").split(",") if found else ():
            visit(dependency.replace("-", "_"))
        ordered[name] = data

    for name in wanted:
        visit(name)
    return ordered
