"""The directory of a box: made at its start, and removed by name.

Removing it must work when descriptors have run out, which is when many a start
fails. To list a directory takes one, so what can be in it is known by name.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from boxlite._errors import HostError
from boxlite._removal import remove_tree

if TYPE_CHECKING:
    from boxlite._layout import BoxLayout


def make_directory(layout: BoxLayout, *, again: bool = False) -> None:
    """Make the directory of a box, for its user alone.

    Args:
        layout: What lies where.
        again: The box was there before, and its disk and record still are.

    Raises:
        OSError: It cannot be made; nothing of it is left that was not there.
    """
    layout.root.mkdir(mode=0o700, exist_ok=again)
    if again:
        # Of a box whose program or VM was killed.
        _remove_sockets(layout)
    try:
        layout.sockets.mkdir(mode=0o700)
    except BaseException:
        if not again:
            layout.root.rmdir()
        raise


def remove_directory(layout: BoxLayout, *, keep_evidence: bool, keep_disk: bool = False) -> None:
    """Remove the directory of a box that is gone, or all of it that explains nothing.

    Args:
        layout: What lies where.
        keep_evidence: Leave the files that explain a failure.
        keep_disk: Leave the disk, and the record of the box, which is nothing without.

    Raises:
        HostError: Something that was to go is still there.
    """
    _remove_sockets(layout)
    evidence = layout.evidence
    for path in (layout.record, layout.disk, layout.shim_pid, layout.vm_pid, *evidence):
        with suppress(OSError):
            # What a process was replacing when it was killed.
            path.with_name(f"{path.name}.new").unlink()
        if keep_disk and path in (layout.disk, layout.record):
            continue
        if not (keep_evidence and path in evidence):
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        # Root in a box without an image can reach it, and make it as deep as it likes.
        remove_tree(layout.volumes)
    if keep_evidence or keep_disk:
        return
    try:
        layout.root.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        _remove_the_rest(layout)


def _remove_the_rest(layout: BoxLayout) -> None:
    try:
        remove_tree(layout.root)
    except OSError as exc:
        raise HostError(
            f"the directory of the box, {layout.root}, cannot be removed: {exc}",
            fix="Look at what is in it, and remove it by hand.",
        ) from exc


def _remove_sockets(layout: BoxLayout) -> None:
    """Remove the socket files of a box that is gone. Missing ones are fine."""
    for path in (layout.ready_socket, *layout.agent_sockets):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        layout.sockets.rmdir()
