"""Homes with images in them, for tests: what they are to hold, and that nothing else is left."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from census import children, open_files
from image_trees import Tree, tree_of_squashfs

import boxlite
from boxlite._home import prepare_home
from boxlite._images.images import Images
from boxlite._images.retry import Patience
from boxlite._images.roots import root_name
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from image_layout import Layout


def make_home(directory: Path) -> HomeLayout:
    """Make a home without anything in it."""
    home = HomeLayout(directory)
    prepare_home(home)
    return home


def images_of(home: HomeLayout, **options: Any) -> Images:  # noqa: ANN401 - those of RegistryOptions
    """Return the images of a home, with no configuration of this machine's."""
    chosen: dict[str, Any] = {
        "docker_config": home.root / "no-such-file",
        "patience": Patience(tries=2, backoff=0.001),
    }
    return Images(home, boxlite.RegistryOptions(**chosen | options))


def files(directory: Path) -> dict[str, int]:
    """Return all files below a directory with their sizes."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if not path.is_dir()
    }


def pieces(home: HomeLayout, *images: Layout) -> set[str]:
    """Return the files that a home has if it has these images and nothing else, but for names."""
    found = set()
    for image in images:
        manifest, config = image.manifest(), image.config()
        digests = [
            image.digest(),
            *(p["digest"] for p in (manifest["config"], *manifest["layers"])),
        ]
        found |= {f"blobs/sha256/{digest[7:]}" for digest in digests}
        found.add(f"roots/{root_name(config['rootfs']['diff_ids'])}")
    return found


def assert_holds(home: HomeLayout, *images: Layout, names: int | None = None) -> None:
    """Assert that a home has some images, each with one name, and nothing else at all."""
    there = set(files(home.images))
    named = {path for path in there if path.startswith("names/")}
    assert there - named == pieces(home, *images)
    assert len(named) == len(images) if names is None else names
    assert list(home.tmp.iterdir()) == []


def tree(image: boxlite.Image, work: Path) -> Tree:
    """Return what is in the root of an image."""
    return tree_of_squashfs(image.root, work)


@contextmanager
def nothing_left(home: HomeLayout) -> Iterator[None]:
    """Assert that the block leaves no process, descriptor, thread, or work in progress."""
    processes, before = children(), open_files()
    threads = {thread.name for thread in threading.enumerate()}
    yield
    assert children() == processes
    assert open_files() == before
    # Trio keeps its threads for a while, idle.
    new = {thread.name for thread in threading.enumerate()} - threads
    assert [name for name in new if not name.startswith("Trio thread")] == []
    assert list(home.tmp.iterdir()) == []
