"""A command for the guest, checked before it is sent anywhere."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import attrs

from ._errors import InvalidOptionError
from ._options import check_flag, environment_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Linux takes at most 128 KiB in one argument (MAX_ARG_STRLEN, execve(2)).
ARGUMENT_BYTES_MAX: Final = 131_071
#: All arguments and variables together; leaves room in one message to the guest.
COMMAND_BYTES_MAX: Final = 512 << 10

_USER: Final = re.compile(r"[^:\0\n]{1,255}(:[^:\0\n]{1,255})?")

_PATH: Final = ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


@attrs.frozen(kw_only=True)
class CommandDefaults:
    """What a command gets that nobody has said otherwise about.

    Args:
        env: Its environment, beneath what the box's options and the caller say.
        cwd: The directory that it runs in.
        user: Who it runs as. Empty: root, whose ``HOME`` is in ``env``.
    """

    env: tuple[tuple[str, str], ...] = (_PATH, ("HOME", "/root"), ("LANG", "C.UTF-8"))
    cwd: str = "/"
    user: str = ""

    @classmethod
    def of_image(cls, *, env: Iterable[tuple[str, str]], cwd: str, user: str) -> CommandDefaults:
        """Return what an image's configuration asks for; parts of it may be empty."""
        return cls(env=(_PATH, *env), cwd=cwd or "/", user=user or "0")


@attrs.frozen(kw_only=True)
class TerminalSize:
    """The size of a terminal in character cells, 1 to 65,535 each."""

    rows: int = 24
    columns: int = 80

    def __attrs_post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("columns", self.columns)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65_535:
                raise InvalidOptionError(name, value, "a whole number from 1 to 65535")


@attrs.frozen(kw_only=True)
class Command:
    """What runs in the guest, as the kernel takes it. Made by :func:`check_command`."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    cwd: bytes
    terminal: TerminalSize | None
    merge_stderr: bool = False
    user: bytes = b""

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments as text, for messages."""
        return tuple(word.decode(errors="backslashreplace") for word in self.argv)


def check_command(
    command: Sequence[str | bytes | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    terminal: TerminalSize | None,
    merge_stderr: bool = False,
    user: str | int | None = None,
    beneath: tuple[tuple[str, str], ...] = (),
    defaults: CommandDefaults = CommandDefaults(),
) -> Command:
    """Return a command that the guest can be asked to run.

    Args:
        command: The program and its arguments, at least the program.
        env: Variables over those beneath.
        cwd: The directory to run in, absolute; None for the default one.
        terminal: The size of its terminal, if it is to have one.
        merge_stderr: Its standard error is to be its standard output.
        user: Who it is to run as.
        beneath: The variables of the box.
        defaults: What the box's image says.

    Raises:
        InvalidOptionError: A part of it cannot be given to a program.
    """
    if isinstance(command, (str, bytes)):
        allowed = 'a list of arguments, such as ["sh", "-c", "..."]'
        raise InvalidOptionError("command", command, allowed)
    argv = tuple(_argument(index, word) for index, word in enumerate(command))
    if not argv or not argv[0]:
        raise InvalidOptionError("command", list(command), "a program and its arguments")
    variables = dict(defaults.env)
    if terminal is not None:
        variables["TERM"] = "xterm-256color"
    as_user = _bytes(defaults.user) if user is None else _user(user)
    if user is not None:
        variables.pop("HOME", None)  # The guest knows it.
    variables.update(beneath)
    variables.update(environment_pairs("env", env))
    pairs = tuple((_bytes(name), _bytes(value)) for name, value in variables.items())
    size = sum(map(len, argv)) + sum(len(name) + len(value) for name, value in pairs)
    if size > COMMAND_BYTES_MAX:
        allowed = f"at most {COMMAND_BYTES_MAX} bytes of arguments and environment together"
        raise InvalidOptionError("command", f"{size} bytes", allowed)
    where = defaults.cwd if cwd is None else os.fspath(cwd)
    if not isinstance(where, str) or not where.startswith("/") or "\0" in where:
        raise InvalidOptionError("cwd", where, "an absolute path in the box, without NUL")
    if terminal is not None and not isinstance(terminal, TerminalSize):
        raise InvalidOptionError("terminal", terminal, "a TerminalSize")
    check_flag("merge_stderr", merge_stderr)
    return Command(
        argv=argv,
        env=pairs,
        cwd=_bytes(where),
        terminal=terminal,
        merge_stderr=merge_stderr,
        user=as_user,
    )


def _user(user: object) -> bytes:
    text = str(user) if isinstance(user, int) and not isinstance(user, bool) else user
    if not isinstance(text, str) or not _USER.fullmatch(text):
        allowed = "USER or USER:GROUP, each a name or a number of the box"
        raise InvalidOptionError("user", user, allowed)
    return _bytes(text)


def _argument(index: int, word: object) -> bytes:
    field = f"command[{index}]"
    if isinstance(word, os.PathLike):
        word = os.fspath(word)
    if not isinstance(word, (str, bytes)):
        raise InvalidOptionError(field, word, "a str, bytes or os.PathLike")
    data = _bytes(word)
    if b"\0" in data:
        raise InvalidOptionError(field, word, "without a NUL character")
    if len(data) > ARGUMENT_BYTES_MAX:
        raise InvalidOptionError(field, f"{len(data)} bytes", f"at most {ARGUMENT_BYTES_MAX} bytes")
    return data


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogateescape")
