"""Sources of images that are broken, or meant to do harm."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import layers
import pytest
import trio
from hypothesis import given, settings, strategies as st
from image_archives import (
    CONFIG,
    LAYER,
    MANIFEST,
    Files,
    blob_path,
    config_of,
    json_of,
    saved,
    tar_of,
)
from image_source_bench import ONE, TWO, Bench, one_image, open_bench
from layers import compressed, digest_of

from boxlite._errors import (
    HostError,
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
)
from boxlite._images import source_archive, source_docker, source_found, source_layout, source_piece
from boxlite._images.blobs import BlobStore
from boxlite._images.config import parse_config
from boxlite._images.layer_limits import Limits
from boxlite._images.manifest import Index, Manifest, parse_manifest
from boxlite._images.source_piece import SourceError
from boxlite._images.sources import load_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench."""
    with open_bench(tmp_path) as bench:
        yield bench


def without(files: Files, name: str) -> Files:
    """Return files without one."""
    del files.content[name]
    return files


def with_index(change: Callable[[dict[str, Any]], object]) -> Files:
    """Return a layout of one image whose entry in the index is changed."""
    files = Files()
    entry = files.image(ONE)
    change(entry)
    return files.finish(entry)


def manifest_of(files: Files) -> bytes:
    """Return the manifest of a layout of one image."""
    digest = json.loads(files.content["index.json"])["manifests"][0]["digest"]
    return files.content[blob_path(digest)]


def changed_blob(kind: str) -> Files:
    """Return a layout with one blob of which a byte is wrong."""
    files = one_image()
    for name, data in files.content.items():
        is_json = name.startswith("blobs/") and data.startswith(b"{")
        if (
            name.startswith("blobs/")
            and {
                "manifest": is_json and b"layers" in data and b"config" in data and b"dige" in data,
                "config": is_json and b"diff_ids" in data,
                "layer": not is_json,
            }[kind]
        ):
            files.content[name] = data[:-1] + bytes([data[-1] ^ 1])
            return files
    raise AssertionError(kind)


def large(entry: dict[str, Any]) -> None:
    entry["size"] += 1


def nested(depth: int) -> Files:
    """Return a layout whose index leads to so many others."""
    files = Files()
    entry = files.image(ONE)
    for _ in range(depth):
        entry = files.index(entry)
    return files.finish(entry)


LAYOUTS: dict[str, tuple[Callable[[], Files], str]] = {
    "no index": (lambda: without(one_image(), "index.json"), "it has no '?index.json"),
    "a manifest that is damaged": (lambda: changed_blob("manifest"), "the content of sha256:"),
    "a configuration that is damaged": (lambda: changed_blob("config"), "the content of sha256:"),
    "a layer that is damaged": (lambda: changed_blob("layer"), "the content of sha256:"),
    "a manifest of another size": (lambda: with_index(large), r"bytes, and \d+ were promised"),
    "a size that is none": (lambda: with_index(lambda e: e.update(size=-1)), "the size of"),
    "a digest that leads out": (
        lambda: with_index(lambda e: e.update(digest="sha256:../../../etc/passwd")),
        "is not a sha256 digest",
    ),
    "another algorithm": (
        lambda: with_index(lambda e: e.update(digest="sha512:" + "0" * 128)),
        "is not a sha256 digest",
    ),
    "no manifest": (
        lambda: with_index(lambda e: e.update(digest="sha256:" + "0" * 64)),
        "it has no '?blobs/sha256/0000",
    ),
    "a platform that is none": (
        lambda: with_index(lambda e: e.update(platform={"os": "a b", "architecture": "c"})),
        "platform is 'a b/c'",
    ),
    "no images": (lambda: Files().finish(), "there is no image in it"),
    "artifacts alone": (
        lambda: with_index(lambda e: e.update(mediaType="application/x")),
        "there is no image in it",
    ),
    "indexes without end": (lambda: nested(4), "more than 3 times"),
    "another version": (
        lambda: put(one_image(), "oci-layout", b'{"imageLayoutVersion": "2.0.0"}'),
        "a layout of version '2.0.0'",
    ),
    "an index that is a manifest": (
        lambda: put(one_image(), "index.json", json_of({"schemaVersion": 2, "layers": []})),
        "is not a descriptor",
    ),
    "an index that is a whole manifest": (
        lambda: put(one_image(), "index.json", manifest_of(one_image())),
        "its index.json is no index",
    ),
    "an index that is no JSON": (lambda: put(one_image(), "index.json", b"[" * 9999), "JSON|deep"),
    "an index of 5 MiB": (
        lambda: put(one_image(), "index.json", b" " * (5 << 20)),
        "more than 4194304 bytes",
    ),
}


