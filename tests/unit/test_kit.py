"""The guest kit: which kernel, which modules, which root, and how it is cached."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from boxlite import HostError, InvalidOptionError
from boxlite._kit import Kernel, busybox, find_kernel, prepare_kit
from boxlite._kit.cpio import CpioWriter, read_cpio
from boxlite._kit.download import KEPT_MODULES, META_PACKAGES, SHARING_META_PACKAGES
from boxlite._kit.initramfs import _MODULES, AGENT_MODULES, MODULES_DIRECTORY, Recipe, Tree
from boxlite._kit.kernel import kernels_directory, read_release
from boxlite._kit.kit import ARCHIVES_KEPT
from boxlite._kit.kmod import index_modules, load_order
from boxlite._kit.sharing import can_share, sharing_kernel
from boxlite._layout import HomeLayout
from boxlite.guest import modules as guest_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@pytest.fixture
def home(tmp_path: Path) -> HomeLayout:
    """A home with its directories."""
    home = HomeLayout(tmp_path / "home")
    for directory in (home.root, home.kit, home.tmp):
        directory.mkdir()
    return home


@pytest.fixture(autouse=True)
def no_system_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine has in /boot is not these tests' business."""
    monkeypatch.delenv("BOXLITE_KERNEL", raising=False)
    monkeypatch.setattr("boxlite._kit.kernel._SYSTEM_BOOT", tmp_path / "no-boot")
    monkeypatch.setattr("boxlite._kit.kernel._SYSTEM_MODULES", tmp_path / "no-modules")


def bzimage(release: str) -> bytes:
    """Return what of a bzImage says its release."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    text = f"{release} (builder@host) #1 SMP".encode() + b"\0"
    image[0x500 : 0x500 + len(text)] = text
    return bytes(image)


def module(*depends: str) -> bytes:
    """Return what of a module says its dependencies."""
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def install_kernel(root: Path, release: str) -> Path:
    """Lay a kernel and its modules out as a package does; return the image."""
    modules = root / "lib" / "modules" / release / "kernel"
    modules.mkdir(parents=True)
    (modules / "virtio.ko").write_bytes(module())
    (modules / "virtio_ring.ko").write_bytes(module())
    (modules / "virtio-pci.ko.xz").write_bytes(lzma.compress(module("virtio", "virtio_ring")))
    (modules / "virtio_console.ko").write_bytes(module("virtio_ring", "virtio"))
    image = root / "boot" / f"vmlinuz-{release}"
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(bzimage(release))
    return image


def test_a_release_is_read_off_the_image(tmp_path: Path) -> None:
    """Something else has none."""
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage("6.1.0-56-cloud-amd64"))
    assert read_release(image) == "6.1.0-56-cloud-amd64"
    image.write_bytes(b"\0" * 100)
    assert read_release(image) is None


def test_the_kernel_that_the_user_names_is_used(
    home: HomeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By option, else by variable; its modules are found beside it."""
    first = install_kernel(tmp_path / "first", "6.1.0-1")
    second = install_kernel(tmp_path / "second", "6.1.0-2")
    monkeypatch.setenv("BOXLITE_KERNEL", str(second))

    assert find_kernel(first, home) == Kernel(
        first, "6.1.0-1", tmp_path / "first" / "lib" / "modules" / "6.1.0-1"
    )
    found = find_kernel(None, home)
    assert found is not None
    assert found.release == "6.1.0-2"


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_named_kernel_that_cannot_be_used_says_why(
    home: HomeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    """Missing, not a kernel, without modules, unreadable: never a fall-back in silence."""

    def refusal(image: Path) -> str:
        if by_variable:
            monkeypatch.setenv("BOXLITE_KERNEL", str(image))
        with pytest.raises(InvalidOptionError) as caught:
            find_kernel(None if by_variable else image, home)
        assert caught.value.field == ("BOXLITE_KERNEL" if by_variable else "kernel")
        return str(caught.value)

    install_kernel(tmp_path, "6.1.0-9")
    image = tmp_path / "vmlinuz"
    assert "No such file" in refusal(image)
    assert "Is a directory" in refusal(tmp_path)
    image.write_bytes(b"#!/bin/sh\n")
    assert "this file is none" in refusal(image)
    image.write_bytes(bzimage("6.1.0-3"))
    assert "lib/modules/6.1.0-3" in refusal(image)


def test_the_newest_downloaded_kernel_is_used(home: HomeLayout) -> None:
    """Newest by number, not by letter; half a kernel does not count."""
    for release in ("6.1.0-9", "6.1.0-56"):
        install_kernel(kernels_directory(home) / release, release)
    (kernels_directory(home) / "6.1.0-99" / "boot").mkdir(parents=True)
    (kernels_directory(home) / "6.1.0-99" / "boot" / "vmlinuz-6.1.0-99").write_bytes(b"half")

    found = find_kernel(None, home)

    assert found is not None
    assert found.release == "6.1.0-56"
    assert found.modules.is_dir()


def test_without_any_kernel_there_is_none(home: HomeLayout) -> None:
    """Then one has to be downloaded."""
    assert find_kernel(None, home) is None


def test_modules_load_after_what_they_depend_on(tmp_path: Path) -> None:
    """Compressed ones too; one that is built in is passed over; a cycle ends."""
    for name, depends in {"a": ("b-c", "d"), "b_c": ("d",), "d": ("a",)}.items():
        (tmp_path / f"{name}.ko").write_bytes(module(*depends))
    (tmp_path / "e.ko.xz").write_bytes(lzma.compress(module("a", "built_in")))

    order = load_order(["e", "missing"], index_modules(tmp_path))

    assert list(order) == ["d", "b_c", "a", "e"]
    assert order["e"] == module("a", "built_in")


def test_a_kernel_that_lacks_what_the_agent_needs_is_refused(tmp_path: Path) -> None:
    """Before a guest waits in silence for ports it cannot see; built in is as good."""
    install_kernel(tmp_path, "6.1.0-1")
    modules = tmp_path / "lib" / "modules" / "6.1.0-1"
    (modules / "kernel" / "virtio_console.ko").unlink()
    Recipe.find(modules)  # there is no list of what is built in, so nothing is known

    builtin = modules / "modules.builtin"
    builtin.write_text("kernel/fs/ext4/ext4.ko\n")
    with pytest.raises(HostError, match=r"6\.1\.0-1 lacks virtio_console"):
        Recipe.find(modules)
    builtin.write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/char/virtio-console.ko\n")
    assert set(Recipe.find(modules).index) == {"virtio", "virtio_ring", "virtio_pci"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, bytes]]:
    """A whole initramfs of this interpreter, built once."""
    root = tmp_path_factory.mktemp("kernel")
    install_kernel(root, "6.1.0-1")
    out = io.BytesIO()
    Recipe.find(root / "lib" / "modules" / "6.1.0-1").build(out)
    return {name: (mode, data) for name, mode, data in read_cpio(out.getvalue())}


