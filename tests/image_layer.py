"""The tar of a layer, written member by member, so that owners, devices and setuid need no root.

Source: the OCI image specification 1.1, "Image Layer Filesystem Changeset"; pax(1) and
the SCHILY.xattr records of star for extended attributes.
"""

from __future__ import annotations

import io
import struct
import tarfile
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

#: The time that all is said to be of, so that a recipe always gives the same bytes.
EPOCH: Final = 1735689600  # 2025-01-01T00:00:00Z
_CAP_NET_RAW: Final = 13  # capability.h
_CAP_REVISION_2: Final = 0x02000000
_CAP_EFFECTIVE: Final = 1


class LayerTar:
    """An uncompressed layer. A context manager: the block's end writes the end of the tar.

    Paths are those in the image, without the slash at the front; an owner is a user id
    and a group id.

    Args:
        path: The file to make.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "x:", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - __exit__ closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tar.close()

    def directory(self, path: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        """Add a directory."""
        self._add(path, tarfile.DIRTYPE, mode, owner)

    def file(
        self,
        path: str,
        data: bytes,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        *,
        attributes: Mapping[str, bytes] | None = None,
    ) -> None:
        """Add a regular file.

        Args:
            path: Its path.
            data: What is in it.
            mode: Its permissions, setuid and the like included.
            owner: Its owner.
            attributes: Its extended attributes; values are below 128, byte by byte.
        """
        records = {
            f"SCHILY.xattr.{name}": value.decode("ascii")
            for name, value in (attributes or {}).items()
        }
        self._add(path, tarfile.REGTYPE, mode, owner, data=data, records=records)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, tarfile.SYMTYPE, 0o777, (0, 0), target=target)

    def hard_link(self, path: str, target: str) -> None:
        """Add one more name of a file that this layer has already."""
        self._add(path, tarfile.LNKTYPE, 0o644, (0, 0), target=target)

    def fifo(self, path: str, mode: int = 0o644) -> None:
        """Add a named pipe."""
        self._add(path, tarfile.FIFOTYPE, mode, (0, 0))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o666) -> None:
        """Add the node of a character device."""
        self._add(path, tarfile.CHRTYPE, mode, (0, 0), device=(major, minor))

    def whiteout(self, path: str) -> None:
        """Say that what a lower layer has at a path is gone."""
        parent, _, name = path.rpartition("/")
        self.file(f"{parent}/.wh.{name}" if parent else f".wh.{name}", b"")

    def opaque(self, directory: str) -> None:
        """Say that all that lower layers have in a directory is gone."""
        self.file(f"{directory}/.wh..wh..opq", b"")

    def _add(
        self,
        path: str,
        kind: bytes,
        mode: int,
        owner: tuple[int, int],
        *,
        data: bytes = b"",
        target: str = "",
        device: tuple[int, int] = (0, 0),
        records: Mapping[str, str] | None = None,
    ) -> None:
        member = tarfile.TarInfo(path)
        member.type = kind
        member.mode = mode
        member.uid, member.gid = owner
        member.size = len(data)
        member.mtime = EPOCH
        member.linkname = target
        member.devmajor, member.devminor = device
        member.pax_headers = dict(records or {})
        self._tar.addfile(member, io.BytesIO(data))


def net_raw_capability() -> bytes:
    """Return the value of ``security.capability`` that ping has (capabilities(7))."""
    return struct.pack("<5I", _CAP_REVISION_2 | _CAP_EFFECTIVE, 1 << _CAP_NET_RAW, 0, 0, 0)
