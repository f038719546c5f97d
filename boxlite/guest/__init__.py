"""The guest agent: PID 1 of every box, and the gRPC server in it.

It runs nowhere else. Besides the standard library it imports grpclib, the
generated messages and ``boxlite._wire``.
"""

# The layers, top to bottom; a module imports from lower lines alone.
#
#   __main__                            the order of things
#   serve                               from a booted machine to a serving agent
#   agent                               everything that serves, put together
#   rehearsal                           a call of each kind before the first host
#   guest_service, execution_service    the two gRPC services
#   shutdown                            the one way down
#   executions                          what is running
#   execution                           one command and its streams
#   spawn, streams, reaper              processes and pipes
#   server, bridge                      gRPC over a virtio-serial port
#   control                             the handshake and the stop request
#   boot, identity, ports               what the kernel leaves to PID 1
#   edges, kernel, console, lean        the system
from __future__ import annotations

from typing import Final

#: Answered by Guest.Init. The initramfs has no package metadata of boxlite, so
#: the number is written here; a test holds it to the package's own.
AGENT_VERSION: Final = "0.1.0"
