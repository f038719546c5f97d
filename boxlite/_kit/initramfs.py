"""The guest's root file system: one uncompressed cpio archive.

It is the built-in image as well: Python at /usr/bin/python3 and busybox for the
rest. It is not compressed, because under software emulation decompressing costs
more than loading.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs

from boxlite._errors import HostError

from . import python_root
from .busybox import find_busybox
from .cpio import CpioWriter
from .kmod import index_modules, load_order, missing_modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Changed whenever the same inputs would give another archive.
FORMAT: Final = 3
#: What the agent loads before it can talk to the host; no box does without.
AGENT_MODULES: Final = ("virtio_pci", "virtio_console")
#: What a box with an image needs as well: file systems, loaded with those above
#: (ext4 asks for its checksum by a name that no dependency shows);
IMAGE_FILE_SYSTEMS: Final = ("squashfs", "overlay", "crc32c_generic", "ext4")
#: and the driver of its disks, loaded when it has some.
DISK_MODULES: Final = ("virtio_blk",)
#: What a box with volumes needs.
VOLUME_MODULES: Final = ("9pnet_virtio", "9p")
#: As the agent names the groups in which it loads them.
_GROUPS: Final = {
    "boot": (*AGENT_MODULES, *IMAGE_FILE_SYSTEMS),
    "disks": DISK_MODULES,
    "volumes": VOLUME_MODULES,
}
_MODULES: Final = tuple(name for names in _GROUPS.values() for name in names)
MODULES_DIRECTORY: Final = f"{python_root.AGENT_ROOT}/modules"

_PACKAGE: Final = Path(__file__).parent.parent
_AGENT_SOURCES: Final = (
    *("_bulk.py", "_wire.py", "_tree"),
    *("_rpc/__init__.py", "_rpc/_generated", "guest"),
)

_INIT: Final = f"""#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {python_root.AGENT_ROOT!r})
from boxlite.guest.__main__ import main
main()
"""

_ETC: Final = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "hostname": "box\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "shells": "/bin/sh\n",
    "os-release": 'NAME="boxlite built-in image"\nID=boxlite\nPRETTY_NAME="boxlite"\n',
}

_DIRECTORIES: Final = (
    *("/bin", "/dev", "/etc", "/home", "/lib", "/lib64", "/mnt", "/opt", "/proc", "/run"),
    *("/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin"),
    *("/usr/local/lib", "/usr/local/sbin", "/usr/sbin", "/var", "/var/log", "/var/run"),
)


@attrs.frozen
class Recipe:
    """Everything that an initramfs is made from, found but not yet read.

    Args:
        modules: Where the kernel's modules are.
        index: Each of them by its name.
        busybox: A statically linked busybox.
    """

    modules: Path
    index: Mapping[str, Path] = attrs.field(repr=False)
    busybox: Path

    @classmethod
    def find(cls, modules: Path) -> Recipe:
        """Return the recipe for a kernel's modules on this machine.

        Raises:
            HostError: Something that it needs is not there.
        """
        index = index_modules(modules)
        if missing := missing_modules(AGENT_MODULES, index, modules):
            raise HostError(
                f"the kernel {modules.name} lacks {' and '.join(missing)}, which a guest needs",
                fix="Name another kernel: RuntimeOptions.kernel or BOXLITE_KERNEL.",
            )
        return cls(modules, index, find_busybox())

    def key(self) -> str:
        """Return a name for what building would give, without building it.

        Our own sources count by content, everything else by size and time: that
        takes milliseconds, and every start of a box asks.
        """
        digest = hashlib.sha256()
        stated = [
            self.busybox,
            python_root.interpreter(),
            *(self.index[name] for name in _MODULES if name in self.index),
            *(path for _, path in python_root.stdlib_extensions()),
            *(path for _, path in python_root.distribution_files() if path.name == "METADATA"),
        ]
        facts = [
            FORMAT,
            sys.version,
            self.modules.name,
            shutil.which("strip") is not None,
            *((str(path), *_size_and_time(path)) for path in stated),
        ]
        digest.update(json.dumps(facts).encode())
        for guest_path, path in _agent_files():
            digest.update(f"\0{guest_path}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def build(self, out: BinaryIO) -> None:
        """Write the archive.

        Raises:
            HostError: A part of it cannot be had on this machine.
        """
        tree = Tree(CpioWriter(out))
        for path in _DIRECTORIES:
            tree.directory(path)
        tree.directory("/root", mode=0o700)
        tree.directory("/tmp", mode=0o1777)  # noqa: S108 - the guest's
        tree.writer.character_device("/dev/console", 5, 1)
        tree.writer.character_device("/dev/null", 1, 3, mode=0o666)
        for name, text in _ETC.items():
            tree.file(f"/etc/{name}", text.encode())
        # What may be missing comes before what takes long.
        self._add_modules(tree)
        self._add_busybox(tree)
        _add_python(tree)
        tree.file("/init", _INIT.encode(), mode=0o755)
        tree.writer.finish()

    def _add_busybox(self, tree: Tree) -> None:
        tree.file("/bin/busybox", self.busybox.read_bytes(), mode=0o755)
        done = subprocess.run(
            [self.busybox, "--list-full"], stdout=subprocess.PIPE, text=True, check=True
        )
        for applet in sorted(done.stdout.split()):
            if applet != "bin/busybox":
                tree.symlink(f"/{applet}", "/bin/busybox")

    def _add_modules(self, tree: Tree) -> None:
        there: set[str] = set()
        for group, wanted in _GROUPS.items():
            ordered = load_order(wanted, self.index)
            for name, data in ordered.items():
                tree.file(f"{MODULES_DIRECTORY}/{name}.ko", data)
            # What an earlier group has loaded need not be tried again.
            names = "".join(f"{name}.ko\n" for name in ordered if name not in there)
            tree.file(f"{MODULES_DIRECTORY}/{group}.order", names.encode())
            if group == "boot":
                there |= ordered.keys()


class Tree:
    """An archive in which directories come by themselves, and each path once."""

    def __init__(self, writer: CpioWriter) -> None:
        self.writer = writer
        self._made: set[str] = {"/"}

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        """Add a directory and those above it, unless they are there."""
        if path not in self._made:
            self.directory(str(PurePosixPath(path).parent))
            self._made.add(path)
            self.writer.directory(path, mode=mode)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a file, unless its path is taken."""
        if self._take(path):
            self.writer.file(path, data, mode=mode)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link, unless its path is taken."""
        if self._take(path):
            self.writer.symlink(path, target)

    def _take(self, path: str) -> bool:
        if path in self._made:
            return False
        self.directory(str(PurePosixPath(path).parent))
        self._made.add(path)
        return True


def _add_python(tree: Tree) -> None:
    program = python_root.interpreter()
    tree.file("/usr/bin/python3", _stripped(program), mode=0o755)
    tree.symlink("/usr/bin/python", "python3")
    tree.symlink(f"/usr/bin/{Path(python_root.STDLIB).name}", "python3")
    binaries = [program]
    for guest_path, path in (
        *python_root.stdlib_sources(),
        *python_root.stdlib_extensions(),
        *python_root.distribution_files(),
        *_agent_files(),
    ):
        if path.suffix == ".py":
            tree.file(f"{guest_path}c", python_root.compiled(path, guest_path))
        elif path.suffix == ".so":
            binaries.append(path)
            tree.file(guest_path, _stripped(path), mode=0o755)
        else:
            tree.file(guest_path, path.read_bytes())
    # The package's own __init__ is the host's face; the agent must not import it.
    tree.file(f"{python_root.AGENT_ROOT}/boxlite/__init__.py", b"")
    for guest_path, path in sorted(python_root.shared_libraries(binaries).items()):
        tree.file(guest_path, _stripped(path), mode=0o755)


def _agent_files() -> Iterator[tuple[str, Path]]:
    for name in _AGENT_SOURCES:
        place = _PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield f"{python_root.AGENT_ROOT}/boxlite/{path.relative_to(_PACKAGE)}", path


def _stripped(path: Path) -> bytes:
    """Return a binary without the symbols that only a debugger reads, if that can be done."""
    strip = shutil.which("strip")
    if strip is None:
        return path.read_bytes()
    with tempfile.NamedTemporaryFile() as out:
        command = [strip, "--strip-unneeded", "-o", out.name, str(path)]
        done = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        # strip replaces the file, so it has to be opened again by name.
        return (Path(out.name) if done.returncode == 0 else path).read_bytes()


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    assert stat.S_ISREG(found.st_mode), path
    return found.st_size, found.st_mtime_ns
