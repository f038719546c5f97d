"""One blob, from a registry into the store.

It is verified while it comes: when its last byte is written, its digest is known.
What came before a failure, or before the caller was cancelled, stays in the store as
a partial file, and the next download goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from boxlite._errors import ImageRefusedError

from .exchange import ExchangeError, show_url

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from .blobs import BlobStore
    from .conversation import Conversation
    from .descriptor import Descriptor
    from .progress import PieceKind, Reporter
    from .transport import Transport

#: What is collected before it is hashed and written, and then told about.
BATCH_BYTES: Final = 256 << 10

_HASH_BYTES: Final = 4 << 20
_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/(?:[0-9]{1,19}|\*)")

# One download of a blob at a time per store; entries go when nobody waits any more.
_locks: WeakValueDictionary[tuple[Path, str], trio.Lock] = WeakValueDictionary()


async def fetch_blob(
    conversation: Conversation,
    transport: Transport,
    store: BlobStore,
    descriptor: Descriptor,
    *,
    kind: PieceKind,
    reporter: Reporter,
    limiter: trio.CapacityLimiter,
) -> None:
    """Put a blob in the store, unless it is there.

    Of several callers one downloads, and the others get what it got. Cancelling it
    leaves nothing but the partial file.

    Args:
        conversation: Where to ask for it.
        transport: What reads the answer.
        store: The store.
        descriptor: The blob.
        kind: What it is, for who waits.
        reporter: Who waits.
        limiter: How many download at the same time.

    Raises:
        ImageRefusedError: What was sent is not the blob.
        RegistryError: It could not be had.
        OSError: It could not be written.
    """
    digest, size = descriptor.digest, descriptor.size
    lock = _locks.setdefault((store.root, digest), trio.Lock())
    reporter.tell(kind, digest, "waiting", 0, size)
    # The lock comes first: who waits for another's download does not hold up a third one.
    async with lock:
        if await trio.to_thread.run_sync(store.has, descriptor):
            reporter.tell(kind, digest, "cached", size, size)
            return
        async with limiter:
            partial = await trio.to_thread.run_sync(Partial, store, descriptor)
            try:
                await partial.recall()
                if partial.size < size or not partial.is_right:
                    await _Download(conversation, transport, partial, kind, reporter).run()
                await trio.to_thread.run_sync(partial.publish)
            finally:
                partial.close()
    reporter.tell(kind, digest, "verified", size, size)


class Partial:
    """A blob that is not whole yet, and the digest of what there is of it.

    Everything but :meth:`recall` blocks: call it in a thread. :meth:`close` only
    takes as long as a system call.

    Args:
        store: Where it is.
        descriptor: What it is to become.

    Attributes:
        size: How much of it there is.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, store: BlobStore, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.size = 0
        self._store = store
        self._hash = hashlib.sha256()
        self._path: Path | None = store.partial(descriptor.digest)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)

    @property
    def is_right(self) -> bool:
        """Whether what there is has the digest of the blob."""
        return f"sha256:{self._hash.hexdigest()}" == self.descriptor.digest

    async def recall(self) -> None:
        """Hash what an earlier download left; start anew if that cannot be right.

        Raises:
            OSError: The file cannot be read.
        """
        left = os.fstat(self._fd).st_size
        if left <= self.descriptor.size:
            # In steps, between which it can be cancelled.
            while await trio.to_thread.run_sync(self._hash_on):
                pass
        if left > self.descriptor.size or (left == self.descriptor.size and not self.is_right):
            await trio.to_thread.run_sync(self.restart)

    def _hash_on(self) -> bool:
        data = os.pread(self._fd, _HASH_BYTES, self.size)
        self._hash.update(data)
        self.size += len(data)
        return bool(data)

    def append(self, data: bytes | bytearray) -> None:
        """Write what comes next.

        Raises:
            OSError: It cannot be written.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.size)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def restart(self) -> None:
        """Forget what there is.

        Raises:
            OSError: The file cannot be changed.
        """
        os.ftruncate(self._fd, 0)
        self.size = 0
        self._hash = hashlib.sha256()

    def publish(self) -> None:
        """Give it its place as a blob.

        Raises:
            OSError: It could not be done.
        """
        assert self._path is not None
        self._store.publish(self.descriptor.digest, self._path)
        self._path = None

    def close(self) -> None:
        """Close the file, and remove it if there is nothing in it."""
        is_empty = os.fstat(self._fd).st_size == 0
        os.close(self._fd)
        if self._path is not None and is_empty:
            with suppress(OSError):  # Nothing is lost by its staying.
                self._path.unlink()


class _Download:
    """What there is to know while a blob comes."""

    def __init__(
        self,
        conversation: Conversation,
        transport: Transport,
        partial: Partial,
        kind: PieceKind,
        reporter: Reporter,
    ) -> None:
        self._conversation = conversation
        self._transport = transport
        self._partial = partial
        self._kind = kind
        self._reporter = reporter

    async def run(self) -> None:
        self._tell()
        await self._conversation.fetch(
            f"blobs/{self._partial.descriptor.digest}", self._take, headers=self._headers
        )

    def _headers(self) -> dict[str, str]:
        at = self._partial.size
        return {"Range": f"bytes={at}-"} if at else {}

    def _tell(self) -> None:
        partial = self._partial
        digest, size = partial.descriptor.digest, partial.descriptor.size
        self._reporter.tell(self._kind, digest, "downloading", partial.size, size)

    async def _take(self, response: httpx.Response) -> None:
        partial = self._partial
        if response.status_code == 206:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != partial.size:
                raise await self._anew(response, "it sent another part than it was asked for")
        elif response.status_code == 416:
            raise await self._anew(response, "it has no more of a piece than there was")
        elif partial.size:
            # It does not know ranges, and sends everything.
            await trio.to_thread.run_sync(partial.restart)
        is_resumed = partial.size > 0
        await self._receive(response)
        if partial.size < partial.descriptor.size:
            raise self._failed(response, "its answer ended early")
        if partial.is_right:
            return
        if is_resumed:
            # What was there may be at fault: left by a crash, or sent by somebody else.
            raise await self._anew(response, "what it sent does not fit what there was")
        raise await self._refused("a piece of it has not the digest that its manifest says")

    async def _receive(self, response: httpx.Response) -> None:
        partial = self._partial
        batch = bytearray()
        size = partial.descriptor.size
        try:
            async with aclosing(self._transport.chunks(response)) as chunks:
                async for chunk in chunks:
                    if partial.size + len(batch) + len(chunk) > size:
                        batch.clear()
                        raise await self._refused(
                            f"a piece of it has more than the {size} bytes that its manifest says"
                        )
                    batch += chunk
                    if len(batch) >= BATCH_BYTES:
                        full, batch = batch, bytearray()
                        await trio.to_thread.run_sync(partial.append, full)
                        self._tell()
        finally:
            # A failure costs nothing that was received. Cancelled, it is not worth a thread.
            if batch:
                await trio.to_thread.run_sync(partial.append, batch)

    async def _refused(self, problem: str) -> ImageRefusedError:
        await trio.to_thread.run_sync(self._partial.restart)
        return ImageRefusedError(
            self._reporter.image, f"{problem} ({self._partial.descriptor.digest})"
        )

    async def _anew(self, response: httpx.Response, problem: str) -> ExchangeError:
        await trio.to_thread.run_sync(self._partial.restart)
        return self._failed(response, problem)

    def _failed(self, response: httpx.Response, problem: str) -> ExchangeError:
        return ExchangeError(
            problem, url=show_url(response.url), status=response.status_code, is_transient=True
        )
