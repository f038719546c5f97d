"""A Trio loop in a thread with a runtime in it, for tests that are not async themselves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import boxlite

T = TypeVar("T")


class LoopThread:
    """Runs a runtime until it is closed. Subclasses say which.

    Attributes:
        runtime: The runtime.
        nursery: In it, and cancelled before it is left.
    """

    runtime: boxlite.Runtime
    nursery: trio.Nursery
    #: The most that one function may take.
    seconds: float = 120.0

    def __init__(self) -> None:
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=type(self).__name__)
        self._thread.start()
        self._started.wait()
        self._raise()

    def open_runtime(self) -> AbstractAsyncContextManager[boxlite.Runtime]:
        """Return the runtime's context manager; called in the loop."""
        raise NotImplementedError

    def play(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:  # noqa: ANN401
        """Run an async function in the loop, bounded, and return what it returns."""

        async def bounded() -> T:
            with trio.fail_after(self.seconds):
                return await function(*args)

        return trio.from_thread.run(bounded, trio_token=self._token)

    def close(self) -> None:
        """End the runtime and the thread."""
        trio.from_thread.run_sync(self._done.set, trio_token=self._token)
        self._thread.join()
        self._raise()

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as exc:  # noqa: BLE001 - raised in the test's thread
            self._failure = exc
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        async with self.open_runtime() as self.runtime:
            async with trio.open_nursery() as self.nursery:
                self._started.set()
                await self._done.wait()
                self.nursery.cancel_scope.cancel()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
