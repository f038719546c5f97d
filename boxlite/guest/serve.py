"""From a booted machine to a serving agent, by way of the point where templates are taken."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Final

from boxlite._wire import AGENT_PORT_NAME, AGENT_PORTS, CONTROL_PORT_NAME

from . import console, identity, kernel, ports
from .agent import Agent
from .control import ControlPort

if TYPE_CHECKING:
    from .namespaces import Namespaces

_PORTS_SECONDS: Final = 20.0


async def serve(namespaces: Namespaces) -> None:
    """Take part in the handshake, then serve until a shutdown is complete.

    Args:
        namespaces: Those that an image's commands are to have.
    """
    agent_names = [AGENT_PORT_NAME.format(index=index) for index in range(AGENT_PORTS)]
    devices = ports.wait_for_ports([CONTROL_PORT_NAME, *agent_names], timeout=_PORTS_SECONDS)
    agent = Agent(namespaces)
    control = ControlPort(ports.open_port(devices[CONTROL_PORT_NAME]))
    for name in agent_names:
        agent.add_port(name, ports.open_port(devices[name]))

    await agent.rehearse()

    # Whatever has been made so far lives as long as the process. Frozen, it is not
    # visited by the collector again, and so its pages stay shared between boxes.
    gc.collect()
    gc.freeze()

    # From here to "ready" every box does what its template has not done. What can be done
    # before is, and what can be done after: under emulation, code that runs for the first
    # time takes a hundred times as long as afterwards.
    random_fd = kernel.open_random()
    console.log("waiting for the host")
    hello = control.wait_hello(agent.prepare)
    identity.refresh(unix_time_ns=hello.unix_time_ns, entropy=hello.entropy, random_fd=random_fd)
    agent.admit(hello.nonce, hostname=hello.hostname)
    # The host connects while the rest is done: no call is answered before the loop goes on.
    control.send_ready(hello.nonce)
    control.watch(agent.poller, agent.shutdown.stop)
    os.close(random_fd)
    identity.take_on(hostname=hello.hostname, machine_id=hello.machine_id)
    console.log(f"ready as {hello.hostname}")
    await agent.run()
