"""A box with as little around it as possible."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Unpack

from boxlite._options import BoxFields, BoxOptions, options_from
from boxlite._runtime import open_runtime

if TYPE_CHECKING:
    from types import TracebackType

    from boxlite._box import Box
    from boxlite._runtime import Runtime


class SimpleBox:
    """A box, and a runtime for it alone unless there is one.

    ::

        async with boxlite.SimpleBox(memory_mib=512) as box:
            await box.run(["python3", "-c", "print(6 * 7)"])

    A home has one runtime at a time: a program with several boxes opens a runtime and
    gives it to them.

    Args:
        options: What the box is to be; or give its fields as keywords, or both.
        runtime: Open the box in this runtime.
        changes: Fields of :class:`BoxOptions`.

    Raises:
        InvalidOptionError: An option is not allowed.
    """

    def __init__(
        self,
        options: BoxOptions | None = None,
        *,
        runtime: Runtime | None = None,
        **changes: Unpack[BoxFields],
    ) -> None:
        self._options = options_from(BoxOptions, options, changes)
        self._runtime = runtime
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Box:
        async with AsyncExitStack() as stack:
            runtime = self._runtime
            if runtime is None:
                runtime = await stack.enter_async_context(open_runtime())
            box = await stack.enter_async_context(runtime.open_box(self._options))
            self._stack = stack.pop_all()
        return box

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(exc_type, exc, traceback)
