"""Who a command runs as, by the guest's own files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from boxlite.guest.users import UnknownUserError, User, find_user

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def etc(tmp_path: Path) -> str:
    """Files with honest entries among damaged ones."""
    (tmp_path / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\n"
        "broken\n"
        ":x:5:5:no name:/:/bin/sh\n"
        "alice:x:1000:1001:Alice:/home/alice:/bin/sh\n"
        "odd:x:many:1:odd:/:/bin/sh\n"
        "1000:x:77:78:a number for a name:/seven:/bin/sh\n"
    )
    (tmp_path / "group").write_text(
        "alice:x:1001:\naudio:x:29:alice,bob\nbroken:x\nvideo:x:44:bob,alice\nbad:x:no:alice\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"root", User(0, 0, (), b"/root")),
        (b"0", User(0, 0, (), b"/root")),
        (b"alice", User(1000, 1001, (29, 44), b"/home/alice")),
        (b"1000", User(1000, 1001, (29, 44), b"/home/alice")),
        (b"alice:audio", User(1000, 29, (), b"/home/alice")),
        (b"alice:5", User(1000, 5, (), b"/home/alice")),
        (b"4242", User(4242, 0, (), b"/")),
        (b"4242:video", User(4242, 44, (), b"/")),
        (b"4294967294", User(4294967294, 0, (), b"/")),
    ],
)
def test_users_are_found_as_container_tools_find_them(
    text: bytes, expected: User, etc: str
) -> None:
    """By name, by number, and by a number that is in no file."""
    assert find_user(text, etc) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"bob", "no user 'bob'"),
        (b"alice:nobody", "no group 'nobody'"),
        (b"alice:broken", "no group 'broken'"),
        (b"4294967295", "no user '4294967295'"),
        (b"-1", "no user '-1'"),
        (b"odd", "the numbers of 'odd'"),
        (b"b\xff", "no user"),
    ],
)
def test_who_is_not_there_is_named(text: bytes, words: str, etc: str) -> None:
    """And in which file."""
    with pytest.raises(UnknownUserError, match=words):
        find_user(text, etc)


def test_without_files_there_are_numbers(tmp_path: Path) -> None:
    """An image may have no users at all."""
    assert find_user(b"7:8", str(tmp_path)) == User(7, 8, (), b"/")
    with pytest.raises(UnknownUserError):
        find_user(b"root", str(tmp_path))


@given(files=st.tuples(st.binary(max_size=200), st.binary(max_size=200)), text=st.binary())
def test_any_files_give_a_user_or_the_one_error(
    files: tuple[bytes, bytes], text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever has root in the guest writes them."""
    directory = tmp_path_factory.mktemp("etc")
    (directory / "passwd").write_bytes(files[0])
    (directory / "group").write_bytes(files[1])
    try:
        found = find_user(text, str(directory))
    except UnknownUserError:
        return
    assert 0 <= found.uid < 1 << 32
    assert 0 <= found.gid < 1 << 32
