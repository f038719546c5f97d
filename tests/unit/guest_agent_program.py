"""The agent as a program on this machine: what PID 1 does, without what only PID 1 may do.

Run as ``python -I -S guest_agent_program.py SITE_PACKAGES CONTROL LISTENER PORT`` with
three descriptors: the agent's end of a control port, a listening socket of which each
connection is a port, and a ``SOCK_SEQPACKET`` end that plays a port on which hosts come
and go. Packet boundaries are the device's buffers; an empty packet is an absent host.

Prints one line for each call that would change the machine.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[2] / "boxlite"
_PR_SET_CHILD_SUBREAPER = 36


def install_bare_package() -> None:
    """Have ``import boxlite`` find what the initramfs has: packages with nothing in them."""
    for name in ("boxlite", "boxlite._rpc"):
        module = ModuleType(name)
        module.__path__ = [str(PACKAGE.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module


def say(what: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until a shutdown is complete."""
    site_packages, *descriptors = sys.argv[1:]
    control_fd, listener_fd, port_fd = map(int, descriptors)
    sys.path.append(site_packages)
    install_bare_package()

    from boxlite.guest import lean

    lean.leave_out()
    import asyncio

    from boxlite.guest.agent import Agent
    from boxlite.guest.control import ControlPort

    async def serve() -> None:
        agent = Agent()
        await agent.rehearse()
        control = ControlPort(control_fd)
        hello = control.wait_hello(agent.prepare)
        agent.admit(hello.nonce, hostname=hello.hostname)
        control.watch(agent.poller, agent.shutdown.stop)
        agent.add_port("packets", port_fd)

        def accept(_events: int) -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    return
                connection.setblocking(False)
                agent.add_port("connection", connection.detach())

        agent.poller.watch(listener.fileno(), accept)
        control.send_ready(hello.nonce)
        await agent.run()

    # Orphans come to this process, as they come to PID 1.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for fd in (control_fd, listener_fd, port_fd):
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
    listener = socket.socket(fileno=listener_fd)
    asyncio.run(serve())
    say("switched off")


if __name__ == "__main__":
    main()
