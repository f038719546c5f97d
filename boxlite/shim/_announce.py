"""The word to the host that the guest is ready."""

from __future__ import annotations

import os
import socket


def announce(box: int, nonce: str) -> None:
    """Connect to the ready socket of a box, say ``ready NONCE`` and hang up. Never blocks.

    The socket is reached through a descriptor of its directory, because a
    socket's address holds 108 bytes (unix(7)) and a home's path may be longer.

    Args:
        box: The box's directory.
        nonce: What proves that this start's guest is meant.

    Raises:
        BlockingIOError: The host has more connections waiting than it accepts
            at once; the only failure that passes by itself.
        OSError: Nobody listens there.
    """
    sockets = os.open("sockets", os.O_PATH | os.O_DIRECTORY, dir_fd=box)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            connection.connect(f"/proc/self/fd/{sockets}/ready.sock")
            # A socket that was just made takes a line of this length at once.
            connection.sendall(f"ready {nonce}\n".encode())
    finally:
        os.close(sockets)
