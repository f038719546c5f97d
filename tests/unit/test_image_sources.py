"""Images from this machine's files: what is taken, what it is called, and what is refused."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import attrs
import layers
import pytest
import trio
from census import open_files
from hypothesis import given, settings, strategies as st
from image_archives import (
    CONFIG,
    FULL_NAME,
    LAYER,
    MANIFEST,
    REF_NAME,
    Files,
    blob_path,
    config_of,
    json_of,
    layer_of,
    named,
    on,
    saved,
    tar_of,
)
from image_layout import run_tool, skopeo
from layers import compressed, digest_of

from boxlite._errors import (
    HostError,
    ImageNotFoundError,
    ImageRefusedError,
    InvalidOptionError,
)
from boxlite._images import source_archive, source_docker, source_layout, source_piece
from boxlite._images.blobs import BlobStore
from boxlite._images.config import parse_config
from boxlite._images.layer_limits import Limits
from boxlite._images.manifest import Index, Manifest, parse_manifest
from boxlite._images.platform import Platform
from boxlite._images.reference import Reference
from boxlite._images.source_names import name_of_entry, title_of
from boxlite._images.source_piece import SourceError
from boxlite._images.sources import Loaded, load_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layers import Compression

    from boxlite._images.descriptor import Descriptor

ONE, TWO = layer_of("one"), layer_of("two", "three")
ARM = Platform("linux", "arm64")


class Bench:
    """A store, a directory to work in, and one for sources."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = BlobStore(top / "images")
        self.scratch = top / "scratch"
        self.scratch.mkdir()

    async def load(
        self,
        source: Path | bytes | Files,
        *,
        name: str | None = None,
        platform: Platform | None = None,
        limits: Limits | None = None,
    ) -> list[Loaded]:
        """Load a source; what is no path is written to ``image.tar`` or to ``layout``."""
        if isinstance(source, Files):
            source = source.write(self.top / "layout")
        if isinstance(source, bytes):
            (self.top / "image.tar").write_bytes(source)
            source = self.top / "image.tar"
        return await load_source(
            self.store,
            source,
            scratch=self.scratch,
            name=Reference.parse(name) if name is not None else None,
            platform=platform,
            limits=limits,
        )

    async def load_one(
        self,
        source: Path | bytes | Files,
        *,
        name: str | None = None,
        platform: Platform | None = None,
    ) -> Manifest:
        """Load a source of one image, and return its manifest."""
        [loaded] = await self.load(source, name=name, platform=platform)
        return self.manifest(loaded)

    def manifest(self, loaded: Loaded) -> Manifest:
        """Return the manifest of an image, every piece of which must be in the store."""
        manifest = parse_manifest(self.store.read(loaded.manifest, 1 << 20))
        assert isinstance(manifest, Manifest)
        assert manifest.descriptor == loaded.manifest
        for piece in (manifest.config, *manifest.layers):
            assert digest_of(self.read(piece)) == piece.digest
        return manifest

    def read(self, piece: Descriptor) -> bytes:
        """Return a piece."""
        return self.store.read(piece, 1 << 30)

    def diff_ids(self, manifest: Manifest) -> list[str]:
        """Return what the configuration says of the layers."""
        return list(parse_config(self.read(manifest.config)).diff_ids)

    async def refused(
        self,
        source: Path | bytes | Files,
        match: str,
        *,
        name: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Load a source that must be refused, by its name."""
        with pytest.raises(ImageRefusedError, match=match) as caught:
            await self.load(source, name=name, limits=limits)
        assert caught.value.image.startswith(str(self.top))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench; afterwards nothing is open, in scratch, or half in the store."""
    before = open_files()
    bench = Bench(tmp_path)
    yield bench
    assert open_files() == before
    assert [*bench.scratch.iterdir()] == []
    if bench.store.partials.exists():
        assert [*bench.store.partials.iterdir()] == []
    for digest in bench.store.digests():
        assert digest_of(bench.store.path(digest).read_bytes()) == digest


def one_image(name: str = "latest") -> Files:
    """Return a layout of one image."""
    files = Files()
    return files.finish(named(files.image(ONE, TWO), name))


# OCI layouts.


async def test_layout_is_taken_as_it_is(bench: Bench) -> None:
    """Manifest, configuration and layers keep their digests: the image is the same one."""
    files = Files()
    expected = files.image(ONE, TWO)
    manifest = await bench.load_one(files.finish(named(expected, "latest")))

    assert manifest.digest == expected["digest"]
    assert [bench.read(layer) for layer in manifest.layers] == [
        compressed(ONE, "gzip"),
        compressed(TWO, "gzip"),
    ]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("prefix", ["", "./"])
async def test_layout_in_an_archive_is_the_same(
    bench: Bench, compression: Compression, prefix: str
) -> None:
    """However it is compressed, and whether tar(1) was given names or a directory."""
    files = Files()
    expected = files.image(ONE, TWO, compression="zstd")
    tar = files.finish(named(expected, "latest")).tar(prefix=prefix)

    [loaded] = await bench.load(compressed(tar, compression))
    assert bench.manifest(loaded).digest == expected["digest"]
    assert loaded.name == "docker.io/library/image:latest"


async def test_what_the_store_has_is_not_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are shared, and some have gigabytes."""
    source = one_image().write(bench.top / "layout")
    first = await bench.load(source)

    def copy(*_: object) -> None:
        raise AssertionError("a piece was copied")

    monkeypatch.setattr(source_piece.Intake, "copy", copy)
    assert await bench.load(source) == first


async def test_nested_index_is_searched_for_the_platform(bench: Bench) -> None:
    """As BuildKit writes several platforms: one entry with a name, an index below it."""
    files = Files()
    arm = files.image(TWO, architecture="arm64")
    amd = files.image(ONE)
    inner = files.index(on(arm, "arm64"), on(amd, "amd64"))
    source = files.finish(named(inner, "v1")).write(bench.top / "app")

    assert (await bench.load_one(source)).digest == amd["digest"]
    assert (await bench.load_one(source, platform=ARM)).digest == arm["digest"]


async def test_platforms_of_one_image_may_be_listed_at_the_top(bench: Bench) -> None:
    """The specification allows it, with and without names."""
    files = Files()
    arm = files.image(TWO, architecture="arm64")
    amd = files.image(ONE)
    [loaded] = await bench.load(files.finish(on(arm, "arm64"), on(amd, "amd64")))
    assert (loaded.name, loaded.manifest.digest) == (None, amd["digest"])

    files.finish(named(on(arm, "arm64"), "x:1"), named(on(amd, "amd64"), "x:1"))
    [loaded] = await bench.load(files, platform=ARM)
    assert loaded.manifest.digest == arm["digest"]
    assert loaded.name == "docker.io/library/x:1"


async def test_platform_that_is_missing_is_told_with_those_that_are_there(bench: Bench) -> None:
    """Also when only the configuration says what the image is for."""
    files = Files()
    arm = files.image(ONE, architecture="arm64")
    s390 = files.image(ONE, architecture="s390x")
    inner = files.index(on(arm, "arm64"), on(s390, "s390x"))
    with pytest.raises(ImageNotFoundError, match="none for linux/amd64: there is linux/arm64, lin"):
        await bench.load(files.finish(named(inner, "v1")))
    with pytest.raises(ImageNotFoundError, match="none for linux/amd64: there is linux/arm64$"):
        await bench.load(files.finish(named(arm, "v1")))


async def test_layout_need_not_have_every_platform_that_it_lists(bench: Bench) -> None:
    """As containerd exports one platform, with the index of all."""
    files = Files()
    amd, arm = files.image(ONE), files.image(TWO, architecture="arm64")
    inner = files.index(on(arm, "arm64"), on(amd, "amd64"))
    del files.content[blob_path(arm["digest"])]
    files.finish(named(inner, "v1"))

    assert (await bench.load_one(files)).digest == amd["digest"]
    with pytest.raises(ImageNotFoundError, match="none for linux/arm64: there is linux/amd64$"):
        await bench.load(files, platform=ARM)


async def test_attestations_are_no_images(bench: Bench) -> None:
    """BuildKit adds one to every image."""
    files = Files()
    amd = on(files.image(ONE), "amd64")
    note = {
        **files.image(TWO),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    [loaded] = await bench.load(files.finish(named(files.index(amd, note), "v1"), note))
    assert loaded.manifest.digest == amd["digest"]


async def test_several_images_are_all_taken(bench: Bench) -> None:
    """Each by its names; those for other platforms are left out."""
    files = Files()
    one, two, arm = files.image(ONE), files.image(TWO), files.image(ONE, architecture="arm64")
    files.finish(named(one, "a:1"), named(two, "b:1"), named(one, "a:2"), named(arm, "c:1"), two)
    found = {(each.name, each.manifest.digest) for each in await bench.load(files)}
    assert found == {
        ("docker.io/library/a:1", one["digest"]),
        ("docker.io/library/a:2", one["digest"]),
        ("docker.io/library/b:1", two["digest"]),
    }


async def test_images_without_names_are_taken_without(bench: Bench) -> None:
    """The caller knows them by their digests."""
    files = Files()
    one, two = files.image(ONE), files.image(TWO)
    loaded = await bench.load(files.finish(one, two))
    assert [(each.name, each.manifest.digest) for each in loaded] == [
        (None, one["digest"]),
        (None, two["digest"]),
    ]


# Names.


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, None),
        ({REF_NAME: "latest"}, "docker.io/library/image:latest"),
        ({REF_NAME: "1.2_3-x"}, "docker.io/library/image:1.2_3-x"),
        ({REF_NAME: "alpine:3.20"}, "docker.io/library/alpine:3.20"),
        ({REF_NAME: "ghcr.io/owner/app:v1"}, "ghcr.io/owner/app:v1"),
        ({REF_NAME: "ghcr.io/owner/app"}, "ghcr.io/owner/app:latest"),
        ({REF_NAME: "localhost:5000/app:v1"}, "localhost:5000/app:v1"),
        ({REF_NAME: "../../etc/passwd"}, None),
        ({REF_NAME: "Upper/Case:x"}, None),
        ({REF_NAME: "x" * 129}, "docker.io/library/" + "x" * 129 + ":latest"),
        ({REF_NAME: "x" * 5000 + "/y"}, ValueError),
        ({REF_NAME: 5}, ValueError),
        ({REF_NAME: "v1", FULL_NAME: "docker.io/library/full:v1"}, "docker.io/library/full:v1"),
        ({REF_NAME: "v1", FULL_NAME: "no name!"}, "docker.io/library/image:v1"),
    ],
)
def test_name_follows_from_the_annotations(
    annotations: dict[str, Any], expected: str | type[Exception] | None
) -> None:
    """A full name as it is; a tag is one of what the source is called; nonsense is no name."""
    item = {"annotations": annotations}
    if isinstance(expected, type):
        with pytest.raises(expected):
            name_of_entry(item, "image")
    else:
        found = name_of_entry(item, "image")
        assert (found and str(found)) == expected


@pytest.mark.parametrize("title", ["No Name", "UPPER", "..", "", "a:b", "x" * 300])
def test_tag_in_a_source_without_a_fitting_name_is_no_name(title: str) -> None:
    """A person's directories are called what they like."""
    assert name_of_entry({"annotations": {REF_NAME: "latest"}}, title) is None


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/x/alpine", "alpine"),
        ("/x/alpine.tar", "alpine"),
        ("/x/alpine-3.20.tar.gz", "alpine-3.20"),
        ("/x/alpine.oci.tar.zst", "alpine"),
        ("/x/y/..", "x"),
        ("/", ""),
    ],
)
def test_source_is_called_what_its_file_is(path: str, title: str) -> None:
    """Without what says its format."""
    assert title_of(Path(path)) == title


