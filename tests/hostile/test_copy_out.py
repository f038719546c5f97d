"""Copying out: whatever the guest sends, nothing is written outside, and nothing of it stays."""

from __future__ import annotations

import os
import stat
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from fake_guest import Call, FakeGuest, connected
from tars import ROOT, attacks, directory, file, hard, link, tar

from boxlite._bulk import Channel
from boxlite._copy import MAX_BYTES_DEFAULT, MEMBERS_MAX, CopyResult, copy_out
from boxlite._errors import CopyRefusedError, GuestLostError, GuestProtocolError
from boxlite._rpc._generated.boxlite import v1 as wire
from boxlite._scopes import open_nursery_unwrapped
from boxlite._tree.unpack import Rules, Unpacker
from boxlite._wire import OUTPUT_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from boxlite._rpc.session import GuestSession

    Script = Callable[[Call], Awaitable[None]]

OUTSIDE = b"/tmp/boxlite-outside-of-every-copy"
RULES = Rules(max_bytes=MAX_BYTES_DEFAULT, max_members=MEMBERS_MAX)


def sending(data: bytes, report: wire.CopyReport | None = None, *, exit_code: int = 0) -> Script:
    """Play a guest that sends bytes as the tar, within its window, and ends."""

    async def script(call: Call) -> None:
        await call.say_started()
        assert call.start.copy is not None
        assert call.start.copy.out
        for at in range(0, min(len(data), OUTPUT_WINDOW_BYTES), 100_000):
            call.write(Channel.STDOUT, data[at : at + 100_000])
        copy = wire.CopyReport() if report is None else report
        await call.say(exited=wire.ExecExited(exit_code=exit_code, copy=copy))

    return script


def everything_below(path: Path) -> list[tuple[str, int, bytes]]:
    """Return every name, mode and content."""
    found = []
    for each in sorted(path.rglob("*")):
        mode = each.lstat().st_mode
        content = each.read_bytes() if stat.S_ISREG(mode) else b""
        found.append((str(each), mode, content))
    return found


@asynccontextmanager
async def guest_that(script: Script) -> AsyncIterator[GuestSession]:
    """Give a session with a guest that plays a script."""
    async with connected() as (session, guest):
        guest.script = script
        yield session


async def copy(
    session: GuestSession, target: Path, *, rules: Rules = RULES, replace: bool = True
) -> CopyResult:
    """Copy out, as a box does."""
    return await copy_out(session, "/source", target, rules=rules, replace=replace, progress=None)


def test_there_are_enough_attacks() -> None:
    """The corpus is not to shrink."""
    assert len(attacks(OUTSIDE)) >= 90


@pytest.mark.parametrize("name", sorted(attacks(OUTSIDE)))
async def test_an_attack_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    """Neither outside, where it wants to be, nor where it may be; the session goes on."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    inside = tmp_path / "inside"
    inside.mkdir()
    data, words = attacks(os.fsencode(outside))[name]
    before = everything_below(tmp_path)
    async with guest_that(sending(data)) as session:
        open_before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(CopyRefusedError, match=words) as caught:
            await copy(session, inside / "target")
        assert len(os.listdir("/proc/self/fd")) == open_before
        await session.ping()

    assert everything_below(tmp_path) == before
    assert "nothing was copied" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", sorted(attacks(OUTSIDE)))
async def test_an_attack_does_not_touch_what_is_there(name: str, tmp_path: Path) -> None:
    """A tree from before, with links out of it that an earlier copy may have brought."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").symlink_to(outside)
    (target / "d").mkdir()
    before = everything_below(tmp_path)
    data, words = attacks(os.fsencode(outside))[name]
    async with guest_that(sending(data)) as session:
        with pytest.raises(CopyRefusedError, match=words):
            await copy(session, target)

    assert everything_below(tmp_path) == before


async def test_a_link_that_is_there_is_not_followed(tmp_path: Path) -> None:
    """One copy brings a link, with leave to; the next one a directory of its name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    async with guest_that(sending(tar(ROOT, link(b"copy/x", os.fsencode(outside))))) as session:
        await copy(session, target, rules=RULES._replace(links_out=True))
    assert (target / "x").is_symlink()
    second = tar(ROOT, directory(b"copy/x"), file(b"copy/x/f"))
    async with guest_that(sending(second)) as session:
        with pytest.raises(NotADirectoryError):
            await copy(session, target)

    assert list(outside.iterdir()) == []
    assert [path.name for path in target.iterdir()] == ["x"]


async def test_a_hard_link_that_is_there_is_not_written_through(tmp_path: Path) -> None:
    """A file is replaced by its name; what else has its content keeps it."""
    target = tmp_path / "target"
    target.mkdir()
    canary = tmp_path / "canary"
    canary.write_text("alive")
    os.link(canary, target / "f")
    async with guest_that(sending(tar(ROOT, file(b"copy/f", b"other")))) as session:
        await copy(session, target)

    assert canary.read_text() == "alive"
    assert (target / "f").read_text() == "other"


async def test_set_id_bits_do_not_arrive(tmp_path: Path) -> None:
    """A program of the guest's choice must not run as whoever copied it."""
    data = tar(directory(b"copy", 0o7777), file(b"copy/f", mode=0o6755))
    async with guest_that(sending(data)) as session:
        await copy(session, tmp_path / "target")

    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "target" / "f").stat().st_mode) == 0o755


