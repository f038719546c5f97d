"""Every error that boxlite raises, and whose fault it says it is.

::

    BoxliteError
    ├── InvalidOptionError        you: a value that is not allowed (also a ValueError)
    ├── StateError                you: the object is not in a state that allows this
    ├── RuntimeInUseError         you: another runtime holds this home
    ├── HostError                 this machine lacks something; says how to get it
    ├── ImageError                an image cannot be had or used; names it
    │   ├── ImageNotFoundError    there is none of that name
    │   ├── RegistryError         a registry refused, failed or could not be reached
    │   └── ImageRefusedError     its data is broken, or meant to do harm
    ├── BoxStartError             the box did not become ready; has a CrashReport
    │   └── BoxStartTimeoutError  ... within its deadline
    ├── BoxCrashedError           the box was running and died; has a CrashReport
    ├── ExecStartError            the command could not be started in the guest
    ├── CommandFailedError        run(check=True) and the command failed; has the result
    ├── CommandTimeoutError       run(timeout=...) ran out; has the output so far
    ├── CodeTimeoutError          the same of a piece of code in a CodeBox
    ├── GuestError                the guest is at fault
    │   ├── GuestLostError        the connection ended; the command may have run
    │   ├── GuestProtocolError    the guest broke the protocol
    │   ├── GuestTimeoutError     the guest did not answer in time
    │   └── GuestFailedError      the guest answered with a failure
    └── InternalError             boxlite itself is at fault

Errors carry evidence as attributes; ``str()`` of one is complete enough to act
on. No timeout error here is a ``trio.TooSlowError``: an unrelated ``except`` for
that must not swallow one of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ._code_result import CodeResult
    from ._report import CrashReport
    from ._result import ExecResult


class BoxliteError(Exception):
    """The base of every error that boxlite raises on purpose."""


class InvalidOptionError(BoxliteError, ValueError):
    """A value that is not allowed.

    Args:
        field: The name of the option, as the caller wrote it.
        value: What was given. Shown shortened; never an environment value.
        allowed: What is allowed, as the end of the sentence "it must be ...".
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = f"{shown[:100]}... ({len(shown)} characters)"
        super().__init__(f"{field} is {shown}: it must be {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class StateError(BoxliteError):
    """The object is not in a state that allows the operation.

    Args:
        operation: What was asked for.
        required: The state or states in which it is possible.
        actual: The state that the object is in.
    """

    def __init__(self, operation: str, *, required: str, actual: str) -> None:
        super().__init__(f"cannot {operation}: this needs state {required}, and it is {actual}")
        self.operation = operation
        self.required = required
        self.actual = actual


class RuntimeInUseError(BoxliteError):
    """Another runtime holds the home directory.

    Args:
        home: The home directory that both want.
        owner: The process id of the holder, when it could be read.
    """

    def __init__(self, home: Path, owner: int | None) -> None:
        who = f"process {owner}" if owner is not None else "another process"
        super().__init__(
            f"the home {home} is in use by {who}: use that runtime, end it, or give this one"
            " a home of its own (RuntimeOptions.home or BOXLITE_HOME)"
        )
        self.home = home
        self.owner = owner


class HostError(BoxliteError):
    """This machine lacks something that a box needs.

    Args:
        problem: What is missing, one sentence without a full stop.
        fix: What to do about it.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}. {fix}")
        self.problem = problem
        self.fix = fix


class ImageError(BoxliteError):
    """An image cannot be had or used.

    Args:
        image: The image, as a person would name it.
        problem: What is wrong, one sentence without a full stop.
        fix: What to do about it, if anything is known.
    """

    def __init__(self, image: str, problem: str, *, fix: str = "") -> None:
        super().__init__(f"the image {image}: {problem}" + (f". {fix}" if fix else ""))
        self.image = image
        self.problem = problem
        self.fix = fix


class ImageNotFoundError(ImageError):
    """There is no image of that name, here or where it was asked for."""


class RegistryError(ImageError):
    """A registry refused, failed, or could not be reached.

    Args:
        image: The image that was asked for.
        problem: What happened, one sentence without a full stop.
        fix: What to do about it, if anything is known.
        url: What was asked, without credentials.
        status: The HTTP status of the answer, if there was one.
    """

    def __init__(
        self, image: str, problem: str, *, url: str, status: int | None = None, fix: str = ""
    ) -> None:
        super().__init__(image, f"{problem} ({url})", fix=fix)
        self.url = url
        self.status = status


class ImageRefusedError(ImageError):
    """The image's data is broken, or meant to do harm: nothing of it is used.

    Args:
        image: The image.
        problem: What is wrong with it, one sentence without a full stop.
        member: The path in a layer that is at fault, if it is one.
    """

    def __init__(self, image: str, problem: str, *, member: str = "") -> None:
        super().__init__(image, f"{member!r} in a layer: {problem}" if member else problem)
        self.member = member


class _ReportedError(BoxliteError):
    """An error whose text is a crash report's."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(report.render())
        self.report = report


class BoxStartError(_ReportedError):
    """The box did not become ready; ``report`` says why and where to look."""


class BoxStartTimeoutError(BoxStartError):
    """The box did not become ready within its deadline."""


class BoxCrashedError(_ReportedError):
    """A running box died; ``report`` says why and where to look."""


class ExecStartError(BoxliteError):
    """The command could not be started in the guest.

    Args:
        message: What happened, naming the program or the directory.
        exit_code: What a shell would exit with: 127 for a program that is not
            found, 126 for one that cannot be executed, 125 otherwise.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CommandFailedError(BoxliteError):
    """``run(check=True)`` and the command did not exit with 0."""

    def __init__(self, argv: tuple[str, ...], result: ExecResult) -> None:
        tail = result.stderr[-2000:].decode(errors="replace").strip()
        super().__init__(
            f"the command {argv!r} {result.describe()}"
            + (f"; stderr ends:\n{tail}" if tail else "")
        )
        self.argv = argv
        self.result = result


class CommandTimeoutError(BoxliteError):
    """``run(timeout=...)`` ran out and the command was killed.

    ``result`` holds the output so far.
    """

    def __init__(self, argv: tuple[str, ...], timeout: float, result: ExecResult) -> None:
        super().__init__(
            f"the command {argv!r} did not end within {timeout:g} s and was killed"
            f" ({len(result.stdout)} bytes of stdout, {len(result.stderr)} of stderr so far)"
        )
        self.argv = argv
        self.timeout = timeout
        self.result = result


class CodeTimeoutError(BoxliteError):
    """``CodeBox.run(timeout=...)`` ran out.

    Args:
        timeout: The seconds.
        result: What came of the code if it gave in when it was interrupted: then the
            interpreter goes on with its state. None if it was killed.
    """

    def __init__(self, timeout: float, result: CodeResult | None) -> None:
        how = "killed, and its state is lost" if result is None else "interrupted"
        super().__init__(f"the code did not end within {timeout:g} s and was {how}")
        self.timeout = timeout
        self.result = result


class CopyRefusedError(BoxliteError):
    """What the guest sent in a copy is not taken: nothing of it is left on the host.

    Attributes:
        member: The member that is at fault, as its path within the copy; empty if it is
            the whole of it.
        problem: What is wrong with it.
    """

    def __init__(self, member: str, problem: str) -> None:
        what = f"{member!r} in the copy" if member else "the copy"
        super().__init__(f"{what} was refused: {problem}; nothing was copied")
        self.member = member
        self.problem = problem


class GuestError(BoxliteError):
    """The guest is at fault, or the way to it."""


class GuestLostError(GuestError):
    """The connection to the guest ended during a call.

    The command that the call was about *may or may not have run*.
    """


class GuestProtocolError(GuestError):
    """The guest sent something that the protocol does not allow."""


class GuestTimeoutError(GuestError):
    """The guest did not answer within the deadline of the call."""


class GuestFailedError(GuestError):
    """The guest answered a call with a failure.

    Args:
        message: The guest's own words, shortened.
        status: The name of the gRPC status, such as ``"FAILED_PRECONDITION"``.
    """

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class InternalError(BoxliteError):
    """A broken promise of boxlite itself: please report it."""
