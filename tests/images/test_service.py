"""The images of a home and a real registry: pulled, shared, moved, damaged, removed, loaded."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import image_builder
import pytest
import trio
import trio.testing
from image_homes import assert_holds, files, images_of, make_home, nothing_left, pieces, tree
from image_registry import PASSWORD, USERNAME
from image_trees import differences
from registry_server import noise

import boxlite
from boxlite._images.images import Images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from image_layout import Layout
    from image_registry import Registry

    from boxlite._images.catalog import Entry
    from boxlite._layout import HomeLayout

    Event = boxlite.PullProgress | boxlite.ConvertProgress

#: Nobody waits for what is on this machine for longer than this.
PATIENCE_SECONDS: Final = 120


@pytest.mark.parametrize("name", ["busybox", "debian", "app"])
async def test_an_image_is_pulled_and_ready(
    name: str, home: HomeLayout, request: pytest.FixtureRequest, registry: Registry
) -> None:
    """All of it is there, and nothing else."""
    image: Layout = request.getfixturevalue(name)
    reference: str = request.getfixturevalue(f"{name}_reference")
    images = images_of(home)
    with nothing_left(home), trio.fail_after(PATIENCE_SECONDS):
        pulled = await images.pull(reference)

    assert pulled.name == reference
    assert pulled.digest == image.digest() == registry.manifest(reference.partition("/")[2])[1]
    manifest = image.manifest()
    assert pulled.layers_bytes == sum(layer["size"] for layer in manifest["layers"])
    assert pulled.root_bytes == pulled.root.stat().st_size
    assert pulled.root.stat().st_mode & 0o777 == 0o400
    config = image.config()["config"]
    assert list(pulled.config.env) == config["Env"]
    assert list(pulled.command()) == [*config.get("Entrypoint", []), *config["Cmd"]]
    assert pulled.config.user == config.get("User", "")
    assert_holds(home, image)
    assert await images.get(reference) == pulled
    assert await images.list() == [pulled]
    assert await images_of(home).list() == [pulled]


async def test_it_is_pulled_by_its_digest(
    home: HomeLayout, busybox: Layout, busybox_reference: str, registry: Registry
) -> None:
    """And called by it."""
    digest = busybox.digest()
    reference = registry.reference(f"test/busybox@{digest}")
    images = images_of(home)
    pulled = await images.pull(reference)
    assert (pulled.name, pulled.digest) == (reference, digest)
    assert await images.get(digest[7:19]) == pulled
    assert_holds(home, busybox)
    # The tag is another name, and nothing is downloaded for it.
    events: list[Event] = []
    await images.pull(busybox_reference, on_progress=events.append)
    assert not [each for each in events if isinstance(each, boxlite.ConvertProgress)]
    states = {(each.kind, each.state) for each in events if isinstance(each, boxlite.PullProgress)}
    assert ("layer", "cached") in states
    assert not {("layer", "downloading"), ("config", "downloading")} & states
    assert_holds(home, busybox, names=2)


@pytest.mark.parametrize("form", ["zstd", "schema2", "index"])
async def test_every_form_of_an_image_has_the_same_root(
    form: str, home: HomeLayout, busybox: Layout, busybox_reference: str, registry: Registry,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Registries recompress, convert and bundle; boxes see no difference, and share the root."""
    name = f"test/form:{form}"
    match form:
        case "zstd":
            registry.push(image_builder.zstd(busybox, tmp_path / "zstd"), name)
        case "schema2":
            registry.push(busybox, name, schema2=True)
        case _:
            registry.push(
                image_builder.two_platforms(busybox, tmp_path / "two"), name, platforms=True
            )
    images = images_of(home)
    one = await images.pull(busybox_reference)
    events: list[Event] = []
    other = await images.pull(registry.reference(name), on_progress=events.append)
    assert other.root == one.root
    assert not [each for each in events if isinstance(each, boxlite.ConvertProgress)]
    if form != "index":
        assert other.digest == registry.manifest(name)[1] != one.digest
        # Made of these layers, it is the same.
        again = make_home(tmp_path / "again")
        made = await images_of(again).pull(registry.reference(name))
        assert made.root.name == one.root.name
        assert differences(tree(made, tmp_path), tree(one, tmp_path)) == []
    else:
        assert other.digest == one.digest == busybox.digest()
        arm = await images.pull(registry.reference(name), platform="linux/arm64")
        assert arm.config.architecture == "arm64"
        assert arm.config.labels == {"platform": "arm64"}
        assert (await images.get(registry.reference(name))).digest == arm.digest != one.digest
        with pytest.raises(boxlite.ImageNotFoundError, match=r"linux/riscv64.*linux/arm64"):
            await images.pull(registry.reference(name), platform="linux/riscv64")


