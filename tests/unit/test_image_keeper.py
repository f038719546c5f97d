"""What a home has of images: found by any of its names, and removed when nothing needs it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, strategies as st
from layers import digest_of

from boxlite._errors import (
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
    StateError,
)
from boxlite._images.catalog import Entry
from boxlite._images.config import ImageConfig
from boxlite._images.descriptor import Descriptor
from boxlite._images.image import Image
from boxlite._images.keeper import Keeper, shown_name
from boxlite._images.platform import Platform
from boxlite._images.record import image_from_record, image_to_record
from boxlite._images.reference import Reference
from boxlite._images.roots import root_name
from boxlite._layout import HomeLayout

if TYPE_CHECKING:
    from collections.abc import Callable

OCI = "application/vnd.oci.image"


class Home:
    """A home, and images that are put there without a registry."""

    def __init__(self, root: Path) -> None:
        self.layout = HomeLayout(root)
        for directory in (self.layout.images, self.layout.tmp):
            directory.mkdir(parents=True)
        self.keeper = Keeper(self.layout)

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        """Put a blob there."""
        return Descriptor(media_type=media_type, digest=self.keeper.blobs.add(data), size=len(data))

    def put(self, name: str, *layers: bytes, contents: tuple[bytes, ...] = ()) -> Entry:
        """Put an image there.

        Args:
            name: A reference, or nothing: then it has none but its digest.
            layers: Its layers, as they were sent.
            contents: What is in them, where that is not the same.
        """
        diff_ids = [digest_of(each) for each in contents or layers]
        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": _json(self.blob(json.dumps(config).encode(), f"{OCI}.config.v1+json")),
            "layers": [_json(self.blob(layer, f"{OCI}.layer.v1.tar")) for layer in layers],
        }
        descriptor = self.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
        full = str(Reference.parse(name)) if name else descriptor.digest
        entry = Entry(name=full, manifest=descriptor, added_at=1.0)
        with self.keeper.roots.workshop() as work:
            root = root_name(diff_ids)
            (work / root).write_bytes(squashfs())
            self.keeper.roots.publish(work / root, root)
        self.keeper.catalog.put(entry)
        return entry

    def root_of(self, entry: Entry) -> str:
        """Return the name of an image's root."""
        return self.keeper.image(entry).root.name

    def pieces(self, *entries: Entry) -> set[str]:
        """Return what some images are made of."""
        found: set[str] = set()
        for entry in entries:
            manifest, config = self.keeper.documents(entry)
            pieces = (manifest.descriptor, manifest.config, *manifest.layers)
            found |= {piece.digest for piece in pieces}
            found.add(root_name(config.diff_ids))
        return found

    def everything(self) -> set[str]:
        """Return all blobs and roots that are there."""
        return {*self.keeper.blobs.digests(), *self.keeper.roots.names()}


def squashfs(used: int = 5000, size: int = 8192) -> bytes:
    """Return a file that begins as a squashfs does, of so many bytes in a file of so many."""
    return struct.pack("<4s36xQ", b"hsqs", used).ljust(size, b"\0")


def _json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_an_image_is_found_by_each_of_its_names(home: Home) -> None:
    """As a person would write them."""
    alpine = home.put("alpine", b"alpine")
    home.put("debian", b"debian")
    for name in (
        "alpine",
        "alpine:latest",
        "docker.io/library/alpine",
        alpine.manifest.digest,
        alpine.manifest.hex,
        alpine.manifest.digest[:19],
        alpine.manifest.hex[:12],
        alpine.manifest.hex[:40],
    ):
        assert home.keeper.find(name) == alpine
    image = home.keeper.image(alpine)
    assert (image.name, image.digest) == ("alpine:latest", alpine.manifest.digest)
    assert image.layers_bytes == len(b"alpine")
    assert image.root.read_bytes() == squashfs()
    assert image.root_bytes == len(squashfs())


@pytest.mark.parametrize(
    "name", ["debian", "alpine:3", "0" * 12, "0" * 64, f"sha256:{'0' * 64}", "sha256:00", "0" * 11]
)
def test_what_is_not_there_is_not_found(home: Home, name: str) -> None:
    """The error says so, also of digests."""
    home.put("alpine", b"alpine")
    with pytest.raises(ImageNotFoundError, match="this home has none of that name"):
        home.keeper.find(name)


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "../x", "a" * 5000, None, 5, b"alpine"])
def test_what_is_no_name_is_refused(home: Home, name: str) -> None:
    """A typing error is not the same as a missing image."""
    with pytest.raises(InvalidOptionError):
        home.keeper.find(name)