@given(st.dictionaries(st.sampled_from([REF_NAME, FULL_NAME]), st.text() | st.integers()))
def test_no_annotation_breaks_anything(annotations: dict[str, Any]) -> None:
    """A name is a reference that is understood again, or none."""
    try:
        found = name_of_entry({"annotations": annotations}, "image")
    except ValueError:
        return
    assert found is None or Reference.parse(str(found)) == found


async def test_single_image_may_be_renamed(bench: Bench) -> None:
    """Also when it has several names."""
    files = Files()
    one = files.image(ONE)
    files.finish(named(one, "a:1"), named(one, "a:2"))
    [loaded] = await bench.load(files, name="mine:v1")
    assert loaded.name == "docker.io/library/mine:v1"


async def test_several_images_are_not_given_one_name(bench: Bench) -> None:
    """And nothing of them is kept."""
    files = Files()
    files.finish(named(files.image(ONE), "a:1"), named(files.image(TWO), "b:1"))
    with pytest.raises(InvalidOptionError, match=r"name is .*left out: .* has 2 images"):
        await bench.load(files, name="mine")
    assert [*bench.store.digests()] == []


async def test_name_with_a_digest_must_be_the_truth(bench: Bench) -> None:
    """Whoever opens a box from a digest gets what has it, whatever a layout says."""
    files = Files()
    one = files.image(ONE)
    good, bad = f"app@{one['digest']}", f"app@sha256:{'0' * 64}"
    [loaded] = await bench.load(files.finish(named(one, good, FULL_NAME)))
    assert loaded.name == f"docker.io/library/{good}"
    await bench.refused(files.finish(named(one, bad, FULL_NAME)), "is another one")

    files.finish(one)
    [loaded] = await bench.load(files, name=good)
    assert loaded.name == f"docker.io/library/{good}"
    with pytest.raises(InvalidOptionError, match="without a digest"):
        await bench.load(files, name=bad)


