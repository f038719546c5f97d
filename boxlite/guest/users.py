"""Who a command runs as: users and groups of the guest's own files, and taking their place.

``USER`` is a name or a number, with ``:GROUP`` after it if need be, as container tools
have it. A number need not be in the files. Without a group, the user's own one counts
and all that it is listed in; with one, that one alone.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: -1 means "leave it" to setresuid(2).
_ID_MAX: Final = (1 << 32) - 2
_FILE_BYTES: Final = 4 << 20


class UnknownUserError(Exception):
    """There is no such user, or no such group. The text says which."""


class User(NamedTuple):
    """Who a command runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: bytes


def find_user(text: bytes, directory: str = "/etc") -> User:
    """Find who is meant.

    Args:
        text: ``USER`` or ``USER:GROUP``.
        directory: Where the files ``passwd`` and ``group`` are.

    Raises:
        UnknownUserError: One of them is in no file, and no number either.
    """
    user, colon, group = text.partition(b":")
    number = _number(user)
    entries = (entry for entry in _entries(f"{directory}/passwd", 7))
    found = next((each for each in entries if user in (each[0], each[2])), None)
    if found is None and number is None:
        raise UnknownUserError(f"there is no user {_shown(user)} in {directory}/passwd")
    name, home = (found[0], found[5]) if found else (b"", b"/")
    uid = _number(found[2]) if found else number
    gid = _number(found[3]) if found else 0
    groups: tuple[int, ...] = ()
    if colon:
        gid = _find_group(group, directory)
    elif name:
        listed = (each for each in _entries(f"{directory}/group", 4) if name in each[3].split(b","))
        groups = tuple(number for each in listed if (number := _number(each[2])) is not None)
    if uid is None or gid is None:
        raise UnknownUserError(f"the numbers of {_shown(user)} in {directory}/passwd are none")
    return User(uid, gid, groups, home or b"/")


def _find_group(group: bytes, directory: str) -> int:
    for entry in _entries(f"{directory}/group", 4):
        if group == entry[0] and (number := _number(entry[2])) is not None:
            return number
    if (number := _number(group)) is None:
        raise UnknownUserError(f"there is no group {_shown(group)} in {directory}/group")
    return number


def _entries(path: str, fields: int) -> Iterator[list[bytes]]:
    try:
        # An image's own file: one that is a fifo must not hold up the agent.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            lines = (file.read(_FILE_BYTES) or b"").split(b"\n")
    except OSError:
        return
    for line in lines:
        entry = line.split(b":")
        if len(entry) == fields:
            yield entry


def _number(text: bytes) -> int | None:
    if text.isdigit() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    return None


def _shown(name: bytes) -> str:
    return ascii(name.decode(errors="backslashreplace")[:100])


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Be somebody else while the block runs; None for root, who the agent is anyway.

    The saved user id stays root's, so the agent can return. A program that is executed
    meanwhile cannot: execve(2) makes its saved id of the effective one, and takes the
    capabilities of whoever is not root.
    """
    if user is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups(user.groups)
    try:
        os.setresgid(user.gid, user.gid, 0)
        os.setresuid(user.uid, user.uid, 0)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