@given(text=st.text(max_size=80) | st.from_regex(r"(sha256:)?[0-9a-f@:/]*", fullmatch=True))
def test_any_text_is_found_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """It is from a command line, or from another program."""
    keeper = Keeper(HomeLayout(tmp_path_factory.getbasetemp() / "no-home"))
    with pytest.raises((ImageNotFoundError, InvalidOptionError)):
        keeper.find(text)


def with_digests(home: Home, *digests: str) -> list[Entry]:
    """Give names to manifests that are not there."""
    entries = []
    for number, digest in enumerate(digests):
        descriptor = Descriptor(media_type="", digest=f"sha256:{digest}", size=1)
        entry = Entry(name=f"docker.io/library/x:{number}", manifest=descriptor, added_at=0.0)
        home.keeper.catalog.put(entry)
        entries.append(entry)
    return entries


def test_a_beginning_of_several_digests_is_refused(home: Home) -> None:
    """Whichever is taken, it could be the other one that is removed."""
    one, other = with_digests(home, "a" * 20 + "b" * 44, "a" * 20 + "c" * 44)
    with pytest.raises(InvalidOptionError, match="more digits"):
        home.keeper.find("a" * 12)
    assert home.keeper.find("a" * 20 + "b") == one
    assert home.keeper.find("sha256:" + "a" * 20 + "c") == other


def test_a_reference_comes_before_a_digest(home: Home) -> None:
    """Somebody else's image cannot take the place of one that was named like this."""
    with_digests(home, "deadbeefcafe" + "0" * 52)
    named = home.put("deadbeefcafe", b"named")
    assert home.keeper.find("deadbeefcafe") == named
    home.keeper.remove("deadbeefcafe", ())
    assert home.keeper.find("deadbeefcafe").manifest.hex.startswith("deadbeefcafe")


def test_a_digest_with_several_names_is_found_and_not_removed(home: Home) -> None:
    """Which of the names was meant, nobody knows."""
    one, two = home.put("one", b"same"), home.put("two", b"same")
    digits = one.manifest.hex[:12]
    assert home.keeper.find(digits) == one
    with pytest.raises(InvalidOptionError, match="one:latest, two:latest"):
        home.keeper.remove(digits, ())
    assert home.keeper.find("two") == two
    assert home.everything() == home.pieces(one)


def test_an_image_without_a_name_is_found_and_removed_by_its_digest(home: Home) -> None:
    """Also if the same one has a name besides."""
    nameless = home.put("", b"same")
    named = home.put("named", b"same")
    digits = nameless.manifest.hex[:12]
    assert home.keeper.find(digits) == nameless
    assert home.keeper.image(nameless).name == digits
    home.keeper.remove(digits, ())
    assert home.keeper.find(digits) == named
    home.keeper.remove(digits, ())
    assert home.everything() == set()


def test_removing_keeps_what_others_need(home: Home) -> None:
    """Layers and roots are shared."""
    one = home.put("one", b"base", b"one")
    two = home.put("two", b"base", b"two")
    same_root = home.put("compressed", b"zbase", b"zone", contents=(b"base", b"one"))
    assert home.root_of(one) == home.root_of(same_root)

    home.keeper.remove("one", ())
    assert home.everything() == home.pieces(two, same_root)
    home.keeper.remove("compressed", ())
    assert home.everything() == home.pieces(two)
    home.keeper.remove("two", ())
    assert home.everything() == set()


def test_removing_touches_nothing_of_pulls_that_were_cut_short(home: Home) -> None:
    """Gigabytes that came already are not lost because another image goes."""
    home.put("one", b"one")
    waiting = home.keeper.blobs.add(b"a layer of an image that has no name yet")
    partial = home.keeper.blobs.partial("sha256:" + "9" * 64)
    partial.write_bytes(b"the beginning")
    home.keeper.remove("one", ())
    assert home.everything() == {waiting}
    assert partial.exists()

    assert home.keeper.collect(()) == len(b"a layer of an image that has no name yet") + 13
    assert home.everything() == set()
    assert not partial.exists()