async def test_two_images_of_one_name_are_refused(bench: Bench) -> None:
    """There is no telling which is meant."""
    files = Files()
    one, two = files.image(ONE), files.image(TWO)
    await bench.refused(files.finish(named(one, "a:1"), named(two, "a:1")), "two images")
    files = Files()
    files.docker(saved(files, ONE, tags=["a:1"]), saved(files, TWO, tags=["a:1"]))
    await bench.refused(files.tar(), "2 images in it are called a:1")


# Archives of docker save.


async def test_docker_archive_becomes_an_oci_image(bench: Bench) -> None:
    """The configuration as it is; the manifest is a function of what is in the image."""
    files = Files()
    config = config_of(ONE, TWO, config={"Cmd": ["sh"]}, docker_version="20.10")
    tar = files.docker(saved(files, ONE, TWO, tags=["app:1", "app:2"], config=config)).tar()
    loaded = await bench.load(tar)

    assert [each.name for each in loaded] == ["docker.io/library/app:1", "docker.io/library/app:2"]
    manifest = bench.manifest(loaded[0])
    assert loaded[1].manifest == loaded[0].manifest
    assert (manifest.descriptor.media_type, manifest.config.media_type) == (MANIFEST, CONFIG)
    assert bench.read(manifest.config) == config
    assert [(layer.media_type, bench.read(layer)) for layer in manifest.layers] == [
        (LAYER, ONE),
        (LAYER, TWO),
    ]
    text = bench.read(manifest.descriptor).decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    [other] = {each.manifest for each in await bench.load(compressed(tar, "gzip"))}
    assert other == loaded[0].manifest


