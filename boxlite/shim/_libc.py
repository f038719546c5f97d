"""What QEMU's process needs of the C library and the ``os`` module does not have.

The modules ``ctypes`` and ``signal`` are thin layers over ``_ctypes`` and
``_signal``, and importing them would delay QEMU by 9 ms. So what lies beneath is
used here, and nowhere else; it has been the same since Python 2.5 and 3.5.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False  # importing typing for it would delay QEMU
if TYPE_CHECKING:
    from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_SIGKILL: Final = 9
#: Nobody can change what they do (signal(7)).
_FIXED: Final = frozenset({_SIGKILL, 19})


def hold_signals() -> None:
    """Keep signals pending until something can handle them, and children waitable."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _signal.valid_signals())
    # Ignored, as some supervisors leave it, the kernel would reap QEMU unseen.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def reset_signals() -> None:
    """Give every signal its default effect and block none, as a fresh program expects.

    exec keeps ignored signals ignored: Python ignores SIGPIPE and SIGXFSZ, and
    whoever started the host program may have added others.
    """
    for number in _signal.valid_signals() - _FIXED:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def kill_at_parents_end() -> None:
    """Have the kernel send SIGKILL when the parent ends. It survives exec.

    A parent that is gone already sends nothing any more: check after this.

    Raises:
        OSError: The kernel refused.
    """
    # The program itself has the symbol: every Python on Linux links against a C library.
    itself = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    prctl = _ctypes.dlsym(itself, "prctl")
    if _ctypes.call_function(prctl, (_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)) != 0:
        raise OSError("the parent-death signal cannot be set")
