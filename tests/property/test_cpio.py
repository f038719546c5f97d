"""Archives read back as they were written, by us and by a program that is not ours."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from boxlite._kit.cpio import CpioWriter, read_cpio

if TYPE_CHECKING:
    from pathlib import Path

names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=30
).filter(lambda name: name not in {".", "..", "TRAILER!!!"})


@given(st.dictionaries(names, st.binary(max_size=100), max_size=8))
def test_files_read_back_as_written(files: dict[str, bytes]) -> None:
    """Names, contents and modes survive, whatever their lengths are modulo four."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    for name, data in files.items():
        writer.file(f"/{name}", data, mode=0o640)
    writer.finish()

    assert list(read_cpio(out.getvalue())) == [
        (name, stat.S_IFREG | 0o640, data) for name, data in files.items()
    ]
    assert len(out.getvalue()) % 4 == 0


@given(st.binary(max_size=300))
def test_any_bytes_are_an_archive_or_an_error(data: bytes) -> None:
    """Reading never fails in another way."""
    try:
        list(read_cpio(data))
    except ValueError:
        pass
    else:
        pytest.fail("random bytes ended with a trailer")


def test_an_archive_that_is_cut_short_is_an_error() -> None:
    """Every prefix is recognised as one."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.file("a", b"12345")
    writer.finish()
    whole = out.getvalue()

    for length in range(0, len(whole) - 4, 7):
        with pytest.raises(ValueError, match="cpio header|cut short|invalid"):
            list(read_cpio(whole[:length]))


@pytest.mark.parametrize("path", ["", "/", "a\0b"])
def test_a_path_that_cannot_be_in_an_archive_is_refused(path: str) -> None:
    """Nothing is written for it."""
    out = io.BytesIO()
    with pytest.raises(ValueError, match="not a path"):
        CpioWriter(out).file(path, b"")
    assert out.getvalue() == b""


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox to read it with")
def test_another_program_unpacks_it(tmp_path: Path) -> None:
    """Busybox finds directories, files, links and modes where we put them."""
    archive = tmp_path / "archive"
    with archive.open("wb") as out:
        writer = CpioWriter(out)
        writer.directory("/d", mode=0o750)
        writer.file("/d/file", b"contents", mode=0o755)
        writer.symlink("/d/link", "file")
        writer.finish()
    place = tmp_path / "place"
    place.mkdir()
    with archive.open("rb") as source:
        subprocess.run(["busybox", "cpio", "-i", "-d"], stdin=source, cwd=place, check=True)

    assert (place / "d" / "file").read_bytes() == b"contents"
    assert stat.S_IMODE((place / "d" / "file").stat().st_mode) == 0o755
    assert (place / "d" / "link").readlink().name == "file"