def test_the_root_has_what_a_guest_needs(archive: dict[str, tuple[int, bytes]]) -> None:
    """An init, an interpreter with its loader, a shell, the agent and its modules in order."""
    library = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    agent = "usr/lib/boxlite"
    assert archive["init"][0] & 0o111
    assert archive["usr/bin/python3"][1].startswith(b"\x7fELF")
    assert archive["bin/sh"][1] == b"/bin/busybox"
    assert {f"{library}/os.pyc", f"{library}/json/__init__.pyc"} <= set(archive)
    assert archive[f"{agent}/boxlite/__init__.py"][1] == b""
    assert {f"{agent}/boxlite/guest/__main__.pyc", f"{agent}/grpclib/server.pyc"} <= set(archive)
    assert any(name.startswith(f"{agent}/betterproto2-") for name in archive)
    order = archive[f"{agent}/modules/boot.order"][1].decode().split()
    assert order == ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_console.ko"]
    assert set(AGENT_MODULES) <= {name.removesuffix(".ko") for name in order}


def test_modules_come_in_the_groups_in_which_they_are_loaded(tmp_path: Path) -> None:
    """Each once, after what it depends on; nothing that boots is tried again; some are built in."""
    depends = {
        "virtio": (),
        "virtio_ring": (),
        "virtio_pci": ("virtio", "virtio_ring"),
        "virtio_console": ("virtio_ring", "virtio"),
        "squashfs": (),
        "jbd2": (),
        "ext4": ("jbd2", "mbcache"),
        "crc32c_generic": (),
        "virtio_blk": ("virtio_ring", "virtio"),
        "fscache": ("netfs",),
        "netfs": (),
        "9pnet": ("fscache",),
        "9pnet_virtio": ("9pnet", "virtio_ring"),
        "9p": ("9pnet", "netfs", "fscache"),
        "unwanted": (),
    }
    for name, names in depends.items():
        (tmp_path / f"{name}.ko").write_bytes(module(*names))
    out = io.BytesIO()
    tree = Tree(CpioWriter(out))
    Recipe(tmp_path, index_modules(tmp_path), Path("busybox"))._add_modules(tree)
    tree.writer.finish()
    packed = [(name, data) for name, _, data in read_cpio(out.getvalue())]
    prefix = f"{MODULES_DIRECTORY[1:]}/"
    files = {name.removeprefix(prefix): data for name, data in packed if name.startswith(prefix)}
    groups = {
        name: files.pop(f"{name}.order").decode().replace(".ko", "").split()
        for name in (guest_modules.BOOT, guest_modules.DISKS, guest_modules.VOLUMES)
    }

    assert groups == {
        "boot": [
            *("virtio", "virtio_ring", "virtio_pci", "virtio_console"),
            *("squashfs", "crc32c_generic", "jbd2", "ext4"),
        ],
        "disks": ["virtio_blk"],
        "volumes": ["netfs", "fscache", "9pnet", "9pnet_virtio", "9p"],
    }
    assert files == {
        f"{name}.ko": module(*depends[name]) for names in groups.values() for name in names
    }
    assert len(packed) == len(dict(packed)), "a path is there twice"
    assert f"/{prefix}" == f"{guest_modules.MODULES_DIRECTORY}/"