def put(files: Files, name: str, data: bytes) -> Files:
    """Return files with one replaced."""
    files.content[name] = data
    return files


@pytest.mark.parametrize("case", LAYOUTS)
async def test_broken_layout_is_refused(bench: Bench, case: str) -> None:
    """As a directory and as an archive, with the source's name and what is wrong."""
    make, match = LAYOUTS[case]
    await bench.refused(make(), match)
    await bench.refused(make().tar(), match)


async def test_three_nested_indexes_are_taken(bench: Bench) -> None:
    """As many as for what comes from registries."""
    assert await bench.load(nested(3))


@pytest.mark.parametrize("place", ["index.json", "blobs", "blobs/sha256", "oci-layout"])
async def test_links_in_a_directory_are_not_followed(bench: Bench, place: str) -> None:
    """A layout that was unpacked from anywhere must not read this machine's files."""
    source = one_image().write(bench.top / "layout")
    (source / place).rename(bench.top / "outside")
    (source / place).symlink_to(bench.top / "outside")
    await bench.refused(source, "is a link, or not a file")


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device"])
async def test_blob_that_is_no_file_is_refused(bench: Bench, kind: str) -> None:
    """None of them is waited for."""
    files = Files()
    digest = files.image(ONE)["digest"]
    files.finish({"mediaType": MANIFEST, "digest": digest, "size": 5})
    blob = files.write(bench.top / "layout") / blob_path(digest)
    blob.unlink()
    match kind:
        case "link":
            blob.symlink_to("/etc/passwd")
        case "pipe":
            os.mkfifo(blob)
        case "directory":
            blob.mkdir()
        case _:
            try:
                os.mknod(blob, 0o20666, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("this user makes no devices")
    with trio.fail_after(10):
        await bench.refused(bench.top / "layout", "not a file")


async def test_names_of_docker_do_not_lead_out_of_a_directory(bench: Bench) -> None:
    """A manifest.json beside a layout names files as well."""
    files = one_image().docker({"Config": "../secret.json", "RepoTags": ["a:1"], "Layers": []})
    (bench.top / "secret.json").write_bytes(config_of())
    await bench.refused(files, "leads out of it")


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name that leads out": (
        lambda: one_image().tar(layers.file(b"blobs/../../x")),
        "the name of 'blobs/../../x' in it leads out",
    ),
    "an absolute name": (lambda: one_image().tar(layers.file(b"/etc/passwd")), "leads out"),
    "a link out": (lambda: one_image().tar(layers.symlink(b"l", b"../x")), "the link 'l'"),
    "a link out by and by": (
        lambda: one_image().tar(layers.symlink(b"a/l", b"b/../../../x")),
        "the link 'a/l'",
    ),
    "an absolute link": (lambda: one_image().tar(layers.symlink(b"l", b"/etc")), "the link 'l'"),
    "a hard link out": (lambda: one_image().tar(layers.hard(b"l", b"../x")), "the link 'l'"),
    "a member twice": (
        lambda: one_image().tar(layers.file(b"index.json")),
        "'index.json' is in it twice",
    ),
    "a member twice by another name": (
        lambda: one_image().tar(layers.file(b".//index.json")),
        "index.json' is in it twice",
    ),
    "a device": (
        lambda: one_image().tar(layers.device(b"d", tarfile.BLKTYPE, 8, 0)),
        "'d' in it is a device or a pipe",
    ),
    "a pipe": (lambda: one_image().tar(layers.fifo(b"p")), "'p' in it is a device or a pipe"),
    "a link in a circle": (
        lambda: without(one_image(), "index.json").tar(
            layers.symlink(b"index.json", b"b"), layers.symlink(b"b", b"index.json")
        ),
        "a link that leads to no file",
    ),
    "an end within a member": (lambda: one_image().tar()[:1540], "ends within"),
    "an end within gzip": (lambda: compressed(one_image().tar(), "gzip")[:-20], "ends early"),
    "damage": (lambda: b"\0" * 100 + one_image().tar(), "ends within a header|no tar"),
    "something else": (lambda: b"#!/bin/sh\n" * 100, "or the layer is no tar"),
    "nothing": (lambda: b"", "there is nothing in it"),
    "an empty tar": (tar_of, "there is nothing in it"),
    "gzip of nothing": (lambda: compressed(b"", "gzip"), "there is nothing in it"),
    "an old Docker's": (
        lambda: tar_of(
            layers.file(b"repositories", b"{}"), layers.file(b"a" * 64 + b"/layer.tar", ONE)
        ),
        "a Docker before 1.10",
    ),
    "an end between members": (lambda: one_image().tar()[:1024], "it is not whole"),
}


