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
_PR_SET_THP_DISABLE: Final = 41
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
    if _prctl(_PR_SET_PDEATHSIG, _SIGKILL) != 0:
        raise OSError("the parent-death signal cannot be set")


def use_small_pages() -> None:
    """Have the kernel give this process no huge pages, if it can. It survives exec.

    QEMU asks for them for the code that it translates, of which a box that does
    little has 10 MiB: rounding up costs 4 MiB a box and gains it no measurable time.
    """
    _prctl(_PR_SET_THP_DISABLE, 1)


def _prctl(option: int, value: int) -> int:
    # The program itself has the symbol: every Python on Linux links against a C library.
    itself = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    result: int = _ctypes.call_function(_ctypes.dlsym(itself, "prctl"), (option, value, 0, 0, 0))
    return result
