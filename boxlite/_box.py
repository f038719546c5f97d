"""A box: what can be done with a running virtual machine."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ._command import CommandDefaults, check_command
from ._copy import MAX_BYTES_DEFAULT, MEMBERS_MAX, copy_in, copy_out
from ._copy_paths import box_path, host_path, own_name
from ._errors import CommandFailedError, InvalidOptionError
from ._execution import Execution
from ._options import check_byte_count, check_flag, check_seconds
from ._path import BoxPath
from ._run import run_to_end
from ._tree.unpack import Rules

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from ._command import TerminalSize
    from ._copy import CopyResult, OnProgress
    from ._images.image import Image
    from ._options import BoxOptions
    from ._result import ExecResult
    from ._rpc.convert import GuestInfo
    from ._rpc.files import FileCalls
    from ._run import OnOutput
    from ._state import BoxState
    from ._use import Use

T = TypeVar("T")

#: What run() keeps of each stream unless it is told otherwise.
MAX_OUTPUT_DEFAULT: Final = 16 << 20
_PING_SECONDS: Final = 10.0


class Box:
    """A running virtual machine that takes commands.

    Made by :meth:`Runtime.open_box` or :meth:`Runtime.attach`, and usable until
    its block ends. Any number of tasks may use it at once.

    When the VM dies, the block is cancelled and leaving it raises
    :class:`BoxCrashedError`; a call from a task outside the block raises it
    directly.

    Attributes:
        id: The box's id, unique in its home.
        options: What it was asked to be.
        image: Its image; None for the built-in one.
        timings: The stages of its start and the seconds that each took.
    """

    def __init__(
        self, use: Use, *, options: BoxOptions, timings: tuple[tuple[str, float], ...]
    ) -> None:
        self._use = use
        self.id = use.start.box_id
        self.options = options
        self.image = use.start.image
        self._defaults = _defaults_of(self.image)
        self.timings = timings

    def __repr__(self) -> str:
        return f"<boxlite.Box {self.id} {self.state.value}>"

    @property
    def state(self) -> BoxState:
        """What the box is doing."""
        return self._use.start.lifecycle.state

    @property
    def shim_pid(self) -> int:
        """The process id of the shim, for diagnosis."""
        return self._use.start.shim.pid

    async def ping(self, *, timeout: float = _PING_SECONDS) -> float:
        """Ask the guest for a sign of life; return the round trip in seconds.

        Raises:
            GuestTimeoutError: No answer within ``timeout`` seconds.
            BoxCrashedError: The VM died.
        """
        began = trio.current_time()
        async with self._use.calling():
            await self._use.start.session.ping(timeout=check_seconds("timeout", timeout))
        return trio.current_time() - began

    async def info(self, *, timeout: float = _PING_SECONDS) -> GuestInfo:
        """Ask the guest what it is: its kernel, its memory, this boot of it.

        Raises:
            GuestTimeoutError: No answer within ``timeout`` seconds.
            BoxCrashedError: The VM died.
        """
        async with self._use.calling():
            return await self._use.start.session.info(timeout=check_seconds("timeout", timeout))

    @asynccontextmanager
    async def exec(
        self,
        command: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        terminal: TerminalSize | None = None,
        merge_stderr: bool = False,
        user: str | int | None = None,
    ) -> AsyncIterator[Execution]:
        """Run a command and talk to it while it runs.

        Entering it returns when the command has started. Leaving the block in
        the ordinary way closes standard input, drops unread output and waits
        for the command to end. An exception or a cancellation that leaves the
        block kills the command's whole process group with SIGKILL.

        Args:
            command: The program, looked up on the command's own ``PATH``, and
                its arguments. No shell is involved.
            env: Variables over the box's.
            cwd: An absolute path in the box. Default: the image's working directory, or /.
            terminal: Give it a pseudo-terminal of this size; then stderr is
                empty and everything arrives on stdout.
            merge_stderr: Have it write both streams to one pipe, so that their
                order is kept; then stderr is empty. Default: no.
            user: Who it runs as: ``"USER"`` or ``"USER:GROUP"``, each a name that the box's
                own files have, or a number. Its ``HOME`` is the user's. Default: the
                image's user, or root.

        Raises:
            InvalidOptionError: The command cannot be given to a program.
            ExecStartError: The guest could not start it: the program is not
                there (``exit_code`` 127), cannot be executed (126), or the
                directory or the user is not there (125).
            BoxCrashedError: The VM died.
        """
        checked = check_command(
            command,
            env=env,
            cwd=cwd,
            terminal=terminal,
            merge_stderr=merge_stderr,
            user=user,
            beneath=self.options.env,
            defaults=self._defaults,
        )
        self._use.start.secrets.add((env or {}).values())
        async with (
            self._use.calling(),
            self._use.start.session.execute(checked) as raw,
        ):
            execution = Execution(raw, pid=await raw.wait_started(), words=checked.words)
            yield execution
            await execution.finish()

    async def run(
        self,
        command: Sequence[str | bytes | os.PathLike[str]],
        *,
        input: bytes = b"",  # noqa: A002 - the name that subprocess taught
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output: int = MAX_OUTPUT_DEFAULT,
        on_output: OnOutput | None = None,
        terminal: TerminalSize | None = None,
        merge_stderr: bool = False,
        user: str | int | None = None,
    ) -> ExecResult:
        """Run a command to its end and return its exit and output.

        Cancelling it kills the command's whole process group.

        Args:
            command: The program, looked up on the command's own ``PATH``, and
                its arguments. No shell is involved.
            input: Bytes for standard input, which is closed after them.
            env: Variables over the box's.
            cwd: As for :meth:`exec`.
            timeout: Seconds after which the command is killed. Default: none.
            check: Raise if it does not exit with 0.
            max_output: Bytes to keep of each stream; what comes after is read,
                dropped and flagged in the result. Default 16 MiB.
            on_output: Called synchronously with ``"stdout"`` or ``"stderr"`` and
                each chunk as it comes, kept or not; what it raises kills the
                command and comes out. Default: none.
            terminal: As for :meth:`exec`.
            merge_stderr: As for :meth:`exec`.
            user: As for :meth:`exec`.

        Returns:
            The result. A non-zero exit is a result, unless ``check``.

        Raises:
            InvalidOptionError: An argument cannot work.
            ExecStartError: The guest could not start the command.
            CommandTimeoutError: ``timeout`` ran out; has the output so far.
            CommandFailedError: ``check``, and it did not exit with 0.
            BoxCrashedError: The VM died.
        """
        limit = None if timeout is None else check_seconds("timeout", timeout)
        if not isinstance(input, (bytes, bytearray, memoryview)):
            raise InvalidOptionError("input", input, "bytes")
        check_byte_count("max_output", max_output)
        async with self.exec(
            command, env=env, cwd=cwd, terminal=terminal, merge_stderr=merge_stderr, user=user
        ) as execution:
            result = await run_to_end(
                execution,
                bytes(input),
                seconds=limit,
                max_output=max_output,
                on_output=on_output,
            )
        if check and result.exit_code != 0:
            raise CommandFailedError(execution.words, result)
        return result

    def path(self, path: str) -> BoxPath:
        """Return a path in the box, with the methods of ``trio.Path``. Asks the guest nothing.

        Args:
            path: Absolute.

        Raises:
            InvalidOptionError: It is not.
        """
        return BoxPath(self._ask_about_files, path)

    async def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str | BoxPath,
        *,
        overwrite: bool = True,
        keep_owners: bool = False,
        progress: OnProgress | None = None,
    ) -> CopyResult:
        """Copy a file or a tree of this machine into the box.

        Modes, times (whole seconds), symbolic and hard links and holes are kept. What is
        neither file, directory nor link is left out and counted. Cancelled, it has copied
        some first part.

        Args:
            source: What to copy. If it is a link, what that leads to; links in a tree stay links.
            target: What the copy is to be, absolute; with a slash at its end, the directory
                for it. Directories above it are made; one that is there is merged into.
            overwrite: Replace files that are there. Default: yes.
            keep_owners: Keep numeric owners. Default: everything belongs to root.
            progress: Called synchronously as it goes on.

        Raises:
            InvalidOptionError: An argument cannot work.
            OSError: What this machine's kernel or the guest's refused, with the path.
            BoxCrashedError: The VM died.
        """
        check_flag("overwrite", overwrite)
        check_flag("keep_owners", keep_owners)
        path = host_path("source", source)
        where = box_path("target", target, name=own_name(source))
        async with self._use.calling():
            return await copy_in(
                self._use.start.session,
                path,
                where,
                replace=overwrite,
                keep_owners=keep_owners,
                progress=progress,
            )

    async def copy_out(
        self,
        source: str | BoxPath,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = True,
        keep_owners: bool = False,
        outside_links: bool = False,
        max_bytes: int = MAX_BYTES_DEFAULT,
        progress: OnProgress | None = None,
    ) -> CopyResult:
        """Copy a file or a tree of the box to this machine.

        The copy is made beside the target and put in place when it is complete and in
        order: refused, failed or cancelled, nothing of it is left. Whatever the guest
        sends, nothing is written outside of the target. Otherwise as for :meth:`copy_in`;
        set-user-ID and set-group-ID bits are dropped.

        Args:
            source: What to copy, absolute.
            target: What the copy is to be; with a slash at its end, the directory for it.
            overwrite: Replace files that are there. Default: yes. A file never replaces a
                directory, nor the other way round.
            keep_owners: Keep numeric owners, which needs root. Default: everything is yours.
            outside_links: Take symbolic links that lead, or may lead, out of the copy.
                Default: they are refused.
            max_bytes: The most that the files may have together, holes included.
                Default 4 GiB.
            progress: Called synchronously as it goes on.

        Raises:
            InvalidOptionError: An argument cannot work.
            CopyRefusedError: The guest sent what is not taken; names the member.
            OSError: What this machine's kernel or the guest's refused, with the path.
            BoxCrashedError: The VM died.
        """
        check_flag("overwrite", overwrite)
        check_flag("keep_owners", keep_owners)
        check_flag("outside_links", outside_links)
        check_byte_count("max_bytes", max_bytes)
        origin = box_path("source", source)
        where = host_path("target", target, name=PurePosixPath(origin).name)
        rules = Rules(
            owners=keep_owners,
            links_out=outside_links,
            max_bytes=max_bytes,
            max_members=MEMBERS_MAX,
        )
        async with self._use.calling():
            return await copy_out(
                self._use.start.session,
                origin,
                where,
                rules=rules,
                replace=overwrite,
                progress=progress,
            )

    async def _ask_about_files(self, what: Callable[[FileCalls], Awaitable[T]]) -> T:
        async with self._use.calling():
            return await what(self._use.start.session.files)

    async def stop(self) -> None:
        """Stop the box now, in order; a detached one too. Idempotent.

        The guest is asked, then signalled, then killed, each step bounded.
        Calls that are under way raise :class:`StateError`, as all do from now
        on, and the block goes on. Cancelling it kills the VM at once.

        Raises:
            BoxCrashedError: The VM has died before.
            StateError: The block has ended, and the box was left running.
            HostError: A process is still there after SIGKILL.
        """
        await self._use.stop()


def _defaults_of(image: Image | None) -> CommandDefaults:
    if image is None:
        return CommandDefaults()
    config = image.config
    pairs = (variable.partition("=") for variable in config.env)
    return CommandDefaults.of_image(
        env=[(name, value) for name, _, value in pairs], cwd=config.working_dir, user=config.user
    )
