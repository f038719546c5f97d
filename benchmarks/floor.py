"""What QEMU alone takes: the command line of a box, driven by a bare script.

No shim, no Trio, no supervision, no checks: a fork, three commands to the
monitor, the greeting to the guest, and blocking reads. Nothing that starts this
machine can be quicker, so it is what boxlite is compared with.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

import boxlite._wire
from boxlite._rpc._generated.boxlite.v1 import EnvironmentVariable, ExecStart
from boxlite._startup.machine import Machine
from boxlite._vm.argv import SocketChardev
from boxlite._vm.shim import Chardevs, MachineFiles
from boxlite._vm.template import open_template
from boxlite._wire import AGENT_PORTS

if TYPE_CHECKING:
    from collections.abc import Iterator


_NONCE = "0" * 32
#: Older trees, which this one is compared with, have none.
_OPENING = getattr(boxlite._wire, "CONNECTION_OPENING", "").format(nonce=_NONCE).encode()
_SECONDS = 60.0
_WINDOW = 1 << 18


async def machine_of(runtime: boxlite.Runtime) -> Machine:
    """Return the machine of a box with default options, and have its template made."""
    await runtime.prepare_template()
    groundwork = runtime._groundwork
    host = await groundwork.host(memory_mib=256)
    # Older trees have no volumes, and so one kit.
    kit = await groundwork.kit(host, **({"share": False} if hasattr(runtime, "images") else {}))
    return Machine(host=host, kit=kit, cpus=1, memory_mib=256)


def start(runtime: boxlite.Runtime, machine: Machine) -> float:
    """Return the seconds from nothing to the guest's word that it is ready."""
    with _restored(runtime, machine) as (began, _):
        return perf_counter() - began


def first_command(runtime: boxlite.Runtime, machine: Machine) -> float:
    """Return the seconds from nothing to the exit of ``true``, by the same call."""
    with _restored(runtime, machine) as (began, agent):
        _execute(agent)
        return perf_counter() - began


@contextmanager
def _restored(runtime: boxlite.Runtime, machine: Machine) -> Iterator[tuple[float, Path]]:
    template = open_template(runtime.home, machine.shape())
    assert template is not None
    with ExitStack() as stack:
        stack.callback(template.close)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        began = perf_counter()
        passed: list[int] = [template.memory_fd, template.state_fd]

        def pair(name: str) -> tuple[socket.socket, SocketChardev]:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            passed.append(theirs.fileno())
            ours.settimeout(_SECONDS)
            return ours, SocketChardev(id=name, fd=theirs.fileno())

        control, control_chardev = pair("control")
        _, console_chardev = pair("console")
        monitor, monitor_chardev = pair("monitor")
        agents = []
        for index in range(AGENT_PORTS):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / f"agent{index}"))
            listener.listen(1)
            passed.append(listener.fileno())
            agents.append(SocketChardev(id=f"agent{index}", fd=listener.fileno(), listening=True))
        argv = machine.argv(
            name="floor",
            chardevs=Chardevs(
                control=control_chardev,
                console=console_chardev,
                agents=agents,
                monitor=monitor_chardev,
            ),
            files=MachineFiles(
                what="restore", memory_fd=template.memory_fd, state_fd=template.state_fd
            ),
        )
        vm = stack.enter_context(subprocess.Popen(argv, pass_fds=passed))
        stack.callback(vm.kill)
        _restore(monitor, template.state_fd)
        _greet(control)
        yield began, directory / "agent0"


def _restore(monitor: socket.socket, state_fd: int) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    commands: tuple[tuple[str, dict[str, object]], ...] = (
        ("qmp_capabilities", {}),
        ("migrate-set-capabilities", {"capabilities": [capability]}),
        ("migrate-incoming", {"uri": f"fd:{state_fd}"}),
    )
    for name, arguments in commands:
        monitor.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")


def _greet(control: socket.socket) -> None:
    hello = {
        "type": "hello",
        "nonce": _NONCE,
        "unix_time_ns": time.time_ns(),
        "entropy": os.urandom(64).hex(),
        "hostname": "floor",
        "machine_id": os.urandom(16).hex(),
    }
    control.sendall(json.dumps(hello).encode() + b"\n")
    with control.makefile("rb") as lines:
        assert json.loads(lines.readline()) == {"type": "ready", "nonce": _NONCE}


def _execute(agent: Path) -> None:
    environment = [EnvironmentVariable(name=b"PATH", value=b"/usr/bin:/bin")]
    begin = ExecStart(
        argv=[b"/bin/true"], env=environment, stdout_window=_WINDOW, stderr_window=_WINDOW
    )
    body = bytes(begin)
    client = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/boxlite.v1.Execution/Exec"),
            (":authority", "guest"),
            ("te", "trailers"),
            ("content-type", "application/grpc+proto"),
        ],
    )
    client.send_data(1, struct.pack(">?I", False, len(body)) + body, end_stream=True)  # noqa: FBT003 - gRPC's flag
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(agent))
        connection.sendall(_OPENING + client.data_to_send())
        received = b""
        while True:
            for event in client.receive_data(connection.recv(1 << 16)):
                if isinstance(event, DataReceived):
                    received += event.data
                elif isinstance(event, StreamEnded):
                    assert received
                    return
            connection.sendall(client.data_to_send())
