"""Signals of the shim: one is heard, by the loop; two are none of its business."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def wake_on_sigterm() -> int:
    """Make SIGTERM a descriptor that becomes readable; ignore SIGINT and SIGHUP.

    The latter two are what a terminal sends, to the host program and to
    everything that it started; the host program decides what becomes of its
    boxes. Signals that :func:`boxlite.shim._libc.hold_signals` held back arrive.
    """
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _heard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return readable


def _heard(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter wrote to the wakeup descriptor before it called this."""
