"""The templates of a home: machines that wait, saved to be restored as boxes.

A template is a directory of files: the memory, which a box maps privately, the state of
everything else, and a description, without which the others are not believed. That of
an image has a disk as well: what is on it fits the memory, so a box begins with a copy.
The directory is made elsewhere and moved here whole.

Its name is a key: a hash of everything that shapes the machine. So a template
never fits by chance, and one that fits nothing any more is only old.

Boxes of one template have the addresses of their kernel and of their agent in
common, which were chosen when it booted; what a command gets is chosen anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from boxlite._evidence import read_excerpt
from boxlite._sparse import copy_sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from boxlite._layout import HomeLayout

#: Templates that a home keeps: those that were used last. Each holds the memory that its
#: guest had touched, 160 MB or so of disk.
TEMPLATES_KEPT: Final = 8
MEMORY_FILE: Final = "memory"
STATE_FILE: Final = "state"
DISK_FILE: Final = "disk"
DESCRIPTION_FILE: Final = "template.json"

_FORMAT: Final = 2
_DESCRIPTION_BYTES: Final = 64 << 10
#: A state has some hundred KiB.
_STATE_BYTES: Final = 64 << 20


@attrs.frozen(kw_only=True)
class TemplateInfo:
    """A template, as a listing shows it.

    Args:
        key: Its name.
        machine: What shapes the machine, for people.
        made_at: When it was made, in Unix seconds.
        used_at: When a box was last started from it, in Unix seconds.
        disk_bytes: What it takes on the disk.
    """

    key: str
    machine: Mapping[str, str]
    made_at: float
    used_at: float
    disk_bytes: int


class Template:
    """A verified template, open. It can be used even when its directory is gone.

    Attributes:
        key: Its name.
        memory_fd: Its memory.
        state_fd: The state of everything else. It is read once, from its beginning.
        disk_fd: The disk that goes with it, if there is one.
    """

    def __init__(self, key: str, memory_fd: int, state_fd: int, disk_fd: int | None = None) -> None:
        self.key = key
        self.memory_fd = memory_fd
        self.state_fd = state_fd
        self.disk_fd = disk_fd
        self._closed = False

    def close(self) -> None:
        """Close its files. Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self.memory_fd)
            os.close(self.state_fd)
            if self.disk_fd is not None:
                os.close(self.disk_fd)


