"""A box that runs Python code piece by piece, with or without memory of the last one."""

from __future__ import annotations

import json
import signal
import struct
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, Unpack

import trio

from boxlite._errors import (
    CodeTimeoutError,
    GuestProtocolError,
    InvalidOptionError,
    StateError,
)
from boxlite._options import BoxFields, BoxOptions, check_byte_count, check_seconds
from boxlite._scopes import open_nursery_unwrapped

from .answer import code_result
from .simple_box import SimpleBox

if TYPE_CHECKING:
    from types import TracebackType

    from boxlite._box import Box
    from boxlite._code_result import CodeResult
    from boxlite._execution import Execution
    from boxlite._runtime import Runtime

#: What is kept of each of the two streams of one piece of code.
MAX_OUTPUT_DEFAULT: Final = 1 << 20
#: The most that an interpreter may answer: output, value and rich results, in base64.
_ANSWER_BYTES: Final = 64 << 20
_CODE_BYTES: Final = 16 << 20
#: How long code that was interrupted may take to give in.
_INTERRUPTED_SECONDS: Final = 2.0
_KILL_SECONDS: Final = 2.0
_RUNNER: Final = Path(__file__).with_name("runner.py")


class _Interpreter:
    """One interpreter in the box, and the conversation with it."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.over = trio.Event()

    async def ask(self, request: dict[str, object]) -> None:
        data = json.dumps(request).encode()
        await self.execution.stdin.send_all(struct.pack(">I", len(data)) + data)

    async def answer(self) -> CodeResult:
        (size,) = struct.unpack(">I", await self._read(4))
        if size > _ANSWER_BYTES:
            raise GuestProtocolError(f"the interpreter's answer has {size} bytes")
        return code_result(await self._read(size))

    async def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = await self.execution.stdout.receive_some(size - len(data))
            if not chunk:
                raise GuestProtocolError("the interpreter has ended in the middle of an answer")
            data += chunk
        return bytes(data)


class CodeBox:
    """Runs pieces of Python code in a box, each after the other in one interpreter.

    ::

        async with boxlite.CodeBox() as code:
            await code.run("x = 6")
            assert (await code.run("x * 7")).value == "42"

    Use it as an async context manager. Leaving it ends the interpreter, and the box
    too if it was made here. Any number of tasks may use it; they take turns.

    Args:
        options: What the box is to be; or give its fields as keywords, or both.
        box: Use this box instead of one of its own.
        runtime: Open the box in this runtime instead of one of its own.
        changes: Fields of :class:`BoxOptions`.
    """

    def __init__(
        self,
        options: BoxOptions | None = None,
        *,
        box: Box | None = None,
        runtime: Runtime | None = None,
        **changes: Unpack[BoxFields],
    ) -> None:
        if box is not None and (options is not None or runtime is not None or changes):
            raise InvalidOptionError("box", box, "the only argument, for it has its options")
        self._given = box
        self._own = SimpleBox(options, runtime=runtime, **changes)
        self._stack = AsyncExitStack()
        self._turn = trio.Lock()
        self._interpreter: _Interpreter | None = None
        self._box: Box | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def box(self) -> Box:
        """The box, for everything else that it can do.

        Raises:
            StateError: It is not open.
        """
        if self._box is None:
            raise StateError("use the code box", required="open", actual="not open")
        return self._box

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            box = self._given or await stack.enter_async_context(self._own)
            self._nursery = await stack.enter_async_context(open_nursery_unwrapped())
            self._stack = stack.pop_all()
        self._box = box
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._box = None
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        fresh: bool = False,
        max_output: int = MAX_OUTPUT_DEFAULT,
    ) -> CodeResult:
        """Run a piece of code and return what came of it; its exception is a part of that.

        Cancelling it kills the interpreter, and all that the code had made.

        Args:
            code: Statements; the value of a last one that is an expression is told.
            timeout: Seconds after which the code is interrupted as by ^C, and killed
                if it does not give in. Default: none.
            fresh: Forget first what earlier pieces have defined. Default: no.
            max_output: Bytes to keep of each of the two streams. Default 1 MiB.

        Raises:
            InvalidOptionError: An argument cannot work.
            CodeTimeoutError: ``timeout`` ran out; has the result if there is one.
            ExecStartError: There is no ``python3`` in the box.
            GuestProtocolError: The interpreter ended, or was tampered with.
            BoxCrashedError: The VM died.
            StateError: It is not open.
        """
        if not isinstance(code, str) or len(code.encode(errors="replace")) > _CODE_BYTES:
            allowed = f"text of at most {_CODE_BYTES} bytes"
            shown = code if not isinstance(code, str) else f"{len(code)} characters"
            raise InvalidOptionError("code", shown, allowed)
        check_byte_count("max_output", max_output)
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        request = {"code": code, "fresh": fresh, "limit": max_output}
        async with self._turn:
            interpreter = await self._living_interpreter()
            try:
                return await self._ask(interpreter, request, seconds)
            except BaseException as exc:
                if isinstance(exc, CodeTimeoutError) and exc.result is not None:
                    raise  # It gave in, and is ready for the next.
                # What was asked is not to go on, and its answer is not for the next.
                self._interpreter = None
                interpreter.over.set()
                with trio.move_on_after(_KILL_SECONDS, shield=True):
                    await interpreter.execution.kill()
                raise

    async def _ask(
        self, interpreter: _Interpreter, request: dict[str, object], seconds: float | None
    ) -> CodeResult:
        try:
            with trio.move_on_after(float("inf") if seconds is None else seconds):
                await interpreter.ask(request)
                return await interpreter.answer()
            assert seconds is not None
            await interpreter.execution.send_signal(signal.SIGINT)
            result: CodeResult | None = None
            with trio.move_on_after(_INTERRUPTED_SECONDS):
                result = await interpreter.answer()
        except trio.BrokenResourceError:
            raise GuestProtocolError("the interpreter has ended") from None
        raise CodeTimeoutError(seconds, result)

    async def _living_interpreter(self) -> _Interpreter:
        box = self.box
        if self._interpreter is None:
            assert self._nursery is not None
            self._interpreter = await self._nursery.start(self._keep_interpreter, box)
        return self._interpreter

    async def _keep_interpreter(
        self, box: Box, *, task_status: trio.TaskStatus[_Interpreter]
    ) -> None:
        """Hold the execution's block open in a task of its own: runs come from any task."""
        command = ["python3", "-u", "-c", _RUNNER.read_text()]
        async with box.exec(command, env={"MPLBACKEND": "Agg"}) as execution:
            interpreter = _Interpreter(execution)
            task_status.started(interpreter)
            await interpreter.over.wait()
