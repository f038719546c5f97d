"""The command that starts a box's shim."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# By path, and not by importing it: the shim is another process's program.
_PROGRAM: Final = Path(__file__).parent.parent / "shim" / "__main__.py"


def shim_command(
    *,
    box_dir: Path,
    control_fd: int,
    console_fd: int,
    vm_fds: Sequence[int],
    detach: bool,
    vm_argv: Sequence[str],
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
        detach: Let the VM outlive this process.
        vm_argv: QEMU's command line.
    """
    return [
        # Isolated and without site-packages: it is quick, and nobody's
        # PYTHONPATH or sitecustomize runs in it.
        *(sys.executable, "-I", "-S", str(_PROGRAM)),
        *("--box-dir", str(box_dir)),
        *("--control", str(control_fd)),
        *("--console", str(console_fd)),
        *(("--detach",) if detach else ()),
        *(word for fd in vm_fds for word in ("--close", str(fd))),
        "--",
        *vm_argv,
    ]