def test_collecting_removes_exactly_what_nothing_needs(home: Home) -> None:
    """And says how much that was."""
    one, two = home.put("one", b"base", b"one"), home.put("two", b"base", b"two")
    moved = home.put("one", b"base", b"another")
    kept = home.pieces(moved, two)
    gone = home.everything() - kept
    old = home.pieces(one) - kept
    assert gone == old
    size = sum(
        (home.keeper.blobs.path(each) if ":" in each else home.keeper.roots.path(each))
        .stat()
        .st_size
        for each in gone
    )

    assert home.keeper.collect(()) == size
    assert home.everything() == kept
    assert home.keeper.collect(()) == 0


def test_roots_that_boxes_use_stay(home: Home) -> None:
    """Whatever becomes of the names."""
    one = home.put("one", b"one")
    root = home.root_of(one)
    home.keeper.catalog.remove(one.name)
    home.keeper.collect({root})
    assert home.everything() == {root}
    home.keeper.collect(())
    assert home.everything() == set()


def test_an_image_that_a_box_uses_is_not_removed(home: Home) -> None:
    """Its last name, that is; and all others are."""
    one = home.put("one", b"one")
    root = home.root_of(one)
    with pytest.raises(StateError, match="remove the image one:latest.*used by a box"):
        home.keeper.remove(one.manifest.hex[:12], {root})
    assert home.everything() == home.pieces(one)

    other = home.put("other", b"packed", contents=(b"one",))
    home.keeper.remove("one", {root})
    assert home.everything() == home.pieces(other)
    with pytest.raises(StateError):
        home.keeper.remove("other", {root})


def test_pruning_unused_images_keeps_every_name_of_one_that_is_used(home: Home) -> None:
    """Not whichever of them happens to come last."""
    used = [home.put(name, b"used") for name in ("a", "b", "c")]
    home.put("unused", b"unused")
    home.put("", b"nameless")
    in_use = {home.root_of(used[0])}

    pruned = home.keeper.prune(in_use, unused=True)
    assert len(pruned.images) == 2
    assert "unused:latest" in pruned.images
    assert sorted(image.name for image in home.keeper.images()) == [
        "a:latest",
        "b:latest",
        "c:latest",
    ]
    assert home.everything() == home.pieces(*used)


def damage(home: Home, entry: Entry, part: str, how: Callable[[Path], object]) -> None:
    manifest, config = home.keeper.documents(entry)
    blobs = home.keeper.blobs
    how(
        {
            "manifest": blobs.path(manifest.digest),
            "config": blobs.path(manifest.config.digest),
            "root": home.keeper.roots.path(root_name(config.diff_ids)),
        }[part]
    )


def shorten(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 5000 if path.stat().st_size > 5000 else 5)


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b" " + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("part", "how", "expected"),
    [
        ("manifest", remove, ImageNotFoundError),
        ("manifest", shorten, ImageRefusedError),
        ("manifest", spoil, ImageRefusedError),
        ("config", remove, ImageNotFoundError),
        ("config", shorten, ImageRefusedError),
        ("config", spoil, ImageRefusedError),
        ("root", remove, ImageNotFoundError),
        ("root", shorten, ImageNotFoundError),
        ("root", spoil, ImageNotFoundError),
    ],
)
def test_a_damaged_image_is_not_ready_and_can_be_removed(
    home: Home, part: str, how: Callable[[Path], object], expected: type[Exception]
) -> None:
    """It is not listed, and neither stands in the way of others nor takes from them."""
    one, two = home.put("one", b"base", b"one"), home.put("two", b"base", b"two")
    theirs = home.pieces(two)
    damage(home, one, part, how)
    with pytest.raises(expected, match="one:latest"):
        home.keeper.image(one)
    assert [image.name for image in home.keeper.images()] == ["two:latest"]

    home.keeper.collect(())
    assert theirs <= home.everything()
    home.keeper.remove("one", ())
    home.keeper.collect(())
    assert home.everything() == theirs


