"""The ladder that ends QEMU: the guest powers off, or SIGTERM, or SIGKILL."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._reactor import Reactor
    from ._spawn import Vm


class StopLadder:
    """Ends a VM in at most ``guest_seconds + term_seconds``. Each rung ends when QEMU does.

    Attributes:
        climbed: The VM has been asked to stop.

    Args:
        vm: The VM.
        reactor: What keeps the time.
        ask_guest: Asks the guest to power off; returns whether it could be asked.
        guest_seconds: How long a guest that was asked may take.
        term_seconds: How long QEMU may take after SIGTERM.
    """

    def __init__(
        self,
        vm: Vm,
        reactor: Reactor,
        *,
        ask_guest: Callable[[], bool],
        guest_seconds: float,
        term_seconds: float,
    ) -> None:
        self.climbed = False
        self._vm = vm
        self._reactor = reactor
        self._ask_guest = ask_guest
        self._guest_seconds = guest_seconds
        self._term_seconds = term_seconds

    def climb(self) -> None:
        """Start. Does nothing the second time: an impatient caller must not cost a clean end."""
        if self.climbed:
            return
        self.climbed = True
        if self._ask_guest():
            self._reactor.after(self._guest_seconds, self._terminate)
        else:
            self._terminate()

    def _terminate(self) -> None:
        self._vm.send_signal(signal.SIGTERM)
        self._reactor.after(self._term_seconds, self._kill)

    def _kill(self) -> None:
        self._vm.send_signal(signal.SIGKILL)