async def test_links_between_layers_are_followed_in_the_archive(bench: Bench) -> None:
    """Docker wrote a layer that two images share once."""
    files = Files()
    entry = saved(files, ONE, TWO, tags=None)
    first, second = entry["Layers"]
    entry["Layers"] = ["link/layer.tar", "hard/layer.tar"]
    tar = files.docker(entry).tar(
        layers.symlink(b"link/layer.tar", b"../chain/layer.tar"),
        layers.symlink(b"chain/layer.tar", b"./..//" + first.encode()),
        layers.hard(b"hard/layer.tar", second.encode()),
    )
    [loaded] = await bench.load(tar)
    assert loaded.name is None
    assert bench.diff_ids(bench.manifest(loaded)) == [digest_of(ONE), digest_of(TWO)]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_compressed_layers_of_other_tools_are_taken(
    bench: Bench, compression: Compression
) -> None:
    """Kaniko and crane write such archives."""
    files = Files()
    entry = saved(files, ONE, tags=["app:1"])
    files.content[entry["Layers"][0]] = compressed(ONE, compression)
    manifest = await bench.load_one(files.docker(entry).tar())
    [layer] = manifest.layers
    assert layer.media_type == f"{LAYER}+{compression}"
    assert bench.read(layer) == compressed(ONE, compression)


async def test_newer_docker_archive_is_a_layout_with_dockers_names(bench: Bench) -> None:
    """Docker 25 writes both; the digest is that of the registry only with the layout's."""
    files = Files()
    config = config_of(ONE)
    image = files.image(ONE, config=config)
    files.finish(named(image, "docker.io/library/other:9", FULL_NAME)).docker(
        {
            "Config": blob_path(digest_of(config)),
            "RepoTags": ["app:1", "<none>:<none>", "app:1"],
            "Layers": [blob_path(digest_of(ONE))],
        }
    )
    [loaded] = await bench.load(files.tar())
    assert (loaded.name, loaded.manifest.digest) == ("docker.io/library/app:1", image["digest"])


