"""What QEMU's process needs of the C library and the ``os`` module does not have.

``prctl`` is reached through ``ctypes`` alone. Since that is then there, it also
serves for the signals: importing ``signal`` would cost its import of ``enum``,
5 ms by which QEMU would start later.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False  # importing typing for it would delay QEMU
if TYPE_CHECKING:
    from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_SIG_SETMASK: Final = 2
_SIGKILL: Final = 9
_SIGCHLD: Final = 17
_SIGNALS: Final = range(1, 65)
#: sigset_t has 128 bytes in glibc and in musl.
_SIGSET_BYTES: Final = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.signal.restype = ctypes.c_void_p


def hold_signals() -> None:
    """Keep signals pending until something can handle them, and children waitable."""
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc.sigfillset(mask)
    _libc.sigprocmask(_SIG_SETMASK, mask, None)
    # Ignored, as some supervisors leave it, the kernel would reap QEMU unseen.
    _libc.signal(_SIGCHLD, None)


def reset_signals() -> None:
    """Give every signal its default effect and block none, as a fresh program expects.

    exec keeps ignored signals ignored: Python ignores SIGPIPE and SIGXFSZ, and
    whoever started the host program may have added others.
    """
    for number in _SIGNALS:
        _libc.signal(number, None)
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc.sigemptyset(mask)
    _libc.sigprocmask(_SIG_SETMASK, mask, None)


def kill_at_parents_end() -> None:
    """Have the kernel send SIGKILL when the parent ends. It survives exec.

    A parent that is gone already sends nothing any more: check after this.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "the parent-death signal cannot be set")