@pytest.mark.parametrize("case", ARCHIVES)
async def test_broken_archive_is_refused(bench: Bench, case: str) -> None:
    """Whatever comes out of it, nothing is left of it."""
    make, match = ARCHIVES[case]
    await bench.refused(make(), match, name=None)
    assert not bench.store.blobs.exists()


def docker_case(change: Callable[[Files, dict[str, Any]], object]) -> bytes:
    """Return an archive of docker save in which something is changed."""
    files = Files()
    entry = saved(files, ONE, tags=["a:1"])
    change(files, entry)
    if "manifest.json" not in files.content:
        files.docker(entry)
    return files.tar()


DOCKER: dict[str, tuple[Callable[[Files, dict[str, Any]], object], str]] = {
    "no configuration": (lambda _, e: e.update(Config="x.json"), "it has no 'x.json'"),
    "a configuration that leads out": (lambda _, e: e.update(Config="../x"), "it has no '../x'"),
    "a configuration that is none": (lambda _, e: e.pop("Config"), "'Config' is None"),
    "a damaged configuration": (
        lambda f, e: f.content.update({e["Config"]: config_of(TWO)}),
        "the content of .*json is sha256:",
    ),
    "no layer": (lambda _, e: e.update(Layers=["x/layer.tar"]), "it has no 'x/layer.tar'"),
    "too few layers": (lambda _, e: e.update(Layers=[]), "has 0 layers, and its config"),
    "a layer that is damaged": (
        lambda f, e: f.content.update({e["Layers"][0]: TWO}),
        "the content of the layer sha256:",
    ),
    "layers that are none": (lambda _, e: e.update(Layers=[5]), "'Layers' is 5"),
    "a layer with NUL": (lambda _, e: e.update(Layers=["x\0"]), "'Layers' has a NUL"),
    "tags that are none": (lambda _, e: e.update(RepoTags="x"), "'RepoTags' is 'x'"),
    "no images": (lambda f, _: f.docker(), "there is no image in it"),
    "an entry that is none": (lambda f, _: f.docker(*[5]), "an entry that is no object"),  # type: ignore[arg-type]
    "an object": (lambda f, _: put(f, "manifest.json", b"{}"), "'images' is an object"),
    "no JSON": (lambda f, _: put(f, "manifest.json", b"x"), "is not JSON"),
}


@pytest.mark.parametrize("case", DOCKER)
async def test_broken_docker_archive_is_refused(bench: Bench, case: str) -> None:
    """Its parts are checked as those from a registry are."""
    change, match = DOCKER[case]
    await bench.refused(docker_case(change), match)