def sharing(root: Path, release: str, *, shares: bool = True, builtin: str = "") -> Kernel:
    """Lay out a kernel with or without 9P, as a module or built in."""
    image = install_kernel(root, release)
    modules = root / "lib" / "modules" / release
    for name in ("9p", "9pnet_virtio") if shares else ():
        (modules / "kernel" / f"{name}.ko").write_bytes(module())
    (modules / "modules.builtin").write_text(builtin)
    return Kernel(image, release, modules)


@pytest.mark.parametrize(
    ("shares", "builtin", "can"),
    [
        (True, "", True),
        (False, "", False),
        (False, "kernel/fs/9p/9p.ko\nkernel/net/9p/9pnet_virtio.ko\n", True),
        (False, "kernel/fs/9p/9p.ko\n", False),
    ],
)
def test_a_kernel_shares_with_9p_and_its_transport(
    tmp_path: Path, shares: bool, builtin: str, can: bool
) -> None:
    """As modules or built in, and both of them."""
    assert can_share(sharing(tmp_path, "6.1.0-1", shares=shares, builtin=builtin)) is can


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[str]]:
    """Downloads make a kernel with 9P at once; of which packages is noted."""
    asked: list[Sequence[str]] = []

    async def download(home: HomeLayout, metas: Sequence[str]) -> Kernel:
        await trio.lowlevel.checkpoint()
        asked.append(metas)
        return sharing(kernels_directory(home) / "6.1.0-5", "6.1.0-5")

    monkeypatch.setattr("boxlite._kit.download._download", download)
    return asked


async def test_the_ordinary_kernel_is_used_for_volumes_if_it_can_be(
    home: HomeLayout, tmp_path: Path, fetched: list[Sequence[str]]
) -> None:
    """Nothing is downloaded then."""
    ordinary = sharing(tmp_path / "k", "6.1.0-1")

    assert await sharing_kernel(ordinary, None, home) == ordinary
    assert await sharing_kernel(ordinary, ordinary.image, home) == ordinary
    assert fetched == []


async def test_one_is_downloaded_once_beside_those_that_do_not_share(
    home: HomeLayout, tmp_path: Path, fetched: list[Sequence[str]]
) -> None:
    """A newer one of the home that cannot share does not do, and is left alone."""
    ordinary = sharing(kernels_directory(home) / "6.1.0-9", "6.1.0-9", shares=False)
    first = await sharing_kernel(ordinary, None, home)

    assert first.release == "6.1.0-5"
    assert fetched == [SHARING_META_PACKAGES]
    assert await sharing_kernel(ordinary, None, home) == first
    assert await sharing_kernel(None, None, home) == first
    assert len(fetched) == 1
    assert find_kernel(None, home) == ordinary