def template_key(machine: Mapping[str, str]) -> str:
    """Return the name of the template of a machine.

    Args:
        machine: Everything that shapes it.
    """
    text = json.dumps({"format": _FORMAT, **machine}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TemplateDraft:
    """A template in the making: open, empty files in a directory of their own.

    Attributes:
        disk: Where its disk is to be made, if it is to have one.

    Args:
        home: It is made in this home's ``tmp``.
        memory_mib: The size of the machine's memory.

    Raises:
        OSError: There is no room, or no right.
    """

    def __init__(self, home: HomeLayout, *, memory_mib: int) -> None:
        self._home = home
        with ExitStack() as undo:
            self._directory = Path(tempfile.mkdtemp(prefix="template-", dir=home.tmp))
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.memory_fd = os.open(self._directory / MEMORY_FILE, flags, 0o600)
            undo.callback(os.close, self.memory_fd)
            self.state_fd = os.open(self._directory / STATE_FILE, flags, 0o600)
            undo.callback(os.close, self.state_fd)
            os.truncate(self.memory_fd, memory_mib << 20)
            self.disk = self._directory / DISK_FILE
            self._undo = undo.pop_all()

    def begin_with(self, base: Template) -> None:
        """Begin with a copy of another template's memory; blocks while it is made.

        Raises:
            OSError: There is no room.
        """
        copy_sparse(base.memory_fd, self.memory_fd)

    def publish(self, machine: Mapping[str, str]) -> None:
        """Make it a template of the home; blocks until it is on the disk.

        Args:
            machine: Everything that shapes the machine.

        Raises:
            OSError: It could not be written.
        """
        disk_fd: int | None = None
        with ExitStack() as files:
            if self.disk.exists():
                disk_fd = os.open(self.disk, os.O_RDONLY | os.O_CLOEXEC)
                files.callback(os.close, disk_fd)
            self._publish(machine, disk_fd)

    def _publish(self, machine: Mapping[str, str], disk_fd: int | None) -> None:
        for fd in (self.memory_fd, self.state_fd, disk_fd):
            if fd is not None:
                os.fsync(fd)
        description = {
            "format": _FORMAT,
            "machine": dict(machine),
            "made_at": time.time(),
            **_measured(self.memory_fd, self.state_fd, disk_fd),
        }
        text = json.dumps(description, indent=1)
        (self._directory / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        key = template_key(machine)
        remove_template(self._home, key)
        self._directory.rename(self._home.templates / key)

    def close(self) -> None:
        """Close the files, and remove them unless they were published."""
        self._undo.close()


def open_template(home: HomeLayout, machine: Mapping[str, str]) -> Template | None:
    """Return the template of a machine, verified; None if there is none that can be trusted.

    One that is damaged is removed.

    Args:
        home: The home.
        machine: Everything that shapes the machine.
    """
    key = template_key(machine)
    directory = home.templates / key
    description = _describe(directory)
    try:
        memory_fd = os.open(directory / MEMORY_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        remove_template(home, key)
        return None
    try:
        state_fd = os.open(directory / STATE_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        os.close(memory_fd)
        remove_template(home, key)
        return None
    disk_fd: int | None = None
    with suppress(OSError):
        disk_fd = os.open(directory / DISK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    template = Template(key, memory_fd, state_fd, disk_fd)
    measured = _measured(memory_fd, state_fd, disk_fd)
    expected = {"format": _FORMAT, "machine": dict(machine), **measured}
    if any(description.get(name) != value for name, value in expected.items()):
        template.close()
        remove_template(home, key)
        return None
    with suppress(OSError):
        os.utime(directory / DESCRIPTION_FILE)
    return template


def list_templates(home: HomeLayout) -> list[TemplateInfo]:
    """Return the templates of a home, the one that was used last first."""
    found = []
    for directory in home.templates.iterdir() if home.templates.is_dir() else ():
        description = _describe(directory)
        machine, made_at = description.get("machine"), description.get("made_at")
        if not isinstance(machine, dict) or not isinstance(made_at, float):
            continue
        with suppress(OSError):
            files = [directory / name for name in (MEMORY_FILE, STATE_FILE, DESCRIPTION_FILE)]
            files += directory.glob(DISK_FILE)
            info = TemplateInfo(
                key=directory.name,
                machine={str(name): str(value) for name, value in machine.items()},
                made_at=made_at,
                used_at=files[2].stat().st_mtime,
                disk_bytes=sum(file.stat().st_blocks * 512 for file in files),
            )
            found.append(info)
    return sorted(found, key=lambda info: info.used_at, reverse=True)


def remove_template(home: HomeLayout, key: str) -> bool:
    """Remove a template and tell whether there was one. Boxes that run from it go on.

    Args:
        home: The home.
        key: Its name: what is not the name of a directory of templates is not there.

    Raises:
        OSError: It cannot be removed.
    """
    if key not in {entry.name for entry in os.scandir(home.templates)}:
        return False
    # Renamed first: half a template is never under a key.
    grave = Path(tempfile.mkdtemp(prefix="removed-", dir=home.tmp))
    try:
        (home.templates / key).rename(grave / key)
    finally:
        shutil.rmtree(grave)
    return True


def prune_templates(home: HomeLayout, *, keep: int = TEMPLATES_KEPT) -> list[str]:
    """Remove all but the templates that were used last, and what is none.

    Args:
        home: The home.
        keep: How many are kept.

    Returns:
        The names of what was removed.
    """
    kept = {info.key for info in list_templates(home)[:keep]}
    names = sorted(entry.name for entry in os.scandir(home.templates))
    return [name for name in names if name not in kept and remove_template(home, name)]


def _describe(directory: Path) -> dict[str, object]:
    excerpt = read_excerpt(directory / DESCRIPTION_FILE, head=_DESCRIPTION_BYTES, tail=0)
    try:
        description = json.loads(excerpt.whole or b"null")
    except (ValueError, RecursionError):
        return {}
    return description if isinstance(description, dict) else {}


def _measured(memory_fd: int, state_fd: int, disk_fd: int | None) -> dict[str, object]:
    """Return what tells a template from one that is damaged.

    The memory is too large to be read at every start; nothing writes to it after
    it was made, so a time of change that is not its own gives damage away.
    """
    memory = os.fstat(memory_fd)
    state = os.pread(state_fd, _STATE_BYTES, 0)
    return {
        "memory_bytes": memory.st_size,
        "memory_changed_ns": memory.st_mtime_ns,
        "state_sha256": hashlib.sha256(state).hexdigest(),
        "disk_changed_ns": None if disk_fd is None else os.fstat(disk_fd).st_mtime_ns,
    }
