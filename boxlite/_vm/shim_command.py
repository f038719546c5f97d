"""The command that starts a box's shim."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence


@attrs.frozen(kw_only=True)
class GuestIdentity:
    """Who a guest is.

    Args:
        hostname: 1 to 63 characters of a-z, 0-9 and ``-``.
        machine_id: 32 lower-case hexadecimal digits, as in machine-id(5).
    """

    hostname: str
    machine_id: str


@attrs.frozen(kw_only=True)
class SavedState:
    """What the shim has QEMU do through its monitor.

    Args:
        monitor_fd: The shim's end of the monitor's socket pair.
        restore_fd: QEMU's descriptor of a state to load, if it is to.
        save_fd: The shim's descriptor of the file to save the state to as soon as the guest
            waits, if it is to.
        prepare: The working directory of the image that the guest mounts between the two.
    """

    monitor_fd: int
    restore_fd: int | None = None
    save_fd: int | None = None
    prepare: str | None = None

    def words(self) -> tuple[str, ...]:
        """Return the switches that say so."""
        given = (("--restore", self.restore_fd), ("--save", self.save_fd))
        switches = (word for name, fd in given if fd is not None for word in (name, str(fd)))
        order = () if self.prepare is None else ("--prepare", self.prepare)
        return ("--monitor", str(self.monitor_fd), *switches, *order)


# By path, and not by importing it: the shim is another process's program.
_PROGRAM: Final = Path(__file__).parent.parent / "shim" / "__main__.py"


def shim_command(
    *,
    box_dir: Path,
    control_fd: int,
    console_fd: int,
    vm_fds: Sequence[int],
    identity: GuestIdentity,
    detach: bool,
    vm_argv: Sequence[str],
    saved: SavedState | None = None,
) -> list[str]:
    """Return the command line of a shim.

    Whoever runs it passes all the descriptors on under their numbers, as
    standard input a pipe with the nonce and a newline in it, which stays open
    until the VM may end, and as standard error the file ``shim.stderr``.

    Args:
        box_dir: The box's directory; it exists.
        control_fd: The shim's end of the control port's socket pair.
        console_fd: The shim's end of the serial console's socket pair.
        vm_fds: The descriptors that are for QEMU, and named in its command line.
        identity: Who the guest is told it is.
        detach: Let the VM outlive this process.
        vm_argv: QEMU's command line.
        saved: The machine's saved state, and what is to be done with it.
    """
    return [
        # Isolated and without site-packages: it is quick, and nobody's
        # PYTHONPATH or sitecustomize runs in it.
        *(sys.executable, "-I", "-S", str(_PROGRAM)),
        *("--box-dir", str(box_dir)),
        *("--control", str(control_fd)),
        *("--console", str(console_fd)),
        *(saved.words() if saved is not None else ()),
        *("--hostname", identity.hostname),
        *("--machine-id", identity.machine_id),
        *(("--detach",) if detach else ()),
        *(word for fd in vm_fds for word in ("--close", str(fd))),
        "--",
        *vm_argv,
    ]
