r"""Where everything lies on disk. Paths only: nothing here creates or removes.

::

    HOME/                      0700
      lock                     flock: one runtime per home
      kvm-verdict.json         whether KVM runs guests here, for this boot of the host
      qemu-version.json        what --version said, for this file
      templates/<key>/         memory and state of a machine that waits, to start boxes from
      images/                  see boxlite._images
      kit/                     kernels, and an initramfs for each, by content hash
      tmp/                     what is being made; wiped when a runtime starts
      boxes/<id>/              0700
        sockets/ready.sock  sockets/agent0.sock ...
        box.json               what a detached box is; no other box has one
        shim.pid  vm.pid       "pid\nstart time in clock ticks\n"
        exit                   JSON, written once by the shim (see boxlite.shim)
        shim.stderr            what shim and QEMU wrote to stderr, bounded
        console.log  console.log.old    the serial console, bounded by rotation
        disk                   what the box changed in its image: an ext4, sparse
        volumes/<index>/       one link each: the single files among its volumes
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from ._wire import AGENT_PORTS


def default_home() -> Path:
    """Return ``$BOXLITE_HOME``, or ``boxlite`` in the user's data directory (XDG)."""
    if home := os.environ.get("BOXLITE_HOME"):
        return Path(home)
    data = os.environ.get("XDG_DATA_HOME")
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "boxlite"


@attrs.frozen
class BoxLayout:
    """The files of one box, below its own directory."""

    root: Path

    @property
    def sockets(self) -> Path:
        """The directory of the sockets; emptied when the box is gone."""
        return self.root / "sockets"

    @property
    def ready_socket(self) -> Path:
        """Where the host listens for the shim's word that the guest is ready."""
        return self.sockets / "ready.sock"

    @property
    def agent_sockets(self) -> tuple[Path, ...]:
        """Where QEMU listens: one per agent port of the guest."""
        return tuple(self.sockets / f"agent{index}.sock" for index in range(AGENT_PORTS))

    @property
    def record(self) -> Path:
        """What a detached box is."""
        return self.root / "box.json"

    @property
    def shim_pid(self) -> Path:
        """The identity of the shim."""
        return self.root / "shim.pid"

    @property
    def vm_pid(self) -> Path:
        """The identity of QEMU."""
        return self.root / "vm.pid"

    @property
    def exit(self) -> Path:
        """The exit file."""
        return self.root / "exit"

    @property
    def shim_stderr(self) -> Path:
        """What shim and QEMU wrote to standard error."""
        return self.root / "shim.stderr"

    @property
    def console_log(self) -> Path:
        """The newest part of the guest's serial console."""
        return self.root / "console.log"

    @property
    def disk(self) -> Path:
        """What the box changed in its image."""
        return self.root / "disk"

    @property
    def volumes(self) -> Path:
        """Directories for its volumes that are single files."""
        return self.root / "volumes"

    @property
    def evidence(self) -> tuple[Path, ...]:
        """The files that explain a failure; they outlive a box that failed."""
        return (
            self.exit,
            self.shim_stderr,
            self.console_log,
            self.root / "console.log.old",
        )


@attrs.frozen
class HomeLayout:
    """The files of one runtime, below its home directory."""

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by the runtime that owns the home; holds its process id."""
        return self.root / "lock"

    @property
    def kit(self) -> Path:
        """Kernels and initramfs images."""
        return self.root / "kit"

    @property
    def templates(self) -> Path:
        """One directory per template."""
        return self.root / "templates"

    @property
    def images(self) -> Path:
        """Images: what they are made of, what they are called, and their roots."""
        return self.root / "images"

    @property
    def roots(self) -> Path:
        """The root file systems of images."""
        return self.images / "roots"

    @property
    def tmp(self) -> Path:
        """Work in progress, on the same file system as what it becomes."""
        return self.root / "tmp"

    @property
    def boxes(self) -> Path:
        """One directory per box."""
        return self.root / "boxes"

    def box(self, box_id: str) -> BoxLayout:
        """Return the layout of one box."""
        return BoxLayout(self.boxes / box_id)