async def test_docker_archive_for_another_platform_is_not_found(bench: Bench) -> None:
    """As its configuration says."""
    files = Files()
    config = config_of(ONE, architecture="arm64")
    tar = files.docker(saved(files, ONE, tags=["a:1"], config=config)).tar()
    with pytest.raises(ImageNotFoundError, match="there is linux/arm64"):
        await bench.load(tar)
    assert await bench.load(tar, platform=ARM)


# Root file systems.


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_root_tarball_becomes_a_layer_as_it_is(
    bench: Bench, compression: Compression
) -> None:
    """Nothing in the image says when, so it has the digest that its content has."""
    data = compressed(TWO, compression)
    manifest = await bench.load_one(data, name="root")
    [layer] = manifest.layers
    assert bench.read(layer) == data
    assert layer.media_type == (LAYER if compression == "none" else f"{LAYER}+{compression}")
    assert bench.diff_ids(manifest) == [digest_of(TWO)]
    assert json.loads(bench.read(manifest.config)) == {
        "architecture": "amd64",
        "config": {},
        "os": "linux",
        "rootfs": {"diff_ids": [digest_of(TWO)], "type": "layers"},
    }
    assert await bench.load_one(data, name="root") == manifest


async def test_root_tarball_of_xz_is_taken_unpacked(bench: Bench) -> None:
    """Distributions have them, and there is no layer of that kind."""
    manifest = await bench.load_one(lzma.compress(ONE), name="root")
    assert [(each.media_type, bench.read(each)) for each in manifest.layers] == [(LAYER, ONE)]


async def test_root_is_for_the_platform_that_was_asked_for(bench: Bench) -> None:
    """A tar does not say what it is for."""
    manifest = await bench.load_one(ONE, name="root", platform=Platform("linux", "arm", "v6"))
    assert parse_config(bench.read(manifest.config)).platform == Platform("linux", "arm", "v6")


async def test_root_may_have_what_archives_of_images_may_not(bench: Bench) -> None:
    """Devices and links out of it are a matter of the one who makes a root of it."""
    tar = tar_of(
        layers.device(b"dev/null", tarfile.CHRTYPE, 1, 3),
        layers.symlink(b"etc/mtab", b"/proc/mounts"),
        layers.file(b"/bin/sh"),
        layers.file(b"twice"),
        layers.file(b"twice"),
    )
    manifest = await bench.load_one(tar, name="root")
    assert [bench.read(each) for each in manifest.layers] == [tar]


async def test_root_directory_is_packed(bench: Bench) -> None:
    """What has no oci-layout is a root, whatever else it has."""
    root = bench.top / "root"
    (root / "blobs").mkdir(parents=True)
    (root / "index.json").write_text("{}")
    (root / "link").symlink_to("/outside")
    [loaded] = await bench.load(root, name="root:v1")
    assert loaded.name == "docker.io/library/root:v1"
    [layer] = bench.manifest(loaded).layers
    with tarfile.open(bench.store.path(layer.digest)) as tar:
        assert {name.removeprefix("./") for name in tar.getnames()} >= {"blobs", "index.json"}
    assert bench.diff_ids(bench.manifest(loaded)) == [layer.digest]


async def test_root_needs_a_name(bench: Bench) -> None:
    """It has none of its own; what was looked for is said, for it may be a broken archive."""
    for source in (ONE, (bench.top / "scratch")):
        with pytest.raises(InvalidOptionError, match=r"name is None: it must be given: .* root fi"):
            await bench.load(source)
    assert [*bench.store.digests()] == []


async def test_root_must_not_hold_what_it_is_written_to(bench: Bench) -> None:
    """It would grow while it is read."""
    with pytest.raises(InvalidOptionError, match="a directory that does not hold"):
        await bench.load(bench.top, name="root")


# What is refused.


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
        "is not a descriptor|is no index|two ways",
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


# Cancelling.


