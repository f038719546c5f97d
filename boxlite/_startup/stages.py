"""The stages of a box's start; the tables that order them are in ``tables``.

Each stage takes what earlier ones made from a :class:`Startup`, makes one
thing, and registers its undoing on the startup's stack, where the first thing
made is the last undone. Undoing serves failure, cancellation and the ordinary
end alike.
"""

from __future__ import annotations

import importlib
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from boxlite._errors import BoxStartError, GuestError, HostError
from boxlite._report import CrashKind
from boxlite._sockets import connect_unix
from boxlite._vm.shim import MachineFiles, spawn_shim
from boxlite._vm.shim_command import GuestIdentity

from .crash import broken_guest_report, crash_report
from .devices import open_sources, order_to_prepare, set_up_guest
from .directory import make_directory, remove_directory
from .hostmemory import oom_kills
from .machine import Machine
from .ready import ReadySocket, UnixTransport, wait_until_ready
from .record import Record, write_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from boxlite._report import CrashReport
    from boxlite._vm.shim import Chardevs

    from .crash import Phase
    from .startup import Startup

_DEATH_SECONDS: Final = 2.0
# It imports asyncio and trio-asyncio, which change it, so not before a box is started.
_SESSION_MODULE: Final = "boxlite._rpc.session"


async def check_host(start: Startup) -> None:
    """Find the volumes, QEMU, the accelerator and a kernel before anything is made."""
    open_sources(start)
    start.host = await start.groundwork.host(memory_mib=start.options.memory_mib)


async def make_kit(start: Startup) -> None:
    """Get kernel and initramfs: from the cache, or made now."""
    share = bool(start.options.volumes)
    start.kit = await start.groundwork.kit(start.host, share=share)
    start.machine = Machine(
        host=start.host,
        kit=start.kit,
        cpus=start.options.cpus,
        memory_mib=start.options.memory_mib,
        share=share,
    )


async def make_box_directory(start: Startup) -> None:
    """Make the box's directory."""
    await trio.lowlevel.checkpoint()
    layout = start.layout
    try:
        make_directory(layout, again=start.again)
        start.undo.callback(remove_box, start)
        if start.options.detach:
            _write_record(start)
    except OSError as exc:
        raise HostError(
            f"the directory of the box, {exc.filename}, cannot be made: {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc


async def start_shim(start: Startup) -> None:
    """Listen for the announcement, then start shim and VM."""
    await trio.lowlevel.checkpoint()
    start.listener = ReadySocket(UnixTransport(start.layout.ready_socket), nonce=start.nonce)
    start.undo.callback(start.listener.close)
    start.oom_kills = oom_kills()
    with _open_files(start) as files:

        def make_argv(chardevs: Chardevs) -> list[str]:
            name = f"boxlite-{start.box_id}"
            return start.machine.argv(
                name=name, chardevs=chardevs, files=files, devices=start.devices
            )

        start.shim = spawn_shim(
            start.layout,
            nonce=start.nonce,
            identity=GuestIdentity(
                hostname=f"box-{start.box_id}", machine_id=secrets.token_hex(16)
            ),
            make_argv=make_argv,
            files=files,
            devices=start.devices,
            detach=start.options.detach and start.draft is None,
        )
    start.undo.push_async_callback(end_shim, start)
    start.argv = start.shim.argv


@contextmanager
def _open_files(start: Startup) -> Iterator[MachineFiles | None]:
    """Give what the VM is to be restored from or saved to, if it is."""
    if start.draft is not None:
        draft, base = start.draft, start.template
        if base is None:
            yield MachineFiles(what="save", memory_fd=draft.memory_fd, state_fd=draft.state_fd)
        else:
            yield MachineFiles(
                what="derive",
                memory_fd=draft.memory_fd,
                state_fd=base.state_fd,
                saved_fd=draft.state_fd,
                prepare=order_to_prepare(start),
            )
    elif start.template is not None:
        template = start.template
        yield MachineFiles(what="restore", memory_fd=template.memory_fd, state_fd=template.state_fd)
        template.close()
    else:
        yield None


async def load_session_code(_start: Startup) -> None:
    """Import what the session needs, in a thread, while the guest gets ready."""
    await trio.to_thread.run_sync(importlib.import_module, _SESSION_MODULE)


async def wait_ready(start: Startup) -> None:
    """Run the race."""
    try:
        await wait_until_ready(
            start.listener,
            shim=start.shim.watch,
            reap=start.shim.reap,
            seconds=start.options.ready_timeout,
            about=start.circumstances(),
        )
    except BoxStartError as exc:
        start.fail()
        if exc.report.kind is CrashKind.TEMPLATE and start.template is not None:
            # What cannot be removed fails again, with the same story.
            with suppress(OSError):
                start.groundwork.discard_template(start.template.key)
        raise
    start.listener.close()


async def connect_guest(start: Startup) -> None:
    """Open the session on the first agent port."""
    from boxlite._rpc.session import serve_session  # noqa: PLC0415 - imports asyncio

    try:
        stream = await connect_unix(start.layout.agent_sockets[0])
    except OSError as exc:
        raise await _fallen(start, exc) from exc
    start.session = await start.nursery.start(
        serve_session, stream, start.nonce, name="guest session"
    )


async def set_up(start: Startup) -> None:
    """Have the guest mount its image and volumes."""
    try:
        await set_up_guest(start)
    except GuestError as exc:
        raise await _fallen(start, exc) from exc


async def _fallen(start: Startup, error: Exception) -> BoxStartError:
    """Return the story of a guest that said it was ready and then failed: by death or alive."""
    start.fail()
    report = await death_seen(start, phase="start")
    return BoxStartError(report or broken_guest_report(start.circumstances(), error))


async def death_seen(start: Startup, *, phase: Phase) -> CrashReport | None:
    """Return the report on a VM that dies now, and None if it lives on.

    A connection that breaks is nearly always the VM's death, seen a moment early.
    """
    with trio.move_on_after(_DEATH_SECONDS):
        await start.shim.watch.wait()
        start.fail()
        return crash_report(start.circumstances(), phase=phase, exit_code=start.shim.reap())
    return None


async def end_shim(start: Startup) -> None:
    """End the VM, or leave it to its shim."""
    if start.stays:
        start.shim.release()
        await trio.lowlevel.checkpoint()
    else:
        await start.shim.stop()


async def keep_record(start: Startup) -> None:
    """Write down what a box is that is to be kept: now that there is something to keep."""
    if start.options.keep:
        try:
            _write_record(start)
        except OSError as exc:
            raise HostError(
                f"the record of the box, {start.layout.record}, cannot be written: {exc.strerror}",
                fix="Check the space and the rights there.",
            ) from exc
    await trio.lowlevel.checkpoint()


def _write_record(start: Startup) -> None:
    record = Record(options=start.options, nonce=start.nonce, image=start.image)
    write_record(start.layout, record)


def remove_box(start: Startup) -> None:
    """Remove what a box has on disk, unless it stays; what explains a failure does."""
    if not start.stays:
        # Before it ran for the first time there is nothing on its disk.
        remove_directory(
            start.layout,
            keep_evidence=start.keep_evidence,
            keep_disk=start.options.keep and (start.again or start.has_run),
        )
