"""The shim's command line, read by hand: importing ``argparse`` takes longer than starting QEMU."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would delay QEMU
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

#: How long a guest may take to power off after ``stop``.
GUEST_SECONDS: Final = 3.0
#: How long QEMU may then take to exit after SIGTERM.
TERM_SECONDS: Final = 2.0


class UsageError(ValueError):
    """The command line is not one that ``boxlite._vm.shim_command`` writes."""


class Arguments:
    """What the command line says.

    Attributes:
        control: The shim's end of the control port's socket pair.
        console: The shim's end of the serial console's socket pair.
        monitor: The shim's end of the monitor's socket pair, if there is one.
        restore: QEMU's descriptor of the state that it is to load, if it is to.
        save: The descriptor of the file for the state, if it is to be saved.
        prepare: The working directory of the image that the guest mounts before its state
            is saved, if it is to.
        hostname: The guest's host name.
        machine_id: The guest's machine id.
        vm_fds: Descriptors that are for QEMU alone.
        detach: Whether the VM outlives the host program.
        guest_seconds: How long a guest may take to power off after ``stop``.
        term_seconds: How long QEMU may take to exit after SIGTERM.
        vm_argv: QEMU's command line.

    Args:
        words: The command line without the program.

    Raises:
        UsageError: A word is unknown, missing or has a value that is not allowed.
    """

    def __init__(self, words: Sequence[str]) -> None:
        ours, self.vm_argv = _split(words)
        control: int | None = None
        console: int | None = None
        self.monitor: int | None = None
        self.restore: int | None = None
        self.save: int | None = None
        self.prepare: str | None = None
        self.hostname = ""
        self.machine_id = ""
        self.vm_fds: list[int] = []
        self.detach = False
        self.guest_seconds = GUEST_SECONDS
        self.term_seconds = TERM_SECONDS
        rest = iter(ours)
        for word in rest:
            if word == "--box-dir":
                _value(word, rest)
            elif word == "--control":
                control = _descriptor(word, rest)
            elif word == "--console":
                console = _descriptor(word, rest)
            elif word == "--monitor":
                self.monitor = _descriptor(word, rest)
            elif word == "--restore":
                self.restore = _descriptor(word, rest)
            elif word == "--save":
                self.save = _descriptor(word, rest)
            elif word == "--prepare":
                self.prepare = _value(word, rest)
            elif word == "--hostname":
                self.hostname = _value(word, rest)
            elif word == "--machine-id":
                self.machine_id = _value(word, rest)
            elif word == "--close":
                self.vm_fds.append(_descriptor(word, rest))
            elif word == "--detach":
                self.detach = True
            elif word == "--guest-seconds":
                self.guest_seconds = _seconds(word, rest)
            elif word == "--term-seconds":
                self.term_seconds = _seconds(word, rest)
            else:
                raise UsageError(f"unknown argument {word!r}")
        if control is None:
            raise UsageError("--control FD is missing")
        if console is None:
            raise UsageError("--console FD is missing")
        if self.monitor is None and (self.restore is not None or self.save is not None):
            raise UsageError("--monitor FD is missing")
        self.control = control
        self.console = console

    @property
    def own_fds(self) -> tuple[int, ...]:
        """The descriptors that the shim uses itself."""
        fds = (self.control, self.console, self.monitor, self.save)
        return tuple(fd for fd in fds if fd is not None)


def box_dir(words: Sequence[str]) -> str:
    """Return the box's directory, whatever is wrong with the other words.

    Raises:
        UsageError: It is missing.
    """
    rest = iter(words)
    for word in rest:
        if word == "--box-dir":
            return _value(word, rest)
        if word == "--":
            break
    raise UsageError("--box-dir DIR is missing")


def _split(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in words:
        raise UsageError("-- and QEMU's command line are missing")
    at = words.index("--")
    if not words[at + 1 :]:
        raise UsageError("QEMU's command line is missing after --")
    return words[:at], words[at + 1 :]


def _value(name: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None or value == "--":
        raise UsageError(f"{name} needs a value")
    return value


def _descriptor(name: str, rest: Iterator[str]) -> int:
    value = _value(name, rest)
    if not (value.isascii() and value.isdigit() and int(value) > 2):
        raise UsageError(f"{name} is {value!r}; allowed is a descriptor above 2")
    return int(value)


def _seconds(name: str, rest: Iterator[str]) -> float:
    value = _value(name, rest)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise UsageError(f"{name} is {value!r}; allowed are 0 to 3600 seconds")
    return seconds
