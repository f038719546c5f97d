"""Where commands run and files are looked up: the agent's own root, or an image's.

The agent stays in the machine's first mount namespace, where its code is. It goes
into the commands' for the moments in which it looks something up there or starts
something, never across an ``await``. It has one thread, so nobody else moves along.

In there it has no more power than their root: the paths that it follows are theirs, and
a link may lead into /proc, to what the kernel shows to whoever may trace a process.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import TYPE_CHECKING, Final

from . import console, kernel
from .capabilities import effective
from .confinement import KEPT_CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN_MOUNTS: Final = "/proc/self/ns/mnt"
_POWER: Final = sum(1 << number for number in KEPT_CAPABILITIES)
#: What can import without looking at a file.
_SAFE_FINDERS: Final = (BuiltinImporter, FrozenImporter)


class Place:
    """The mount namespace of commands. As made, it is the agent's own.

    Attributes:
        has_image: Whether commands have an image's root.
    """

    def __init__(self) -> None:
        self.has_image = False
        self._own = self._theirs = -1
        self._inside = False

    def move_to(self, mounts: int) -> None:
        """Have commands in another mount namespace from now on.

        Args:
            mounts: Its descriptor; it is kept.
        """
        self._own = os.open(_OWN_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        self._theirs = mounts
        self.has_image = True

    @contextmanager
    def furnishing(self) -> Iterator[None]:
        """Be where commands are to be, with all of the agent's power: before there is one."""
        if not self.has_image:
            yield
            return
        kernel.set_namespace(self._theirs, kernel.CLONE_NEWNS)
        finders = sys.meta_path[:]
        try:
            sys.meta_path[:] = _SAFE_FINDERS
            yield
        finally:
            self._return()
            sys.meta_path[:] = finders

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be where commands are while the block runs; the working directory is its root.

        Paths mean there what they mean to a command. Nothing is imported from there:
        the image's files are not the agent's code, whatever their names. May be nested.
        """
        if not self.has_image or self._inside:
            yield
            return
        with self.furnishing(), effective(_POWER):
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    def _return(self) -> None:
        try:
            kernel.set_namespace(self._own, kernel.CLONE_NEWNS)
        except OSError as error:
            # Among the image's files the agent must not run on.
            console.panic(error)
            os._exit(1)