async def test_an_image_that_several_pull_comes_once(
    home: HomeLayout, busybox: Layout, busybox_reference: str, registry: Registry
) -> None:
    """Each layer, and the root that is made of them."""
    images, before = images_of(home), len(registry.requests())
    events: list[list[Event]] = [[], [], []]
    pulled = []

    async def pull(told: list[Event]) -> None:
        pulled.append(await images.pull(busybox_reference, on_progress=told.append))

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for told in events:
                nursery.start_soon(pull, told)
    assert len({(image.digest, image.root) for image in pulled}) == 1

    verified: Counter[str] = Counter()
    cached: Counter[str] = Counter()
    for each in (*events[0], *events[1], *events[2]):
        if isinstance(each, boxlite.PullProgress) and each.kind != "manifest":
            verified[each.digest] += each.state == "verified"
            cached[each.digest] += each.state == "cached"
    manifest = busybox.manifest()
    blobs = {piece["digest"] for piece in (manifest["config"], *manifest["layers"])}
    assert verified == dict.fromkeys(blobs, 1)
    assert cached == dict.fromkeys(blobs, 2)
    converting = [
        told for told in events if any(isinstance(each, boxlite.ConvertProgress) for each in told)
    ]
    assert len(converting) == 1
    asked = Counter(path for _, path in registry.requests()[before:] if "/blobs/" in path)
    assert all(count == 1 for count in asked.values()), asked
    assert_holds(home, busybox)


async def test_layers_that_images_share_come_once(
    home: HomeLayout, debian: Layout, app: Layout, debian_reference: str, app_reference: str
) -> None:
    """Also if they are pulled at the same time; and removing one keeps them for the other."""
    images, events = images_of(home), list[boxlite.PullProgress | boxlite.ConvertProgress]()
    shared = debian.manifest()["layers"][0]["digest"]
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for reference in (debian_reference, app_reference):
                nursery.start_soon(lambda it: images.pull(it, on_progress=events.append), reference)
    states = [
        each.state
        for each in events
        if isinstance(each, boxlite.PullProgress) and each.digest == shared
    ]
    assert (states.count("verified"), states.count("cached")) == (1, 1)
    assert_holds(home, debian, app)

    await images.remove(debian_reference)
    assert_holds(home, app)
    await images.remove(app_reference)
    assert_holds(home)


def docker_config(directory: Path, registry: Registry, password: str) -> Path:
    """Write a file as ``docker login`` does."""
    pair = base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
    path = directory / "config.json"
    path.write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
    return path


async def test_a_private_registry_lets_in_whom_it_knows(
    home: HomeLayout, private_registry: Registry, busybox: Layout, tmp_path: Path
) -> None:
    """By Docker's configuration, or by what the caller says; and a wrong password is told."""
    reference = private_registry.push(busybox, "test/private:1")
    right = docker_config(tmp_path, private_registry, PASSWORD)
    pulled = await images_of(home, docker_config=right).pull(reference)
    assert pulled.digest == busybox.digest()

    await images_of(home).pull(reference, credentials=(USERNAME, PASSWORD))
    wrong = docker_config(tmp_path, private_registry, "wrong")
    for strangers, credentials in (
        (images_of(home), None),
        (images_of(home, docker_config=wrong), None),
        (images_of(home), (USERNAME, "wrong")),
    ):
        with nothing_left(home), pytest.raises(boxlite.RegistryError) as caught:
            await strangers.pull(reference, credentials=credentials)
        assert caught.value.status == 401
        assert "wrong" not in str(caught.value).replace("wrong password", "")
    # What the home has already, it keeps.
    assert_holds(home, busybox)