async def test_directories_that_forbid_everything_can_be_refused(tmp_path: Path) -> None:
    """What is left of a refused copy is removed whatever its permissions are."""
    data = tar(
        directory(b"copy", 0),
        directory(b"copy/d", 0),
        file(b"copy/d/f", mode=0),
        directory(b"copy/e", 0),
        hard(b"copy/x", b"copy/none"),
    )
    async with guest_that(sending(data)) as session:
        with pytest.raises(CopyRefusedError, match="no file before it"):
            await copy(session, tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("report", "exit_code", "error", "words"),
    [
        (wire.CopyReport(error=2, path=b"/source"), 1, FileNotFoundError, "/source"),
        (wire.CopyReport(error=5, problem="it \x1b[31mfell"), 1, OSError, r"\\x1b\[31mfell"),
        (wire.CopyReport(error=4711), 1, GuestProtocolError, "error is 4711"),
        (wire.CopyReport(path=bytes(5000)), 0, GuestProtocolError, "path has 5000"),
        (wire.CopyReport(problem="x" * 5000), 0, GuestProtocolError, "problem has 5000"),
        (wire.CopyReport(skipped_names=b"x"), 0, GuestProtocolError, "has no end"),
        (wire.CopyReport(skipped_names=b"x\0" * 101), 0, GuestProtocolError, "has 101"),
        (wire.CopyReport(skipped=1 << 40), 0, GuestProtocolError, "skipped is"),
    ],
)
async def test_what_the_guest_says_at_the_end_is_checked(
    report: wire.CopyReport,
    exit_code: int,
    error: type[Exception],
    words: str,
    tmp_path: Path,
) -> None:
    """A whole archive does not help it."""
    data = tar(ROOT, file(b"copy/f"))
    async with guest_that(sending(data, report, exit_code=exit_code)) as session:
        with pytest.raises(error, match=words):
            await copy(session, tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


async def test_an_end_without_a_report_is_refused(tmp_path: Path) -> None:
    """A command's exit is not that of a copy."""

    async def script(call: Call) -> None:
        await call.say_started()
        call.write(Channel.STDOUT, tar(ROOT))
        await call.say_exited()

    async with guest_that(script) as session:
        with pytest.raises(GuestProtocolError, match="without a report"):
            await copy(session, tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


async def test_more_than_is_wanted_is_refused(tmp_path: Path) -> None:
    """Bytes, with holes counted, and members."""
    data = tar(ROOT, file(b"copy/a", b"12345"), file(b"copy/b", b"12345"))
    for rules, words in (
        (RULES._replace(max_bytes=9), "its 5 bytes make 10, more than 9"),
        (RULES._replace(max_members=2), "one more than 2"),
    ):
        async with guest_that(sending(data)) as session:
            with pytest.raises(CopyRefusedError, match=words) as caught:
                await copy(session, tmp_path / "target", rules=rules)
        assert caught.value.member == "b"

    assert list(tmp_path.iterdir()) == []


async def test_cancelling_and_losing_the_guest_leave_nothing(tmp_path: Path) -> None:
    """However far it has come."""
    half = tar(ROOT, file(b"copy/f", bytes(2 << 20)))[: OUTPUT_WINDOW_BYTES - 1000]

    async def script(call: Call) -> None:
        await call.say_started()
        for at in range(0, len(half), 100_000):
            call.write(Channel.STDOUT, half[at : at + 100_000])
        while True:
            await call.hear()

    async with guest_that(script) as session:
        for end in ("cancel", "lose"):
            expected = GuestLostError if end == "lose" else trio.TooSlowError
            with pytest.raises(expected), trio.fail_after(60) as scope:
                async with open_nursery_unwrapped() as nursery:
                    nursery.start_soon(copy, session, tmp_path / "deep" / "target")
                    while not list(tmp_path.glob("deep/.target.*/f")):
                        await trio.lowlevel.checkpoint()
                    if end == "cancel":
                        scope.deadline = trio.current_time()
                    else:
                        session._link.channel._transport.close()
            assert list(tmp_path.iterdir()) == []


async def test_a_flood_of_members_holds_no_memory(tmp_path: Path) -> None:
    """What is kept of each does not grow with how many there were."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    unpacker = Unpacker(fd, b"target", RULES)
    unpacker.feed(tar(ROOT, end=b""))
    peak = 0
    for start in range(0, 20_000, 2000):
        batch = tar(*(directory(b"copy/%d" % n) for n in range(start, start + 2000)), end=b"")
        tracemalloc.start()
        unpacker.feed(batch)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    unpacker.close()
    os.close(fd)

    assert peak < 1 << 20


async def test_the_fake_guest_is_asked_for_the_source(tmp_path: Path) -> None:
    """As the user named it."""
    async with connected() as (session, guest):
        assert isinstance(guest, FakeGuest)
        seen = []

        async def script(call: Call) -> None:
            seen.append(call.start)
            await sending(tar(file(b"copy", b"data")))(call)

        guest.script = script
        done = await copy(session, tmp_path / "target")

    assert seen == [
        wire.ExecStart(copy=wire.Copy(path=b"/source", out=True), stdout_window=OUTPUT_WINDOW_BYTES)
    ]
    assert (tmp_path / "target").read_bytes() == b"data"
    assert done == CopyResult(files=1, bytes=4)
