"""What host, shim and guest agree on, as plain constants.

The guest agent and the shim import this module, so it imports nothing itself.
The messages are in ``protos/``; the handshake below is the one exchange that
happens before gRPC does.

The control port is a virtio-serial port between shim and agent that carries
JSON objects, one to a line of at most ``CONTROL_LINE_BYTES``::

    agent  -> shim    {"type": "waiting", "version": V}
    shim   -> agent   {"type": "hello", "nonce": N, "unix_time_ns": T, "entropy": HEX,
                       "hostname": H, "machine_id": M}
    agent  -> shim    {"type": "ready", "nonce": N}
    shim   -> agent   {"type": "stop"}       (at any time after "ready")

    shim   -> agent   {"type": "prepare", "directory": D}    (instead of hello: mount the
                      image, make this directory in it, say waiting again)

An agent that says ``waiting`` has nothing under way in its machine: this is the
point at which templates are taken. One that was restored from a template is
greeted as soon as its machine runs, because its ``waiting`` went to the shim that
took the template.

When the agent has answered this start's nonce, the shim connects to the ready
socket and sends ``ready N`` and a newline: so an accepted, authenticated
connection means that the guest answers calls, and nothing else does.

A connection on an agent port begins with ``CONNECTION_OPENING`` and goes on with
HTTP/2. The nonce in it is what tells the guest that another host process speaks from
here on: no file or argument that a host passes on can say the same.
"""

from __future__ import annotations

from typing import Final

#: gRPC connections a guest offers: one each for this many host processes.
AGENT_PORTS: Final = 4
#: virtio-serial port names, as the guest sees them in /sys/class/virtio-ports.
CONTROL_PORT_NAME: Final = "boxlite.control"
AGENT_PORT_NAME: Final = "boxlite.agent.{index}"

CONNECTION_OPENING: Final = "boxlite {nonce}\n"

CONTROL_LINE_BYTES: Final = 4096
#: Bytes of fresh randomness that the shim mixes into the guest's pool at every start.
ENTROPY_BYTES: Final = 64

#: Each side refuses a larger gRPC message before buffering it.
MAX_MESSAGE_BYTES: Final = 1 << 20
#: Output that may be on its way or unread per stream, and the same for stdin.
OUTPUT_WINDOW_BYTES: Final = 1 << 21
STDIN_WINDOW_BYTES: Final = 1 << 21
PING_PAYLOAD_BYTES: Final = 1024
#: The most that one message carries of a file, and of a directory's names.
FILE_PIECE_BYTES: Final = 1 << 19
NAMES_AT_ONCE: Final = 1000
#: The most that a copy names of what it left out; all are counted.
SKIPPED_NAMES: Final = 100

#: Serial numbers of the disks of a box with an image: its root, and what is changed in it.
IMAGE_DISK: Final = "image"
CHANGES_DISK: Final = "changes"
#: The 9P mount tags of volumes, and how many of them a box may have.
VOLUME_TAG: Final = "volume{index}"
VOLUMES_MAX: Final = 8

#: What every console line of the agent starts with: crash reports look for it.
AGENT_CONSOLE_MARK: Final = "[guest]"
#: A panic() of the kernel prints this.
KERNEL_PANIC_MARK: Final = "Kernel panic - not syncing"