async def test_progress_is_complete_and_in_order(
    home: HomeLayout, busybox: Layout, busybox_reference: str
) -> None:
    """A bar that is drawn of it neither jumps back nor stops before the end."""
    events: list[Event] = []
    await images_of(home).pull(busybox_reference, on_progress=events.append)
    assert {each.image for each in events} == {busybox_reference}

    manifest = busybox.manifest()
    steps = {"waiting": 0, "downloading": 1, "verified": 2, "cached": 2}
    sizes = {piece["digest"]: piece["size"] for piece in (manifest["config"], *manifest["layers"])}
    sizes[busybox.digest()] = busybox.blob(busybox.digest()).stat().st_size
    pulls = [each for each in events if isinstance(each, boxlite.PullProgress)]
    assert {each.digest: each.total_bytes for each in pulls} == sizes
    for digest, size in sizes.items():
        told = [each for each in pulls if each.digest == digest]
        positions = [(steps[each.state], each.done_bytes) for each in told]
        assert positions == sorted(positions)
        assert (told[-1].state, told[-1].done_bytes) == ("verified", size)
        assert [each.state for each in told].count("verified") == 1
    # The manifest says what the configuration is, and that how many layers there are.
    kinds = [each.kind for each in pulls]
    assert kinds == sorted(kinds, key=["manifest", "config", "layer"].index)

    converts = [each for each in events if isinstance(each, boxlite.ConvertProgress)]
    assert events == [*pulls, *converts]
    for step in ("unpack", "pack"):
        done = [each.done_bytes for each in converts if each.step == step]
        [total] = {each.total_bytes for each in converts if each.step == step}
        assert done == sorted(done)
        assert done[-1] == total
    assert [each.step for each in converts] == sorted((e.step for e in converts), reverse=True)


async def test_an_error_of_the_listener_ends_the_pull(
    home: HomeLayout, busybox: Layout, busybox_reference: str
) -> None:
    """It comes out as it is, whatever it was told of; and the next pull goes on from there."""
    for stop in ("waiting", "downloading", "verified", "unpack", "pack"):

        def fail(event: Event, stop: str = stop) -> None:
            if stop == (event.state if isinstance(event, boxlite.PullProgress) else event.step):
                raise ZeroDivisionError(f"at {stop}")

        with nothing_left(home), trio.fail_after(PATIENCE_SECONDS):
            with pytest.raises(ZeroDivisionError, match=f"at {stop}"):
                await images_of(home).pull(busybox_reference, on_progress=fail)
            assert await images_of(home).list() == []
    with trio.fail_after(PATIENCE_SECONDS):
        await images_of(home).pull(busybox_reference)
        await images_of(home).prune()
    assert_holds(home, busybox)


async def test_a_tag_that_has_moved_leads_to_the_new_image(
    home: HomeLayout, busybox: Layout, registry: Registry, tmp_path: Path
) -> None:
    """The old one has no name any more, and a prune removes what only that needed."""
    moved = busybox.derive(tmp_path / "moved")
    moved.configure(labels={"version": "2"})
    reference = registry.push(busybox, "test/moving:latest")
    images = images_of(home)
    old = await images.pull(reference)
    registry.push(moved, "test/moving:latest")
    assert await images.ready(reference) == old

    new = await images.pull(reference)
    assert new.digest == moved.digest() != old.digest
    assert new.root == old.root
    assert [image.digest for image in await images.list()] == [new.digest]
    assert set(files(home.images)) > pieces(home, busybox)
    pruned = await images.prune()
    assert pruned.images == ()
    manifest = busybox.manifest()
    sizes = (busybox.blob(busybox.digest()).stat().st_size, manifest["config"]["size"])
    assert pruned.bytes == sum(sizes)
    assert_holds(home, moved)


async def test_images_that_boxes_use_stay(
    home: HomeLayout, busybox: Layout, debian: Layout, busybox_reference: str, debian_reference: str
) -> None:
    """Those of this program, and those of boxes that run on without one."""
    kept: set[str] = set()
    images = Images(home, boxlite.RegistryOptions(docker_config=home.root / "none"), lambda: kept)
    used = await images.pull(busybox_reference)
    other = await images.pull(debian_reference)
    with images.using(used), images.using(used):
        with images.using(used):
            pass
        for name in (busybox_reference, used.digest):
            with pytest.raises(boxlite.StateError, match="used by a box"):
                await images.remove(name)
        pruned = await images.prune(all=True)
        assert pruned.images == (debian_reference,)
        assert pruned.bytes > other.root_bytes
        assert_holds(home, busybox)
    kept.add(used.root.name)
    assert (await images.prune(all=True)).images == ()
    assert_holds(home, busybox)
    kept.clear()
    pruned = await images.prune(all=True)
    assert pruned.images == (busybox_reference,)
    assert_holds(home)
    assert await images.prune(all=True) == boxlite.Pruned(images=(), bytes=0)


async def test_removing_waits_for_pulls_and_takes_nothing_from_them(
    home: HomeLayout, busybox: Layout, busybox_reference: str, debian: Layout, debian_reference: str
) -> None:
    """Blobs without a name are those of an image that is on its way."""
    images = images_of(home)
    await images.pull(debian_reference)
    begun = trio.Event()

    def tell(event: Event) -> None:
        if isinstance(event, boxlite.PullProgress) and event.state == "verified":
            begun.set()

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: images.pull(busybox_reference, on_progress=tell))
            await begun.wait()
            nursery.start_soon(images.remove, debian_reference)
            nursery.start_soon(images.prune)
    assert_holds(home, busybox)


