"""The boxes that a home has on disk: which of them can be used, and which are in use here."""

from __future__ import annotations

import re
import secrets
import string
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from ._errors import HostError, InvalidOptionError, StateError
from ._layout import BoxLayout
from ._options import BoxOptions
from ._ownership import has_disk, is_alive
from ._startup.record import Record, read_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._layout import HomeLayout

#: 36 ** 12 ids: two of them never meet, and they are valid host names.
_ID_ALPHABET: Final = string.digits + string.ascii_lowercase
_ID_LENGTH: Final = 12
_ID: Final = re.compile(f"[{_ID_ALPHABET}]{{{_ID_LENGTH}}}")


def new_id() -> str:
    """Return the id of a box that is nothing yet."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


class Residents:
    """The boxes of a home.

    Args:
        home: The home.
    """

    def __init__(self, home: HomeLayout) -> None:
        self._home = home
        self._used: set[str] = set()

    @contextmanager
    def using(self, box_id: str) -> Iterator[None]:
        """Keep a box from being opened a second time while the block runs."""
        self._used.add(box_id)
        try:
            yield
        finally:
            self._used.discard(box_id)

    def detached(self, operation: str, box_id: str) -> Record:
        """Return what a box is that can be attached to, or could be if it ran.

        Args:
            operation: What for, as the end of "cannot ...".
            box_id: Its id.

        Raises:
            InvalidOptionError: The home has none of that id.
            StateError: It is open here, or is not detached.
            HostError: What it is has been written down by another version.
        """
        layout = self._unused(operation, box_id)
        record = read_record(layout, self._home.roots)
        if record is None and is_alive(layout):
            raise StateError(operation, required="detached", actual="not detached")
        return record or _unknown()

    def stopped(self, operation: str, box_id: str, *, with_disk: bool) -> Record:
        """Return what a box is that does not run.

        Args:
            operation: What for, as the end of "cannot ...".
            box_id: Its id.
            with_disk: It must have a disk that was kept for it.

        Raises:
            InvalidOptionError: The home has none of that id.
            StateError: It runs, or is open here, or has no such disk.
            HostError: What it is has been written down by another version.
        """
        layout = self._unused(operation, box_id)
        if is_alive(layout):
            raise StateError(operation, required="stopped", actual="running")
        if with_disk and not has_disk(layout):
            raise StateError(operation, required="kept", actual="without a disk")
        # What is to be removed may be damaged.
        record = read_record(layout, self._home.roots) if with_disk else None
        return record or _unknown()

    def roots(self) -> set[str]:
        """Return the roots of images that boxes need which no task here has open. Blocks.

        Raises:
            OSError: A record cannot be read.
        """
        found = set()
        for path in self._home.boxes.iterdir():
            layout = BoxLayout(path)
            # What cannot be read now may be readable later: it must not count as nothing.
            with suppress(FileNotFoundError, NotADirectoryError):
                layout.record.read_bytes()
            # What makes no sense is no box that anybody can open.
            with suppress(HostError):
                record = read_record(layout, self._home.roots)
                if record is not None and record.image is not None:
                    found.add(record.image.root.name)
        return found

    def _unused(self, operation: str, box_id: str) -> BoxLayout:
        # Checked before it becomes a path.
        if not isinstance(box_id, str) or not _ID.fullmatch(box_id):
            allowed = f"{_ID_LENGTH} letters a-z and digits, as Box.id has them"
            raise InvalidOptionError("box_id", box_id, allowed)
        layout = self._home.box(box_id)
        if not layout.root.is_dir():
            raise InvalidOptionError("box_id", box_id, f"the id of a box in {layout.root.parent}")
        if box_id in self._used:
            raise StateError(operation, required="not open in this program", actual="open in it")
        return layout


def _unknown() -> Record:
    return Record(options=BoxOptions(), nonce="")
