"""The order of things: QEMU first, everything else while it boots, the exit file last."""

from __future__ import annotations

import os
import sys

from ._arguments import Arguments, box_dir
from ._boxdir import identity, open_box_dir, publish, remove
from ._spawn import CannotStartError, Vm, close_strangers, start_vm

TYPE_CHECKING = False  # importing typing for it would delay QEMU
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._exitfile import Record
    from ._watch import Watch


class Shim:
    """One run of the shim, as far as it has come: what the exit file can be made from.

    Attributes:
        box: The box's directory.
        vm: QEMU.
        watch: The loop.
    """

    def __init__(self) -> None:
        self.box: int | None = None
        self.vm: Vm | None = None
        self.watch: Watch | None = None

    def run(self, words: Sequence[str]) -> Record:
        """Start the VM, watch it until it ends, and say how it did.

        Raises:
            BaseException: Something broke; QEMU may still run.
        """
        self.box = open_box_dir(box_dir(words))
        arguments = Arguments(words)
        close_strangers((self.box, *arguments.own_fds, *arguments.vm_fds))
        # What another start left would be believed if this one were killed.
        remove(self.box, "exit")
        remove(self.box, "vm.pid")
        publish(self.box, "shim.pid", identity(os.getpid()))
        try:
            self.vm = start_vm(
                arguments.vm_argv,
                arguments.vm_fds,
                small_pages=arguments.restore is not None,
            )
            publish(self.box, "vm.pid", identity(self.vm.pid))
            return self._watch(arguments, self.box, self.vm)
        except CannotStartError as reason:
            from ._exitfile import not_started

            return not_started(reason)

    def _watch(self, arguments: Arguments, box: int, vm: Vm) -> Record:
        # QEMU is on its way: now there is time for imports.
        from ._exitfile import ended, template_failed
        from ._logs import Stderr
        from ._watch import Watch

        stderr = Stderr()
        self.watch = Watch(vm, arguments, box, stderr)
        status = self.watch.run()
        if self.watch.template_failure is not None:
            return template_failed(self.watch.template_failure)
        return ended(
            status,
            sent=vm.sent,
            requested=self.watch.stop_requested,
            said=stderr.last_line,
        )


def main(words: Sequence[str]) -> int:
    """Run the shim and return its exit code; the package's docstring tells which.

    Whatever happens, QEMU is gone and reaped afterwards, and the exit file is
    written if there is a directory for it.

    Args:
        words: The command line without the program.
    """
    shim = Shim()
    try:
        record = shim.run(words)
    except BaseException as exc:  # noqa: BLE001 - becomes the exit file's "panic"
        if shim.vm is not None:
            shim.vm.destroy()
        sys.excepthook(type(exc), exc, exc.__traceback__)
        from ._exitfile import panicked

        record = panicked(exc)
    if shim.box is not None:
        from ._exitfile import write_exit_file

        ready = shim.watch is not None and shim.watch.handshake.ready
        try:
            write_exit_file(shim.box, record, ready=ready)
        except OSError as exc:
            sys.excepthook(type(exc), exc, exc.__traceback__)
    exit_code: int = record["exit_code"]
    return exit_code