@pytest.mark.parametrize("by_variable", [False, True])
async def test_a_named_kernel_that_cannot_share_is_not_passed_over(
    home: HomeLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetched: list[Sequence[str]],
    by_variable: bool,
) -> None:
    """Somebody wanted that one, and is told why it will not do."""
    named = sharing(tmp_path / "k", "6.1.0-1", shares=False)
    if by_variable:
        monkeypatch.setenv("BOXLITE_KERNEL", str(named.image))
    with pytest.raises(HostError, match=f"{named.image} cannot have volumes") as caught:
        await sharing_kernel(named, None if by_variable else named.image, home)

    assert "9pnet_virtio" in caught.value.fix
    assert fetched == []


def test_what_a_kernel_is_downloaded_for_is_kept_of_it() -> None:
    """A package has thousands of modules, and most of them go."""
    assert set(_MODULES) <= set(KEPT_MODULES)
    assert set(SHARING_META_PACKAGES) < set(META_PACKAGES)
    assert not any("cloud" in package for package in SHARING_META_PACKAGES)


def test_the_root_has_nothing_of_the_host_that_it_need_not_have(
    archive: dict[str, tuple[int, bytes]],
) -> None:
    """No sources of the library, no test suites, no TLS, no path of this machine in the code."""
    names = set(archive)
    assert not any("/test/" in name or "/__pycache__/" in name for name in names)
    assert not any("libssl" in name or "/tkinter/" in name for name in names)
    assert not any(name.endswith(".py") for name in names - {"usr/lib/boxlite/boxlite/__init__.py"})
    ours = Path(os.__file__).parent
    theirs = f"/usr/lib/{ours.name}"
    code = archive[f"{theirs[1:]}/os.pyc"][1]
    assert os.fsencode(f"{theirs}/os.py") in code
    # Debian's own interpreter lies where the guest's does.
    assert str(ours) == theirs or os.fsencode(ours) not in code


def test_every_entry_comes_after_its_directory(archive: dict[str, tuple[int, bytes]]) -> None:
    """The kernel makes no directory by itself."""
    seen = {"."}
    for name in archive:
        assert str(Path(name).parent) in seen, name
        seen.add(name)


def test_the_same_inputs_make_the_same_archive_and_key(tmp_path: Path) -> None:
    """So that the cache can be trusted, and a template that is made from it."""
    install_kernel(tmp_path, "6.1.0-1")
    recipe = Recipe.find(tmp_path / "lib" / "modules" / "6.1.0-1")
    first, second = io.BytesIO(), io.BytesIO()
    recipe.build(first)
    recipe.build(second)

    assert first.getvalue() == second.getvalue()
    key = recipe.key()
    assert recipe.key() == key
    (recipe.modules / "kernel" / "virtio_console.ko").write_bytes(module("virtio") + b"new")
    assert recipe.key() != key


def elf(*kinds: int) -> bytes:
    """Return a 64-bit ELF header with program headers of these types."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, len(kinds))
    return bytes(header) + b"".join(struct.pack("<I52x", kind) for kind in kinds)


def test_busybox_must_be_static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dynamic one is passed over, and named if there is no other."""
    dynamic, static = tmp_path / "dynamic", tmp_path / "bin" / "busybox"
    monkeypatch.setattr(busybox, "_PLACES", (str(tmp_path / "none"), str(dynamic)))
    monkeypatch.setenv("PATH", str(static.parent))
    with pytest.raises(HostError, match="busybox is not installed") as caught:
        busybox.find_busybox()
    assert "busybox-static" in caught.value.fix

    dynamic.write_bytes(elf(6, 3, 1))
    with pytest.raises(HostError, match=f"{dynamic} needs shared libraries"):
        busybox.find_busybox()

    static.parent.mkdir()
    static.write_bytes(elf(1, 1))
    static.chmod(0o755)
    assert busybox.find_busybox() == static


