"""The stages of a box's start, and the table that orders them.

Each stage takes what earlier ones made from a :class:`Startup`, makes one
thing, and registers its undoing on the startup's stack, where the first thing
made is the last undone. Undoing serves failure, cancellation and the ordinary
end alike.
"""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING, Final

import attrs
import trio

from boxlite._errors import (
    BoxStartError,
    GuestError,
    HostError,
)
from boxlite._kit import fetch_kernel, prepare_kit
from boxlite._preflight import Preflight, preflight
from boxlite._sockets import connect_unix
from boxlite._vm.argv import command_line, machine_switches
from boxlite._vm.shim import Chardevs, Shim, remove_sockets, spawn_shim
from boxlite._wire import AGENT_PORT_NAME, AGENT_PORTS, CONTROL_PORT_NAME

from .crash import Circumstances, broken_guest_report, crash_report
from .pipeline import Stage, StageLog, Together
from .ready import ReadySocket, UnixTransport, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from boxlite._kit import GuestKit
    from boxlite._layout import BoxLayout, HomeLayout
    from boxlite._options import BoxOptions, RuntimeOptions
    from boxlite._rpc.convert import GuestInfo
    from boxlite._rpc.session import GuestSession

#: A guest that said it was ready answers its first call within this, or is broken.
INIT_SECONDS: Final = 30.0
_DEATH_SECONDS: Final = 2.0


@attrs.define(kw_only=True)
class Startup:
    """A box on its way up: what it is to be, and what has been made of it so far.

    Args:
        box_id: The box's id.
        options: What the box is to be.
        runtime: What holds for every box of its runtime.
        home: Where the runtime keeps things.
        nursery: The box's own nursery.
        undo: Undoes what was made; entered outside the nursery.
        log: Records the stages.
        keep_evidence: The box has failed: the files that explain it must stay.
        nonce: What this start's ready announcement must carry.
    """

    box_id: str
    options: BoxOptions
    runtime: RuntimeOptions
    home: HomeLayout
    nursery: trio.Nursery
    undo: AsyncExitStack
    log: StageLog
    nonce: str = attrs.field(factory=lambda: secrets.token_hex(16))

    host: Preflight = attrs.field(init=False)
    kit: GuestKit = attrs.field(init=False)
    listener: ReadySocket = attrs.field(init=False)
    shim: Shim = attrs.field(init=False)
    keep_evidence: bool = attrs.field(default=False, init=False)
    session: GuestSession = attrs.field(init=False)
    guest: GuestInfo = attrs.field(init=False)

    @property
    def layout(self) -> BoxLayout:
        """Where the box's files are."""
        return self.home.box(self.box_id)

    def circumstances(self) -> Circumstances:
        """Return what a report should say of the box at this moment."""
        return Circumstances(
            box_id=self.box_id,
            layout=self.layout,
            argv=self.shim.argv,
            timings=tuple(self.log.timings),
            stage=", ".join(self.log.under_way),
        )


async def check_host(start: Startup) -> None:
    """Find QEMU, the accelerator and a kernel before anything is made."""
    start.host = await preflight(
        home=start.home,
        qemu=start.runtime.qemu,
        kernel=start.runtime.kernel,
        accelerator=start.runtime.accelerator,
        memory_mib=start.options.memory_mib,
    )


async def make_kit(start: Startup) -> None:
    """Get kernel and initramfs: from the cache, or made now."""
    kernel = start.host.kernel
    if kernel is None:
        kernel = await fetch_kernel(start.home)
    start.kit = await prepare_kit(start.home, kernel)


async def make_directory(start: Startup) -> None:
    """Make the box's directory."""
    await trio.lowlevel.checkpoint()
    layout = start.layout
    try:
        layout.root.mkdir(mode=0o700)
        start.undo.callback(_remove, start)
        layout.sockets.mkdir(mode=0o700)
    except OSError as exc:
        raise HostError(
            f"the directory of the box, {exc.filename}, cannot be made: {exc.strerror}",
            fix="Check the space and the rights there.",
        ) from exc


async def start_shim(start: Startup) -> None:
    """Listen for the announcement, then start shim and VM."""
    await trio.lowlevel.checkpoint()
    layout, options = start.layout, start.options
    start.listener = ReadySocket(UnixTransport(layout.ready_socket), nonce=start.nonce)
    start.undo.callback(start.listener.close)

    def make_argv(chardevs: Chardevs) -> list[str]:
        switches = machine_switches(
            name=f"boxlite-{start.box_id}",
            accelerator=start.host.accelerator.accelerator.value,
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            kernel=start.kit.kernel.image,
            initramfs=start.kit.initramfs,
            control=chardevs.control,
            console=chardevs.console,
            agents=chardevs.agents,
            port_names=(
                CONTROL_PORT_NAME,
                *(AGENT_PORT_NAME.format(index=index) for index in range(AGENT_PORTS)),
            ),
        )
        return command_line(start.host.qemu, switches)

    start.shim = spawn_shim(layout, nonce=start.nonce, make_argv=make_argv)
    start.undo.push_async_callback(start.shim.stop)


async def connect_guest(start: Startup) -> None:
    """Run the race, then open the session on the first agent port."""
    from boxlite._rpc.session import serve_session  # noqa: PLC0415 - imports asyncio

    try:
        await wait_until_ready(
            start.listener,
            shim=start.shim.watch,
            reap=start.shim.reap,
            seconds=start.options.ready_timeout,
            about=start.circumstances(),
        )
    except BoxStartError:
        start.keep_evidence = True
        raise
    start.listener.close()
    try:
        stream = await connect_unix(start.layout.agent_sockets[0])
    except OSError as exc:
        raise await _fallen(start, exc) from exc
    start.session = await start.nursery.start(serve_session, stream, name="guest session")


async def initialise_guest(start: Startup) -> None:
    """Give the guest its identity: the first call on the session."""
    try:
        start.guest = await start.session.init(
            hostname=f"box-{start.box_id}",
            machine_id=secrets.token_hex(16),
            timeout=INIT_SECONDS,
        )
    except GuestError as exc:
        raise await _fallen(start, exc) from exc


async def _fallen(start: Startup, error: Exception) -> BoxStartError:
    """Return the story of a guest that said it was ready and then failed: by death or alive."""
    start.keep_evidence = True
    about = start.circumstances()
    # A connection that breaks is nearly always the VM's death, seen a moment early.
    with trio.move_on_after(_DEATH_SECONDS):
        await start.shim.watch.wait()
        return BoxStartError(crash_report(about, phase="start", exit_code=start.shim.reap()))
    return BoxStartError(broken_guest_report(about, error))


def _remove(start: Startup) -> None:
    """Remove the box's directory, except what explains a failure."""
    layout = start.layout
    if not start.keep_evidence:
        shutil.rmtree(layout.root)
        return
    remove_sockets(layout)
    kept = {path.name for path in layout.evidence}
    for path in layout.root.iterdir():
        if path.name not in kept:
            path.unlink()


COLD_START: Final[Sequence[Stage[Startup] | Together[Startup]]] = (
    Stage("preflight", check_host),
    Together((Stage("guest_kit", make_kit), Stage("layout", make_directory))),
    Stage("shim", start_shim),
    Stage("guest_connect", connect_guest),
    Stage("guest_init", initialise_guest),
)
