"""The shim's logs: bounded, never blocking, never worth the VM."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from boxlite.shim._boxdir import open_box_dir, publish
from boxlite.shim._logs import RotatingLog, Stderr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[int]:
    """A descriptor of an empty directory."""
    fd = open_box_dir(str(tmp_path))
    yield fd
    os.close(fd)


class Log:
    """A rotating log of at most 10 bytes to a file."""

    def __init__(self, box: int) -> None:
        self.complaints: list[str] = []
        self._log = RotatingLog(box, "log", complain=self.complaints.append, limit=10)
        self.write = self._log.write

    def close(self) -> None:
        """Release the file."""
        if self._log._fd is not None:
            os.close(self._log._fd)


@pytest.fixture
def log(box: int) -> Iterator[Log]:
    """A log that is closed afterwards."""
    made = Log(box)
    yield made
    made.close()


@given(parts=st.lists(st.binary(max_size=30), max_size=10))
def test_the_newest_bytes_are_kept_in_two_bounded_files(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    """Together the files are the end of what was written, without a gap."""
    directory = tmp_path_factory.mktemp("log")
    fd = open_box_dir(str(directory))
    log = Log(fd)
    for part in parts:
        log.write(part)
    log.close()
    os.close(fd)
    newer = (directory / "log").read_bytes()
    older = (directory / "log.old").read_bytes() if (directory / "log.old").exists() else b""

    assert len(newer) <= 10
    assert len(older) in {0, 10}
    assert b"".join(parts).endswith(older + newer)
    assert len(older + newer) >= min(10, len(b"".join(parts)))
    assert log.complaints == []


def test_a_log_of_an_earlier_start_is_continued(tmp_path: Path, box: int) -> None:
    """Its size counts, so that restarts cannot add up."""
    (tmp_path / "log").write_bytes(b"12345678")
    log = Log(box)
    log.write(b"abcd")
    log.close()

    assert (tmp_path / "log.old").read_bytes() == b"12345678ab"
    assert (tmp_path / "log").read_bytes() == b"cd"


def test_a_log_that_cannot_be_set_aside_starts_over(tmp_path: Path, log: Log) -> None:
    """The bound is worth more than the lines."""
    (tmp_path / "log.old").mkdir()
    log.write(b"0123456789abc")

    assert (tmp_path / "log").read_bytes() == b"abc"
    assert log.complaints == ["log starts over: Is a directory"]


def test_a_log_that_was_removed_is_begun_again(tmp_path: Path, log: Log) -> None:
    """Writing on into a file without a name would fill the disk unseen."""
    log.write(b"01234")
    (tmp_path / "log").unlink()
    log.write(b"56789abc")

    assert (tmp_path / "log").read_bytes() == b"abc"
    assert log.complaints == []


def test_a_symbolic_link_is_not_followed(tmp_path: Path, box: int) -> None:
    """Somebody put it there to have another file written."""
    target = tmp_path / "target"
    (tmp_path / "log").symlink_to(target)
    log = Log(box)
    log.write(b"abc")

    assert not target.exists()
    assert log.complaints == [f"log is incomplete: {os.strerror(errno.ELOOP)}"] * 2


def test_a_disk_that_is_full_drops_bytes_and_recovers(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logging goes on when there is room again."""

    def write(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log.write(b"ab")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        log.write(b"lost")
    log.write(b"cd")

    assert (tmp_path / "log").read_bytes() == b"abcd"
    assert log.complaints == ["log is incomplete: No space left on device"]


def test_stderr_that_nobody_reads_does_not_block() -> None:
    """It is a file, unless somebody runs a shim by hand."""
    reader, writer = os.pipe()
    stderr = Stderr(writer, limit=1 << 20)
    stderr.relay(b"x" * (1 << 19))
    stderr.note("unheard")
    os.close(reader)
    stderr.relay(b"y")
    os.close(writer)

    assert stderr.last_line == "x" * 4095 + "y"


@given(parts=st.lists(st.binary(max_size=40), max_size=8), limit=st.integers(1, 100))
def test_stderr_keeps_the_beginning(parts: list[bytes], limit: int) -> None:
    """Up to the limit the bytes are exactly QEMU's; then one note, on a line of its own."""
    reader, writer = os.pipe()
    stderr = Stderr(writer, limit=limit)
    for part in parts:
        stderr.relay(part)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        written = file.read()
    said = b"".join(parts)

    assert written[:limit] == said[:limit]
    rest = written[limit:]
    assert rest.count(b"[shim]") == (len(said) >= limit)
    assert not rest or written[: written.index(b"[shim]")] in {said[:limit], said[:limit] + b"\n"}


def test_a_note_is_written_once_and_on_its_own_line() -> None:
    """A guest that errs a million times has erred."""
    reader, writer = os.pipe()
    stderr = Stderr(writer)
    stderr.note("first")
    stderr.relay(b"half a line")
    for _ in range(3):
        stderr.note("second")
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"[shim] first\nhalf a line\n[shim] second\n"


@given(st.binary(max_size=200))
def test_the_last_line_is_one_line(data: bytes) -> None:
    """Any bytes have one, or none."""
    null = os.open(os.devnull, os.O_WRONLY)
    stderr = Stderr(null)
    stderr.relay(data)
    os.close(null)

    assert "\n" not in stderr.last_line
    assert bool(stderr.last_line) == any(
        line.strip() for line in data.decode(errors="backslashreplace").split("\n")
    )


def test_a_file_is_replaced_or_left_alone(tmp_path: Path, box: int) -> None:
    """A reader never sees half of it, and a failure leaves no draft behind."""
    publish(box, "file", b"old")
    publish(box, "file", b"new", durable=True)
    assert (tmp_path / "file").read_bytes() == b"new"

    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "full").touch()
    with pytest.raises(IsADirectoryError):
        publish(box, "directory", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