async def test_image_without_layers_is_refused(bench: Bench) -> None:
    """There is nothing to start a box from."""
    files = Files()
    files.docker(saved(files, tags=["a:1"]))
    await bench.refused(files.tar(), "it has no layers")


async def test_bomb_is_refused(bench: Bench) -> None:
    """A few kilobytes that become more than a tar of anything does."""
    limits = Limits(ratio=20, ratio_floor_bytes=1 << 20)
    tar = tar_of(layers.file(b"zeros", bytes(4 << 20)))
    for bomb in (compressed(tar, "gzip"), compressed(tar, "zstd")):
        await bench.refused(
            bomb,
            "more than 1048576 bytes in it",
            name="x",
            limits=limits,
        )


async def test_sizes_are_limited(bench: Bench) -> None:
    """Of a piece, of an image, and of a root."""
    small = Limits(layer_bytes=1000)
    files = Files()
    files.finish(files.image(ONE, TWO, compression="none"))
    await bench.refused(files, "more than 1000", limits=small)
    await bench.refused(
        files, "an image in it has .* more than 1000", limits=Limits(image_bytes=1000)
    )
    await bench.refused(ONE, "more than 1000", name="x", limits=small)
    files = Files()
    files.docker(saved(files, ONE, TWO, tags=None))
    await bench.refused(files.tar(), "more than 12000", limits=Limits(image_bytes=12000))


