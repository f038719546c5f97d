"""Files and trees copied into a box and out of it, as a stream of tar."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import attrs
import trio

from ._bulk import Channel
from ._errors import CopyRefusedError, GuestProtocolError
from ._publish import Staging
from ._tree.format import Kind, Member, TarError
from ._tree.names import ROOT
from ._tree.pack import Span, pack
from ._tree.unpack import Rules, Unpacker
from ._wire import SKIPPED_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._rpc.convert import CopyReport
    from ._rpc.execution import RawExecution
    from ._rpc.session import GuestSession

    OnProgress = Callable[["CopyProgress"], object]

#: What copy_out() takes unless it is told otherwise: a guest's files can be endless.
MAX_BYTES_DEFAULT: Final = 4 << 30
MEMBERS_MAX: Final = 1_000_000
_CHUNK_BYTES: Final = 1 << 20
#: Data from this size on is not gathered with what is before it.
_LARGE_BYTES: Final = 1 << 17
_TIDY_SECONDS: Final = 60.0


@attrs.frozen(kw_only=True)
class CopyProgress:
    """How far a copy has come.

    Args:
        member: What is being copied, as its path within the copy; empty for its root.
        members: How many files, directories and links have been begun.
        bytes: How many bytes of their content they have, together.
    """

    member: str = ""
    members: int = 0
    bytes: int = 0


@attrs.frozen(kw_only=True)
class CopyResult:
    """What was copied.

    Args:
        files: Regular files, each of their names counted.
        directories: Directories.
        links: Symbolic links.
        bytes: The content of the files.
        skipped: How many things were left out: sockets, fifos and devices, and what
            vanished meanwhile.
        skipped_names: The first hundred of them, and why each.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    skipped: int = 0
    skipped_names: tuple[str, ...] = ()


class _Tally:
    """Counts what passes, in a thread; tells it, from Trio."""

    def __init__(self, progress: OnProgress | None) -> None:
        self._progress = progress
        self._counts = dict.fromkeys(Kind, 0)
        self._bytes = self._skipped = 0
        self._member = ""
        self._skipped_names: list[str] = []

    def count(self, member: Member) -> None:
        """Count a member in."""
        self._counts[member.kind] += 1
        self._bytes += member.size
        self._member = _within(member.name)

    def skip(self, path: bytes, why: str) -> None:
        """Count what is left out."""
        self._skipped += 1
        if len(self._skipped_names) < SKIPPED_NAMES:
            self._skipped_names.append(f"{os.fsdecode(path)}: {why}")

    def tell(self) -> None:
        """Tell how far it has come."""
        if self._progress is not None:
            members = sum(self._counts.values())
            self._progress(CopyProgress(member=self._member, members=members, bytes=self._bytes))

    def result(self, report: CopyReport) -> CopyResult:
        """Return what was copied; of what was left out, the guest may have had its own."""
        theirs = [os.fsdecode(name) for name in report.skipped_names]
        return CopyResult(
            files=self._counts[Kind.FILE] + self._counts[Kind.HARD_LINK],
            directories=self._counts[Kind.DIRECTORY],
            links=self._counts[Kind.SYMLINK],
            bytes=self._bytes,
            skipped=self._skipped + report.skipped,
            skipped_names=tuple(self._skipped_names + theirs),
        )


async def copy_in(
    session: GuestSession,
    source: Path,
    target: str,
    *,
    replace: bool,
    keep_owners: bool,
    progress: OnProgress | None,
) -> CopyResult:
    """Copy a file or a tree into a guest; see :meth:`boxlite.Box.copy_in`."""
    tally = _Tally(progress)
    await trio.to_thread.run_sync(os.stat, source)  # Before the guest makes anything.
    chunks = _Chunks(os.fsencode(source), tally)
    call = session.copy_in(os.fsencode(target), replace=replace, keep_owners=keep_owners)
    try:
        async with call as raw:
            try:
                await raw.wait_started()
                while chunk := await trio.to_thread.run_sync(chunks.next):
                    await raw.send_stdin(chunk)
                    tally.tell()
                await raw.close_stdin()
            except trio.BrokenResourceError:
                pass  # The guest has given up, and its report says why.
            report = await _report(raw)
    finally:
        chunks.close()
    _raise_refusal(report, "the guest cannot unpack it", target)
    return tally.result(report)


