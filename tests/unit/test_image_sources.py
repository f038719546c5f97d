"""Images from this machine's files: what is taken, and as what."""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
from typing import TYPE_CHECKING

import attrs
import layers
import pytest
import trio
from census import open_files
from image_archives import (
    CONFIG,
    FULL_NAME,
    LAYER,
    MANIFEST,
    Files,
    blob_path,
    config_of,
    named,
    on,
    saved,
    tar_of,
)
from image_layout import run_tool, skopeo
from image_source_bench import ONE, TWO, Bench, one_image, open_bench
from layers import compressed, digest_of

from boxlite._errors import (
    ImageNotFoundError,
    InvalidOptionError,
)
from boxlite._images import source_piece
from boxlite._images.config import parse_config
from boxlite._images.platform import Platform
from boxlite._images.sources import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layers import Compression


ARM = Platform("linux", "arm64")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench."""
    with open_bench(tmp_path) as bench:
        yield bench


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
