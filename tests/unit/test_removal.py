"""Removing a tree that somebody made to be hard to remove."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from boxlite._removal import remove_tree

if TYPE_CHECKING:
    from pathlib import Path


def test_no_depth_is_too_deep(tmp_path: Path) -> None:
    """Deeper than paths may be long, and than Python recurses."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("directory", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    remove_tree(top)

    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Whatever it leads to is another's."""
    (tmp_path / "kept" / "inner").mkdir(parents=True)
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    for directory in (top, top / "a", top / "a" / "b"):
        (directory / "link").symlink_to(tmp_path / "kept")
        (directory / "dangling").symlink_to("nowhere")

    remove_tree(top)

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "inner").is_dir()
