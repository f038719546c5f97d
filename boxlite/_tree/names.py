"""What a member of an archive may be called, and where a link of it may lead."""

from __future__ import annotations

from typing import Final

from .format import Member, TarError

#: The first component of every name, whatever is packed is called: so a file and a
#: tree are unpacked alike, and under a name that the receiver chooses.
ROOT: Final = b"copy"
#: NAME_MAX of Linux.
COMPONENT_BYTES: Final = 255
DEPTH_MAX: Final = 128  # Each is a descriptor while the members below it come.


def components(name: bytes, member: bytes) -> list[bytes]:
    """Divide a name of an archive; the first component is :data:`ROOT`.

    Args:
        name: A member's name, or that of the one it links to.
        member: Whose it is, for the error.

    Raises:
        TarError: It could be outside of the archive, or cannot be a name.
    """
    try:
        name.decode()
    except UnicodeDecodeError:
        raise TarError(member, f"{shown(name)} is not UTF-8") from None
    parts = name.split(b"/")
    if parts[0] != ROOT:
        raise TarError(member, f"{shown(name)} does not begin with {ROOT.decode()}/")
    if len(parts) > DEPTH_MAX:
        raise TarError(member, f"it is more than {DEPTH_MAX} directories deep")
    for part in parts:
        if part in (b"", b".", b".."):
            raise TarError(member, f"{shown(name)} has an empty component, . or ..")
        if len(part) > COMPONENT_BYTES:
            raise TarError(member, f"a component of it has more than {COMPONENT_BYTES} bytes")
    return parts


def check_target(member: Member) -> None:
    """See to it that a symbolic link stays within the copy.

    ``..`` may only begin a target: there it starts from a real directory of the
    archive. After a component, which may itself be a link, it may lead anywhere.

    Raises:
        TarError: It may lead out.
    """
    depth = member.name.count(b"/") - 1
    parts = [part for part in member.target.split(b"/") if part not in (b"", b".")]
    up = 0
    while up < len(parts) and parts[up] == b"..":
        up += 1
    if member.target.startswith(b"/") or up > depth or b".." in parts[up:]:
        raise TarError(member.name, f"it is a link to {shown(member.target)}, which may be outside")


def shown(name: bytes) -> str:
    """Return a name as it is shown to a person: printable and not too long."""
    return ascii(name.decode(errors="backslashreplace")[:200])