async def test_an_image_that_was_just_found_is_there_for_its_box(
    home: HomeLayout, busybox: Layout, busybox_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune that comes in between waits until the box has said what it uses."""
    images = images_of(home)
    await images.pull(busybox_reference)
    pruned: list[boxlite.Pruned] = []
    find = images._keeper.image

    async def prune() -> None:
        pruned.append(await images.prune(all=True))

    async with trio.open_nursery() as nursery:

        def find_while_pruning(entry: Entry) -> boxlite.Image:
            image = find(entry)
            trio.from_thread.run_sync(nursery.start_soon, prune)
            trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
            return image

        monkeypatch.setattr(images._keeper, "image", find_while_pruning)
        with trio.fail_after(PATIENCE_SECONDS):
            image = await images.ready(busybox_reference)
            with images.using(image):
                while not pruned:
                    await trio.testing.wait_all_tasks_blocked()
                    await trio.to_thread.run_sync(image.root.stat)
    assert pruned == [boxlite.Pruned(images=(), bytes=0)]
    assert_holds(home, busybox)


def damages() -> Iterator[Any]:
    """Yield what can become of a file, each for each kind of file."""

    def truncate(path: Path) -> None:
        path.chmod(0o600)
        os.truncate(path, path.stat().st_size // 2)

    def empty(path: Path) -> None:
        path.chmod(0o600)
        path.write_bytes(b"")

    ways: tuple[Callable[[Path], object], ...] = (Path.unlink, truncate, empty)
    for kind in ("manifest", "config", "layer", "root", "name", "everything"):
        for way in ways:
            yield pytest.param(kind, way, id=f"{kind}-{way.__name__}")


@pytest.mark.parametrize(("kind", "way"), list(damages()))
async def test_a_pull_mends_what_was_damaged(
    kind: str,
    way: Callable[[Path], object],
    home: HomeLayout,
    busybox: Layout,
    busybox_reference: str,
    tmp_path: Path,
) -> None:
    """Files that somebody deleted, or that a repair of the file system cut off."""
    images = images_of(home)
    whole = await images.pull(busybox_reference)
    before, there = files(home.images), tree(whole, tmp_path)
    manifest = busybox.manifest()
    [name] = (home.images / "names").iterdir()
    parts = {
        "manifest": [home.images / "blobs" / "sha256" / busybox.digest()[7:]],
        "config": [home.images / "blobs" / "sha256" / manifest["config"]["digest"][7:]],
        "layer": [
            home.images / "blobs" / "sha256" / layer["digest"][7:] for layer in manifest["layers"]
        ],
        "root": [whole.root],
        "name": [name],
    }
    parts["everything"] = [path for paths in parts.values() for path in paths]
    for path in parts[kind]:
        way(path)

    if kind != "layer":
        assert await images.list() == []
        with pytest.raises(boxlite.ImageError):
            await images.get(busybox_reference)
    with trio.fail_after(PATIENCE_SECONDS):
        ready = await images.ready(busybox_reference)
        mended = await images.pull(busybox_reference)
    # A layer is not looked at again once the root is made; to pull is to have it.
    for image in (ready, mended):
        assert attrs.evolve(image, added_at=0.0) == attrs.evolve(whole, added_at=0.0)
    after = files(home.images)
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if not path.startswith("names/"))
    assert differences(tree(mended, tmp_path), there) == []
    assert list(home.tmp.iterdir()) == []


async def test_a_home_is_enough_to_have_an_image_ready(
    home: HomeLayout, busybox_reference: str
) -> None:
    """No registry is asked for what is there."""
    whole = await images_of(home).pull(busybox_reference)
    # Nothing listens there.
    registries = {"mirrors": {busybox_reference.partition("/")[0]: ("127.0.0.1:1",)}}
    assert await images_of(home, **registries).ready(busybox_reference) == whole
    assert await images_of(home).ready(whole.digest) == whole
    with pytest.raises(boxlite.ImageNotFoundError, match="this home has none"):
        await images_of(home).ready(f"sha256:{'0' * 64}")


async def test_what_a_registry_does_not_have_is_not_found(
    home: HomeLayout, registry: Registry
) -> None:
    """And nothing is left of the attempt."""
    images = images_of(home)
    for name in ("test/none:latest", "test/busybox:none", f"test/busybox@sha256:{'0' * 64}"):
        with nothing_left(home), pytest.raises(boxlite.ImageNotFoundError):
            await images.pull(registry.reference(name))
    assert files(home.images) == {}
    with pytest.raises(boxlite.InvalidOptionError):
        await images.pull(registry.reference("test/busybox:latest"), platform="windows//x/y/z")


async def test_a_home_that_cannot_be_written_is_told(
    home: HomeLayout, busybox_reference: str
) -> None:
    """By one error that names it."""
    home.images.rmdir()
    home.images.write_text("a file")
    images = images_of(home)
    for use in (
        images.list,
        images.prune,
        lambda: images.get("alpine"),
        lambda: images.remove("alpine"),
        lambda: images.pull(busybox_reference),
    ):
        with nothing_left(home), pytest.raises(boxlite.HostError, match=str(home.images)):
            await use()


def sources(busybox: Layout, directory: Path) -> dict[str, Path]:
    """Return the image in every form in which it can be loaded."""
    return {
        "layout": busybox.directory,
        "OCI archive": image_builder.oci_archive(busybox, directory / "oci.tar"),
        "Docker archive": image_builder.docker_archive(
            busybox, directory / "docker.tar", "test/busybox:latest"
        ),
    }


@pytest.mark.parametrize("kind", ["layout", "OCI archive", "Docker archive"])
async def test_an_image_is_loaded_from_files(
    kind: str, home: HomeLayout, busybox: Layout, busybox_reference: str, tmp_path: Path
) -> None:
    """It is the one that the registry has."""
    source = sources(busybox, tmp_path)[kind]
    images, events = images_of(home), list[boxlite.PullProgress | boxlite.ConvertProgress]()
    with nothing_left(home), trio.fail_after(PATIENCE_SECONDS):
        [loaded] = await images.load(source, name="mine:1", on_progress=events.append)
    assert loaded.name == "mine:1"
    assert loaded.config.env == tuple(busybox.config()["config"]["Env"])
    assert {each.step for each in events if isinstance(each, boxlite.ConvertProgress)} == {
        "unpack",
        "pack",
    }
    if kind != "Docker archive":
        assert loaded.digest == busybox.digest()
        assert_holds(home, busybox)
    there = tree(loaded, tmp_path)
    pulled = await images.pull(busybox_reference)
    assert pulled.root == loaded.root
    await images.prune(all=True)
    assert_holds(home)

    other = make_home(tmp_path / "other")
    assert differences(tree(await images_of(other).pull(busybox_reference), tmp_path), there) == []


async def test_a_root_file_system_is_loaded(
    home: HomeLayout, busybox: Layout, busybox_reference: str, tmp_path: Path
) -> None:
    """As a tar, with all that is in it, and as a directory."""
    images = images_of(home)
    pulled = await images.pull(busybox_reference)
    archive = tmp_path / "root.tar"
    with archive.open("wb") as file:
        await trio.run_process(
            ["sqfs2tar", "-s", "-r", ".", str(pulled.root)], stdout=file, check=True
        )
    [loaded] = await images.load(archive, name="mine/root")
    assert loaded.name == "mine/root:latest"
    assert loaded.digest != pulled.digest
    assert differences(tree(loaded, tmp_path), tree(pulled, tmp_path)) == []

    directory = tmp_path / "root"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "passwd").write_bytes(noise(100_000))
    [loaded] = await images.load(directory, name="mine/root")
    assert tree(loaded, tmp_path)[b"etc/passwd"].size == 100_000
    with pytest.raises(boxlite.InvalidOptionError, match="name"):
        await images.load(directory)
    with pytest.raises(boxlite.InvalidOptionError, match="source"):
        await images.load(tmp_path / "none", name="mine")
    await images.remove("mine/root")
    # The first of that name has none since the second came.
    await images.prune()
    assert_holds(home, busybox)


async def test_an_image_without_a_name_is_called_by_its_digest(
    home: HomeLayout, busybox: Layout, tmp_path: Path
) -> None:
    """It is listed, found and removed by that."""
    nameless = busybox.derive(tmp_path / "nameless")
    index = json.loads((nameless.directory / "index.json").read_text())
    for entry in index["manifests"]:
        entry.pop("annotations")
    (nameless.directory / "index.json").write_text(json.dumps(index))
    images = images_of(home)
    [loaded] = await images.load(nameless.directory)
    assert loaded.name == busybox.digest()[7:19]
    assert await images.get(loaded.name) == loaded
    await images.remove(loaded.name)
    assert_holds(home)