def test_what_is_left_of_a_damaged_image_is_kept_for_the_next_pull(home: Home) -> None:
    """Its layers need not be downloaded again because its configuration is gone."""
    one = home.put("one", b"base", b"one")
    before = home.pieces(one)
    manifest, config = home.keeper.documents(one)
    damage(home, one, "config", remove)
    home.keeper.collect(())
    assert home.everything() == before - {manifest.config.digest, root_name(config.diff_ids)}


@pytest.mark.parametrize("used", [0, 5000, 8192])
def test_a_root_is_whole_with_all_that_it_says(home: Home, used: int) -> None:
    """The kernel would find out when a box runs."""
    roots = home.keeper.roots
    roots.root.mkdir()
    roots.path("root").write_bytes(squashfs(used, 8192))
    assert roots.size("root") == 8192
    roots.path("root").write_bytes(squashfs(8193, 8192))
    assert roots.size("root") is None


@pytest.mark.parametrize("kind", ["directory", "link", "pipe", "empty"])
def test_what_is_no_file_is_no_root(home: Home, kind: str, tmp_path: Path) -> None:
    """Nothing is read through a link, and nobody waits for a pipe."""
    (tmp_path / "elsewhere").write_bytes(squashfs())
    home.keeper.roots.root.mkdir()
    path = home.keeper.roots.path("root")
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(path)
        case _:
            path.touch()
    assert home.keeper.roots.size("root") is None


def test_a_workshop_goes_with_all_that_is_in_it(home: Home) -> None:
    """Whatever happens in it."""
    with pytest.raises(KeyError), home.keeper.roots.workshop() as work:
        (work / "deep").mkdir()
        (work / "deep" / "file").touch()
        raise KeyError
    assert list(home.layout.tmp.iterdir()) == []


def test_layers_decide_the_root() -> None:
    """Their order too, and nothing else."""
    names = [root_name(ids) for ids in ([], ["a"], ["a", "b"], ["b", "a"], ["ab"], ["a\nb"])]
    assert len(set(names[:5])) == 5
    assert all(len(name) == 32 + len(".squashfs") for name in names)
    assert root_name(("a", "b")) == root_name(["a", "b"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("docker.io/library/alpine:latest", "alpine:latest"),
        ("ghcr.io/owner/image:1", "ghcr.io/owner/image:1"),
        (f"sha256:{'12' * 32}", "121212121212"),
        ("\0" * 300, "\0" * 200),
    ],
)
def test_names_are_shown_as_people_write_them(name: str, shown: str) -> None:
    """They are made to be typed again."""
    assert shown_name(name) == shown


IMAGE = Image(
    name="app:latest",
    digest="sha256:" + "1" * 64,
    config=ImageConfig(
        env=("A=1", "B="),
        entrypoint=("/entry",),
        cmd=("a", "b"),
        working_dir="/srv",
        user="1:2",
        exposed_ports=("80/tcp",),
        volumes=("/data",),
        labels={"a": "b"},
        stop_signal="SIGINT",
        diff_ids=("sha256:" + "2" * 64,),
        created="2025-01-01T00:00:00Z",
        platform=Platform.parse("linux/arm64/v8"),
    ),
    layers_bytes=1,
    root=HomeLayout(Path("/home")).roots / root_name(["x"]),
    root_bytes=2,
    added_at=3.5,
)


def test_an_image_is_written_down_and_read_back() -> None:
    """With all that a configuration can have, by way of JSON."""
    for image in (IMAGE, attrs.evolve(IMAGE, config=ImageConfig())):
        text = json.dumps(image_to_record(image))
        assert "/home" not in text
        assert image_from_record(json.loads(text), image.root.parent) == image


@pytest.mark.parametrize(
    "change",
    [
        {"root": "../../etc/passwd"},
        {"root": "/etc/passwd"},
        {"root": ".."},
        {"root": ""},
        {"root": "a\0b"},
        {"root": 5},
        {"config": []},
        {"config": None},
        {"config": {"env": []}},
        {"config": {"platform": None, "unknown": 1}},
        {"config": {"platform": {"os": 1}}},
        {"unknown": 1},
    ],
)
def test_a_record_of_another_version_is_refused(change: dict[str, object]) -> None:
    """And one that was changed leads nowhere else."""
    record = json.loads(json.dumps(image_to_record(IMAGE)))
    with pytest.raises((ValueError, TypeError, KeyError)):
        image_from_record({**record, **change}, IMAGE.root.parent)
