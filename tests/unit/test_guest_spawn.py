"""Commands that cannot be started, and what the host is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from guest_under_test import AgentUnderTest, StartOptions, refusal, run, running_agent

from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._rpc._generated.boxlite.v1 import RefusalReason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grpclib.client import Channel


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentUnderTest]:
    """One agent for all tests here."""
    with running_agent() as running:
        yield running


def program(path: Path, text: str, mode: int = 0o755) -> str:
    """Write a file and return its name."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_program_that_is_not_on_path_is_not_found(agent: AgentUnderTest) -> None:
    """The PATH is the command's, not the agent's, and the sentence shows it."""
    refused = agent.run(lambda c: refusal(c, "no-such-program", env={b"PATH": b"/opt/none:/bin"}))

    assert refused == (
        RefusalReason.PROGRAM_NOT_FOUND,
        "there is no program 'no-such-program' on PATH ('/opt/none:/bin')",
    )


def test_a_path_that_does_not_exist_is_not_found(agent: AgentUnderTest) -> None:
    """A name with a slash is not looked for anywhere else."""
    refused = agent.run(lambda c: refusal(c, "/no/such/program"))

    assert refused == (RefusalReason.PROGRAM_NOT_FOUND, "there is no file '/no/such/program'")


def test_a_program_is_found_on_the_path_of_the_request(
    agent: AgentUnderTest, tmp_path: Path
) -> None:
    """The first directory that has an executable file of that name wins."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    program(first / "greet", "not executable", 0o644)
    program(second / "greet", "#!/bin/sh\necho $0 $1\n")
    path = f"{first}:{second}".encode()

    done = agent.run(lambda c: run(c, "greet", "you", env={b"PATH": path}))

    assert done == (0, f"{second}/greet you\n".encode(), b"")


def test_a_relative_program_is_relative_to_the_working_directory(
    agent: AgentUnderTest, tmp_path: Path
) -> None:
    """As in a shell, with a slash and with an empty entry of PATH."""
    program(tmp_path / "here", "#!/bin/sh\necho here\n")
    cwd = str(tmp_path).encode()

    async def scenario(channel: Channel) -> None:
        assert await run(channel, "./here", cwd=cwd) == (0, b"here\n", b"")
        assert await run(channel, "here", cwd=cwd, env={b"PATH": b":/bin"}) == (0, b"here\n", b"")

    agent.run(scenario)


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ("#!/bin/sh\n", 0o644, "has no permission to be executed"),
        ("#!/no/such/shell -e\n", 0o755, "needs the interpreter '/no/such/shell', which is not"),
        ("echo no first line\n", 0o755, "is neither a program for this machine nor a script"),
    ],
    ids=["permission", "interpreter", "format"],
)
def test_a_file_that_cannot_be_executed_is_named(
    agent: AgentUnderTest, tmp_path: Path, text: str, mode: int, sentence: str
) -> None:
    """The file is there, so the answer is not that it was not found."""
    name = program(tmp_path / "tool", text, mode)

    reason, detail = agent.run(lambda c: refusal(c, name))

    assert reason == RefusalReason.NOT_EXECUTABLE
    assert name in detail
    assert sentence in detail


def test_a_directory_is_not_executable(agent: AgentUnderTest) -> None:
    """Although it has the permission bit."""
    refused = agent.run(lambda c: refusal(c, "/usr/bin"))

    assert refused == (RefusalReason.NOT_EXECUTABLE, "'/usr/bin' is a directory")


@pytest.mark.parametrize(
    ("cwd", "problem"),
    [(b"/no/such/directory", "No such file or directory"), (b"/etc/passwd", "Not a directory")],
)
def test_a_working_directory_that_cannot_be_entered_is_named(
    agent: AgentUnderTest, cwd: bytes, problem: str
) -> None:
    """Even when the program would not be found either: it could depend on the directory."""
    refused = agent.run(lambda c: refusal(c, "no-such-program", cwd=cwd))

    assert refused == (
        RefusalReason.CWD_NOT_FOUND,
        f"the working directory '{cwd.decode()}' cannot be entered: {problem}",
    )


@pytest.mark.parametrize(
    ("argv", "options", "sentence"),
    [
        ([], {}, "names no program"),
        ([""], {}, "names no program"),
        (["echo", b"a\0b"], {}, "an argument contains a NUL byte"),
        (["true"], {"cwd": b"relative"}, "'relative' is not an absolute path"),
        (["true"], {"env": {b"": b"x"}}, "the environment variable named ''"),
        (["true"], {"env": {b"A=B": b"x"}}, "the environment variable named 'A=B'"),
        (["true"], {"env": {b"A": b"\0"}}, "the environment variable named 'A'"),
        (
            ["true"],
            {"terminal": wire.TerminalSize(rows=24, columns=65_536)},
            "24 rows and 65536 columns",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_breaks_a_rule_is_invalid(
    agent: AgentUnderTest, argv: list[str], options: StartOptions, sentence: str
) -> None:
    """The sentence says which rule."""
    reason, detail = agent.run(lambda c: refusal(c, *argv, **options))

    assert reason == RefusalReason.INVALID
    assert sentence in detail


def test_a_long_name_is_shortened_in_the_sentence(agent: AgentUnderTest) -> None:
    """The protocol allows 4,096 characters, and nobody reads as many."""
    reason, detail = agent.run(lambda c: refusal(c, "x" * 100_000))

    assert reason == RefusalReason.NOT_EXECUTABLE  # ENAMETOOLONG, which is not ENOENT.
    assert len(detail) < 1000


def test_a_refused_command_leaves_nothing_behind(agent: AgentUnderTest, tmp_path: Path) -> None:
    """No descriptor of the agent, on pipes and on a terminal."""
    name = program(tmp_path / "tool", "no format\n")
    size = wire.TerminalSize(rows=24, columns=80)

    async def scenario(channel: Channel) -> None:
        await refusal(channel, name)
        before = agent.open_descriptors()
        for _ in range(10):
            await refusal(channel, name)
            await refusal(channel, name, terminal=size)
        assert agent.open_descriptors() == before

    agent.run(scenario)