@given(st.binary(max_size=200))
def test_any_file_is_static_or_dynamic_or_no_program(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Looking at a file never fails."""
    path = tmp_path_factory.getbasetemp() / "program"
    for octets in (content, elf(1)[:20] + content, elf(1)[:64] + content):
        path.write_bytes(octets)
        assert busybox.is_static(path) in {None, True, False}


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_real_programs_are_told_apart() -> None:
    """The shell needs its libraries, a static busybox does not."""
    assert busybox.is_static(Path("/bin/sh").resolve()) is False
    assert busybox.is_static(Path(str(shutil.which("busybox")))) is not None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Builds take no time in these tests; the commands that would run are noted."""
    commands: list[list[str]] = []

    async def run_program(command: list[str], **_options: object) -> None:
        commands.append(command)
        await trio.sleep(1)
        Path(command[-1]).write_bytes(b"archive")

    monkeypatch.setattr("boxlite._kit.kit.run_program", run_program)
    return commands


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel that nothing boots."""
    image = install_kernel(tmp_path / "k", "6.1.0-1")
    return Kernel(image, "6.1.0-1", tmp_path / "k" / "lib" / "modules" / "6.1.0-1")


async def test_callers_share_one_build_and_later_ones_its_result(
    home: HomeLayout, kernel: Kernel, built: list[list[str]]
) -> None:
    """However many ask at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(prepare_kit, home, kernel)
    again = await prepare_kit(home, kernel)

    assert len(built) == 1
    assert again.initramfs.read_bytes() == b"archive"
    assert list(home.tmp.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "gone", "no size"])
async def test_a_damaged_archive_is_built_again(
    home: HomeLayout, kernel: Kernel, built: list[list[str]], damage: str
) -> None:
    """A power cut or a full disk must not leave a box that cannot boot."""
    path = (await prepare_kit(home, kernel)).initramfs
    harm: dict[str, Callable[[], object]] = {
        "cut": lambda: path.write_bytes(b"arch"),
        "gone": path.unlink,
        "no size": path.with_suffix(".size").unlink,
    }
    harm[damage]()

    assert (await prepare_kit(home, kernel)).initramfs.read_bytes() == b"archive"
    assert len(built) == 2


async def test_old_archives_make_room_for_a_new_one(
    home: HomeLayout, kernel: Kernel, built: list[list[str]]
) -> None:
    """A home does not grow by 30 MB with every upgrade."""
    for number in range(ARCHIVES_KEPT + 2):
        old = home.kit / f"initramfs-{number}.cpio"
        old.write_bytes(b"old")
        old.with_suffix(".size").write_text("3")
        os.utime(old, (number, number))

    new = (await prepare_kit(home, kernel)).initramfs

    kept = {f"initramfs-{number}.cpio" for number in range(3, ARCHIVES_KEPT + 2)}
    assert {path.name for path in home.kit.glob("*.cpio")} == {*kept, new.name}
    assert len(list(home.kit.glob("*.size"))) == ARCHIVES_KEPT


async def test_cancelling_a_build_leaves_nothing(home: HomeLayout, kernel: Kernel) -> None:
    """The child is killed, and no half-made file is published or kept."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prepare_kit, home, kernel)
            with trio.fail_after(30):
                while not any(home.tmp.iterdir()):
                    await trio.lowlevel.checkpoint()
            scope.cancel()

    assert list(home.tmp.iterdir()) == []
    assert not list(home.kit.glob("initramfs*"))
    children = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "boxlite._kit.build"], stdout=subprocess.PIPE
    )
    assert children.stdout == b""


async def test_a_build_that_fails_says_what_the_builder_said(
    home: HomeLayout, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one error, with nothing left behind."""
    (kernel.modules / "kernel" / "virtio_console.ko.zst").write_bytes(b"compressed")
    (kernel.modules / "kernel" / "virtio_console.ko").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="no zstd program.*apt-get install zstd"):
        await prepare_kit(home, kernel)

    assert list(home.tmp.iterdir()) == []


async def test_a_home_that_cannot_be_written_is_named(home: HomeLayout, kernel: Kernel) -> None:
    """A full disk looks the same."""
    home.tmp.rmdir()
    with pytest.raises(HostError, match=f"{home.root}: No such file"):
        await prepare_kit(home, kernel)


async def test_the_builder_imports_from_where_the_caller_imports(
    home: HomeLayout, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The key was made of the caller's packages: no other copy of them may be packed."""
    place, seen = tmp_path / "packages", tmp_path / "seen"
    place.mkdir()
    (place / "sitecustomize.py").write_text(f"open({str(seen)!r}, 'a').write('once ')")
    monkeypatch.syspath_prepend(place)

    await prepare_kit(home, kernel)

    assert seen.read_text() == "once "
