"""What a box is given of the host's files: directories and single files, as it is asked for."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import attrs

from ._errors import InvalidOptionError
from ._wire import VOLUMES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Where the kernel's own file systems are, and programs expect nothing else.
_TAKEN: Final = ("/proc", "/sys", "/dev")


def _host_path(value: Any) -> Any:  # noqa: ANN401 - what it cannot convert, the validator refuses
    return Path(value) if isinstance(value, (str, os.PathLike)) and value else value


@attrs.frozen
class Volume:
    """A directory or a single file of the host that a box sees as its own.

    Whatever the guest does, a read-only volume does not change: the device refuses it.
    In one that is not read-only, what the box makes belongs on the host to the user of
    this program, with mode 0644 (files) or 0755 (directories); the owners, modes and
    links that the box sees are kept in extended attributes. Nothing leads out of a
    volume: a symbolic link in it means to the box what it means in the box, and one of
    the host's in a writable volume cannot be followed there at all.

    Args:
        source: The directory or file on the host, absolute. A file must be on the file
            system of the runtime's home; a link at its end is followed.
        target: Where it is in the box, absolute. What is missing on the way is made.
        read_only: Whether the box can only read it. Default: yes.

    Raises:
        InvalidOptionError: A value is not allowed.
    """

    source: Path = attrs.field(converter=_host_path)
    target: str = attrs.field(converter=str)
    read_only: bool = attrs.field(default=True, kw_only=True)

    @source.validator
    def _check_source(self, _attribute: attrs.Attribute[Path], value: object) -> None:
        if not isinstance(value, Path) or "\0" in str(value) or not value.is_absolute():
            raise InvalidOptionError("source", value, "an absolute path of the host, without NUL")

    @target.validator
    def _check_target(self, _attribute: attrs.Attribute[str], value: str) -> None:
        path = PurePosixPath(value)
        if not path.is_absolute() or ".." in path.parts or "\0" in value or len(value) > 4095:
            raise InvalidOptionError(
                "target", value, "an absolute path in the box, without '..' and NUL"
            )
        if not path.name or any(path.is_relative_to(taken) for taken in _TAKEN):
            raise InvalidOptionError(
                "target", value, f"neither / nor at or below {', '.join(_TAKEN)}"
            )

    @read_only.validator
    def _check_flag(self, _attribute: attrs.Attribute[bool], value: object) -> None:
        if not isinstance(value, bool):
            raise InvalidOptionError("read_only", value, "True or False")


def checked_volumes(value: Iterable[Volume]) -> tuple[Volume, ...]:
    """Return the volumes of a box.

    Raises:
        InvalidOptionError: There are too many, one is none, or two have one place.
    """
    if isinstance(value, (str, bytes, Volume)):
        raise InvalidOptionError("volumes", value, "a list of Volume")
    volumes = tuple(value)
    for index, volume in enumerate(volumes):
        if not isinstance(volume, Volume):
            raise InvalidOptionError(f"volumes[{index}]", volume, "a Volume")
    if len(volumes) > VOLUMES_MAX:
        raise InvalidOptionError("volumes", f"{len(volumes)} volumes", f"at most {VOLUMES_MAX}")
    targets = [PurePosixPath(volume.target) for volume in volumes]
    for index, target in enumerate(targets):
        if target in targets[:index]:
            raise InvalidOptionError(
                f"volumes[{index}].target", str(target), "a place of its own: another has it"
            )
    return volumes