async def test_members_are_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any tar, and more so of an archive of images."""
    many = [layers.file(b"m%d" % number, b"") for number in range(30)]
    await bench.refused(tar_of(*many), "more than 20 members", name="x", limits=Limits(entries=20))
    monkeypatch.setattr(source_archive, "MEMBERS_MAX", 20)
    await bench.refused(one_image().tar(*many), "more than 20 files")
    assert await bench.load(tar_of(*many), name="x")


async def test_claimed_sizes_are_not_believed(bench: Bench) -> None:
    """A header may say what it likes."""
    info = tarfile.TarInfo("index.json")
    info.size = 1 << 40
    await bench.refused(info.tobuf(tarfile.GNU_FORMAT), "the tar ends within its data")


async def test_file_with_holes_in_an_archive_is_refused(bench: Bench) -> None:
    """No tool writes an image so, and what is at its place in the tar is not its content."""
    files = without(one_image(), "index.json")
    records = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"}
    hollow = layers.file(b"index.json", b"data", records=records)
    await bench.refused(files.tar(hollow), "'index.json' in it has holes")


async def test_documents_are_limited_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand manifests of 4 MiB would be read before the first layer is."""
    source = one_image().write(bench.top / "layout")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    monkeypatch.setattr(source_found, "_DOCUMENT_BYTES_MAX", size // 4)
    await bench.refused(source, "its manifests and configurations have more than")


async def test_file_that_becomes_shorter_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave the source may still have it open."""
    source = bench.top / "image.tar"
    source.write_bytes(TWO)
    copy = source_piece.Intake.copy

    def shortening(intake: source_piece.Intake, piece: source_piece.Piece) -> Any:  # noqa: ANN401
        os.truncate(source, 100)
        return copy(intake, piece)

    monkeypatch.setattr(source_piece.Intake, "copy", shortening)
    await bench.refused(source, "it became shorter while it was read", name="x")


async def test_sparse_blob_is_refused_before_it_is_copied(bench: Bench) -> None:
    """A file of holes takes nothing here, and would fill the store."""
    files = Files()
    manifest = {
        "schemaVersion": 2,
        "config": files.blob(config_of(ONE), CONFIG),
        "layers": [{"mediaType": LAYER, "digest": digest_of(ONE), "size": 1 << 40}],
    }
    source = files.finish(files.blob(json_of(manifest), MANIFEST)).write(bench.top / "layout")
    blob = source / blob_path(digest_of(ONE))
    blob.touch()
    os.truncate(blob, 1 << 40)
    await bench.refused(source, r"more than \d+")


@pytest.mark.parametrize("kind", ["missing", "pipe", "socket"])
async def test_source_that_cannot_be_read_is_the_callers_mistake(bench: Bench, kind: str) -> None:
    """And it is not waited for."""
    source = bench.top / "source"
    if kind == "pipe":
        os.mkfifo(source)
    elif kind == "socket":
        os.mknod(source, 0o140600)
    with (
        trio.fail_after(10),
        pytest.raises(InvalidOptionError, match="source is .*: it must be a file or a directory"),
    ):
        await bench.load(source, name="x")


async def test_store_that_cannot_be_written_is_the_hosts_fault(bench: Bench) -> None:
    """It is not the source's."""
    source = one_image().write(bench.top / "layout")
    bench.store.root.write_text("a file where the store should be")
    with pytest.raises(HostError, match="cannot be kept"):
        await bench.load(source)
    bench.store.root.unlink()


@given(st.data())
def test_no_name_in_an_archive_leads_out(data: st.DataObject) -> None:
    """Whatever a link says, what it leads to is a name in the archive or nothing."""
    part = st.sampled_from([b"..", b".", b"", b"a", b"b", b"c.d"])
    path = st.lists(part, max_size=8).map(b"/".join)
    name, target = data.draw(path), data.draw(path)
    folded = source_archive._fold(name + b"/" + target)
    inside = source_archive._tidy(folded)
    if inside is not None:
        assert not inside.startswith(b"/")
        assert b".." not in inside.split(b"/")
        # As a file system would have it, without links.
        joined = os.path.normpath(b"/top/" + folded.lstrip(b"/"))
        assert joined == b"/top" + (b"/" + inside if inside else b"")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["Config", "Layers", "RepoTags", "digest", "size", "mediaType"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(_VALUES, max_size=4) | _VALUES)
def test_manifest_json_of_anybody_is_understood_or_refused(value: object) -> None:
    """What comes out has the types that it should have."""
    try:
        found = source_docker._parse(json_of(value))
    except ValueError:
        return
    for each in found:
        assert isinstance(each.config, str)
        assert all(isinstance(name, str) for name in each.layers)


@given(st.lists(_VALUES, max_size=4), st.none() | _VALUES)
def test_index_of_anybody_is_understood_or_refused(items: list[Any], notes: object) -> None:
    """Whatever is listed beside an honest image, and whatever is noted of that."""
    entry = {"mediaType": MANIFEST, "digest": digest_of(b""), "size": 0, "annotations": notes}
    data = json_of({"schemaVersion": 2, "manifests": [*items, entry]})
    try:
        index = parse_manifest(data)
        assert isinstance(index, Index)
        groups = source_layout._groups(data, index, "image")
    except (ValueError, SourceError):
        return
    digests = [each.descriptor.digest for _, group in groups for each in group.entries]
    assert digest_of(b"") in digests


@settings(deadline=None)
@given(st.sampled_from(["oci", "docker"]), st.integers(0), st.integers(1, 255))
async def test_archive_with_a_wrong_byte_is_refused_or_the_same(
    kind: str, place: int, change: int
) -> None:
    """Nothing but an error of boxlite, and nothing but what was there before."""
    files = Files()
    if kind == "oci":
        files.finish(files.image(ONE))
    else:
        files.docker(saved(files, ONE, tags=["a:1"]))
    data = bytearray(files.tar())
    data[place % len(data)] ^= change
    with TemporaryDirectory() as top:
        path = Path(top, "image.tar")
        path.write_bytes(data)
        store = BlobStore(Path(top, "images"))
        try:
            loaded = await load_source(store, path, scratch=Path(top))
        except (ImageRefusedError, ImageNotFoundError, InvalidOptionError):
            assert {*os.listdir(top)} <= {"image.tar", "images"}
            return
        [manifest] = {each.manifest for each in loaded}
        parsed = parse_manifest(store.read(manifest, 1 << 20))
        assert isinstance(parsed, Manifest)
        assert [store.has(each) for each in (parsed.config, *parsed.layers)] == [True, True]
        config = parse_config(store.read(parsed.config, 1 << 20))
        assert config.diff_ids == (digest_of(ONE),)