@pytest.mark.parametrize("kind", ["layout", "archive", "docker", "root", "directory"])
async def test_cancelled_at_any_piece_it_leaves_nothing_behind(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled at each point where it can be, until it is no more."""
    source = bench.top / "source"
    name = "x" if kind in ("root", "directory") else None
    files = Files()
    match kind:
        case "layout":
            files.finish(files.image(ONE, TWO)).write(source)
        case "archive":
            tar = files.finish(files.image(ONE, TWO)).tar()
            source.write_bytes(compressed(tar, "gzip"))
        case "docker":
            files.docker(saved(files, ONE, TWO, tags=["a:1"]))
            source.write_bytes(compressed(files.tar(), "zstd"))
        case "root":
            source.write_bytes(compressed(TWO, "gzip"))
        case _:
            source.mkdir()
            (source / "file").write_bytes(b"data")
    check = trio.from_thread.check_cancelled
    before = open_files()
    for point in range(200):
        left = point
        scope = trio.CancelScope()

        def counted(scope: trio.CancelScope = scope) -> None:
            nonlocal left
            if not left:
                trio.from_thread.run_sync(scope.cancel)
            left -= 1
            check()

        monkeypatch.setattr(trio.from_thread, "check_cancelled", counted)
        loaded: list[Loaded] = []
        with scope:
            loaded = await bench.load(source, name=name)
        assert open_files() == before
        assert [*bench.scratch.iterdir()] == []
        if loaded:
            break
        assert scope.cancelled_caught
        shutil.rmtree(bench.store.root, ignore_errors=True)
    assert loaded
    assert point >= 2
    bench.manifest(loaded[0])


# What the tools write.


def tool(*names: str) -> pytest.MarkDecorator:
    """Skip a test on a machine without some programs."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)}")


@pytest.fixture
def umoci_layout(tmp_path: Path) -> Path:
    """A layout that umoci made, with an image of two layers."""
    layout = tmp_path / "made"
    run_tool("umoci", "init", "--layout", layout)
    run_tool("umoci", "new", "--image", f"{layout}:v1")
    for data in (ONE, TWO):
        (tmp_path / "layer.tar").write_bytes(data)
        run_tool("umoci", "raw", "add-layer", "--image", f"{layout}:v1", tmp_path / "layer.tar")
    return layout


@tool("umoci")
async def test_layout_of_umoci(bench: Bench, umoci_layout: Path) -> None:
    """With its names, which are tags."""
    run_tool("umoci", "tag", "--image", f"{umoci_layout}:v1", "v2")
    loaded = await bench.load(umoci_layout)
    assert {each.name for each in loaded} == {
        "docker.io/library/made:v1",
        "docker.io/library/made:v2",
    }
    assert bench.diff_ids(bench.manifest(loaded[0])) == [digest_of(ONE), digest_of(TWO)]


@tool("umoci", "skopeo")
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_archives_of_skopeo(
    bench: Bench, umoci_layout: Path, compression: Compression
) -> None:
    """The OCI archive is the image; that of Docker has the same content, and the name given."""
    original = await bench.load_one(umoci_layout)
    oci, docker = bench.top / "oci.tar", bench.top / "docker.tar"
    skopeo("copy", "--quiet", f"oci:{umoci_layout}:v1", f"oci-archive:{oci}:v1")
    skopeo("copy", "--quiet", f"oci:{umoci_layout}:v1", f"docker-archive:{docker}:app:v7")
    for archive in (oci, docker):
        archive.write_bytes(compressed(archive.read_bytes(), compression))

    [loaded] = await bench.load(oci)
    assert loaded == Loaded("docker.io/library/oci:v1", original.descriptor)
    [loaded] = await bench.load(docker)
    assert loaded.name == "docker.io/library/app:v7"
    manifest = bench.manifest(loaded)
    assert [bench.read(layer) for layer in manifest.layers] == [ONE, TWO]
    assert bench.diff_ids(manifest) == [digest_of(ONE), digest_of(TWO)]


@tool("skopeo", "umoci")
async def test_what_was_loaded_is_an_image_to_other_tools(bench: Bench, umoci_layout: Path) -> None:
    """The manifest that is made for Docker's archive is one that skopeo takes."""
    docker = bench.top / "docker.tar"
    skopeo("copy", "--quiet", f"oci:{umoci_layout}:v1", f"docker-archive:{docker}:app:v7")
    [loaded] = await bench.load(docker)
    layout = bench.top / "again"
    shutil.copytree(bench.store.blobs, layout / "blobs" / "sha256")
    entry = attrs.asdict(loaded.manifest)
    entry["mediaType"] = entry.pop("media_type")
    again = Files().finish(named(entry, "v1"))
    again.write(layout)
    told = json.loads(skopeo("inspect", f"oci:{layout}:v1"))
    assert told["Digest"] == loaded.manifest.digest
    assert told["Layers"] == [digest_of(ONE), digest_of(TWO)]


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