class _Chunks:
    """A tar in chunks of about a megabyte. Blocks: call it in a thread."""

    def __init__(self, path: bytes, tally: _Tally) -> None:
        self._tally = tally
        self._parts = pack(path, tally.skip)
        self._span: Span | None = None
        self._member = b""

    def next(self) -> bytes:
        """Return the next chunk; ``b""`` at the end."""
        chunk = bytearray()
        while len(chunk) < _CHUNK_BYTES:
            part = self._span or next(self._parts, None)
            if part is None:
                break
            if isinstance(part, Member):
                self._member = part.name
                self._tally.count(part)
            elif isinstance(part, bytes):
                chunk += part
            elif chunk and part.size >= _LARGE_BYTES and self._span is None:
                self._span = part
                break
            else:
                chunk += self._read(part)
        return bytes(chunk)

    def _read(self, span: Span) -> bytes:
        data = os.pread(span.fd, min(span.size, _CHUNK_BYTES), span.offset)
        if not data:
            raise OSError(errno.EIO, "it became shorter while it was read", _within(self._member))
        rest = Span(span.fd, span.offset + len(data), span.size - len(data))
        self._span = rest if rest.size else None
        return data

    def close(self) -> None:
        """Close the file that is being read."""
        self._parts.close()


async def copy_out(
    session: GuestSession,
    source: str,
    target: Path,
    *,
    rules: Rules,
    replace: bool,
    progress: OnProgress | None,
) -> CopyResult:
    """Copy a file or a tree out of a guest; see :meth:`boxlite.Box.copy_out`."""
    tally = _Tally(progress)
    staging = await trio.to_thread.run_sync(Staging, target)
    unpacker = Unpacker(staging.directory, staging.name, rules, tally.count)
    try:
        async with session.copy_out(os.fsencode(source)) as raw:
            while pieces := await raw.receive_pieces(
                Channel.STDOUT, _CHUNK_BYTES, at_least=_CHUNK_BYTES
            ):
                await trio.to_thread.run_sync(_feed, unpacker, pieces)
                tally.tell()
            report = await _report(raw)
        _raise_refusal(report, "the guest cannot pack it", source)
        await trio.to_thread.run_sync(unpacker.finish)
        await trio.to_thread.run_sync(partial(staging.publish, replace=replace))
    except TarError as error:
        raise CopyRefusedError(_within(error.name), error.problem) from None
    except OSError as error:
        if isinstance(error.filename, bytes):  # A member that the disk did not take.
            error.filename = str(target / _within(error.filename))
        raise
    finally:
        # Half a copy must not stay when we are cancelled. A disk that takes longer than
        # this must not keep us: then the thread goes on alone. It waits for no other one.
        with trio.move_on_after(_TIDY_SECONDS, shield=True):
            limiter = trio.CapacityLimiter(1)
            tidy = partial(_tidy, unpacker, staging)
            await trio.to_thread.run_sync(tidy, limiter=limiter, abandon_on_cancel=True)
    return tally.result(report)


def _feed(unpacker: Unpacker, pieces: list[memoryview]) -> None:
    for piece in pieces:
        unpacker.feed(piece)


def _tidy(unpacker: Unpacker, staging: Staging) -> None:
    try:
        unpacker.close()
    finally:
        staging.close()


async def _report(raw: RawExecution) -> CopyReport:
    exited = await raw.wait()
    if exited.copy is None:
        raise GuestProtocolError("the guest ended a copy without a report")
    return exited.copy


def _raise_refusal(report: CopyReport, what: str, path: str) -> None:
    """Raise what the guest's kernel, or its agent, refused."""
    if report.error:
        why = report.problem or os.strerror(report.error)
        shown = why if why.isprintable() else ascii(why)
        where = report.path
        if not where.startswith(b"/"):  # The name of a member.
            where = os.fsencode(PurePosixPath(path) / _within(where))
        raise OSError(report.error, f"{what}: {shown}", os.fsdecode(where))


def _within(name: bytes) -> str:
    """Return a member's path within the copy."""
    return os.fsdecode(name.removeprefix(ROOT).removeprefix(b"/"))
