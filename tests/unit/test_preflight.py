"""The checks before a start: as data for ``doctor``, as an error for a box."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from boxlite import _host, _preflight
from boxlite._errors import HostError, InvalidOptionError
from boxlite._kit import busybox
from boxlite._kit.kernel import Kernel
from boxlite._layout import HomeLayout
from boxlite._preflight import Check, Wanted, preflight, prepare_home, run_checks
from boxlite._vm import kvm_device, qemu
from boxlite._vm.accel import Accelerator

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = [
    *("platform", "/proc", "pidfd", "open files", "home", "disk", "memory"),
    *("busybox", "images", "kernel", "QEMU", "accelerator"),
]
KERNEL = Kernel(Path("/boot/vmlinuz-test"), "test", Path("/lib/modules/test"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HomeLayout:
    """A home on a machine that has everything but KVM."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (qemu.PROGRAM, "busybox", "tar2sqfs", "mke2fs"):
        (programs / name).write_text("#!/bin/sh\necho QEMU emulator version 9.1.2\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv(qemu.VARIABLE, raising=False)
    monkeypatch.setattr(busybox, "_PLACES", (str(programs / "busybox"),))
    monkeypatch.setattr(busybox, "is_static", lambda _: True)
    monkeypatch.setattr(_host, "KIT_DISK_BYTES", 1)
    monkeypatch.setattr(_host, "QEMU_MEMORY_MIB", 0)
    monkeypatch.setattr(kvm_device, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(_preflight, "find_kernel", lambda *_: KERNEL)
    return HomeLayout(tmp_path / "home")


def only(checks: Iterable[Check], name: str) -> Check:
    """Return one check of many."""
    (found,) = (check for check in checks if check.name == name)
    return found


async def test_machine_that_has_everything(home: HomeLayout) -> None:
    """All is well; that there is no KVM is worth a note with its fix."""
    checks = await run_checks(Wanted(home=home, memory_mib=1))

    assert [check.name for check in checks] == NAMES
    assert [check.name for check in checks if not check.ok] == ["accelerator"]
    assert only(checks, "QEMU").found.endswith("qemu-system-x86_64, version 9.1.2")
    assert only(checks, "kernel").found == "/boot/vmlinuz-test"
    note = only(checks, "accelerator")
    assert not note.required
    assert note.found.startswith("tcg: KVM is not used: there is no ")
    assert note.fix is not None
    assert not home.root.exists()


async def test_preflight_returns_what_a_box_runs_with(home: HomeLayout) -> None:
    """The same checks, for their results."""
    prepare_home(home)
    found = await preflight(Wanted(home=home, memory_mib=1))

    assert found.qemu.name == qemu.PROGRAM
    assert found.qemu_version.number == (9, 1, 2)
    assert found.accelerator.accelerator is Accelerator.TCG
    assert found.kernel is KERNEL
    assert (home.root / qemu.CACHE_NAME).exists()


async def test_asking_for_tcg_needs_no_note(home: HomeLayout) -> None:
    """Nobody has to be told that they got what they asked for."""
    check = only(
        await run_checks(Wanted(home=home, accelerator="tcg", memory_mib=1)), "accelerator"
    )

    assert check.ok
    assert check.fix is None


def break_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(_host, "_PROC", tmp_path / "nowhere")
    return {}


def break_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "public").mkdir()
    (tmp_path / "public").chmod(0o777)
    return {"home": HomeLayout(tmp_path / "public")}


def break_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(_host, "KIT_DISK_BYTES", 1 << 60)
    # What is free changes from one look to the next.
    found = os.statvfs(tmp_path)
    monkeypatch.setattr("boxlite._host.os.statvfs", lambda _: found)
    return {}


def break_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    # What is available changes from one look to the next.
    monkeypatch.setattr(_host, "_available_mib", lambda: 100)
    return {"memory_mib": 1 << 40}


def break_busybox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(busybox, "is_static", lambda _: False)
    return {}


def break_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(_preflight, "find_kernel", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return {}


def break_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "bin" / qemu.PROGRAM).write_text("#!/bin/sh\necho QEMU emulator version 2.5\n")
    return {}


def break_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return {"accelerator": "kvm"}


@pytest.mark.parametrize(
    ("breaking", "name"),
    [
        (break_proc, "/proc"),
        (break_home, "home"),
        (break_disk, "disk"),
        (break_memory, "memory"),
        (break_busybox, "busybox"),
        (break_kernel, "kernel"),
        (break_qemu, "QEMU"),
        (break_accelerator, "accelerator"),
    ],
)
async def test_each_lack_is_data_for_doctor_and_an_error_for_a_box(
    home: HomeLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaking: Any,  # noqa: ANN401
    name: str,
) -> None:
    """Both tell the same; and one lack hides no other check."""
    options = {"home": home, "memory_mib": 1} | breaking(monkeypatch, tmp_path)
    checks = await run_checks(Wanted(**options))
    with pytest.raises(HostError) as caught:
        await preflight(Wanted(**options))

    assert [check.name for check in checks] == NAMES
    assert [check.name for check in checks if check.required and not check.ok] == [name]
    assert (only(checks, name).found, only(checks, name).fix) == (
        caught.value.problem,
        caught.value.fix,
    )


async def test_what_images_need_is_a_note(
    home: HomeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in image does without."""

    def missing() -> str:
        raise HostError("there is no tar2sqfs", fix="Install it.")

    monkeypatch.setattr(_preflight, "find_tar2sqfs", missing)
    prepare_home(home)
    check = only(await run_checks(Wanted(home=home, memory_mib=1)), "images")

    assert (check.ok, check.required) == (False, False)
    assert (check.found, check.fix) == ("there is no tar2sqfs", "Install it.")
    await preflight(Wanted(home=home, memory_mib=1))


async def test_bad_option_stays_the_chooser_s_error(home: HomeLayout) -> None:
    """A wrong path is not a lack of the machine."""
    wrong = Path("/nowhere/qemu")
    check = only(await run_checks(Wanted(home=home, qemu=wrong, memory_mib=1)), "QEMU")
    with pytest.raises(InvalidOptionError) as caught:
        await preflight(Wanted(home=home, qemu=wrong, memory_mib=1))

    assert (check.ok, check.required, check.found) == (False, True, str(caught.value))


async def test_kernel_that_can_be_fetched_is_no_lack(
    home: HomeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first start downloads it."""
    monkeypatch.setattr(_preflight, "find_kernel", lambda *_: None)
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    found = await preflight(Wanted(home=home, memory_mib=1))

    assert found.kernel is None
    assert only(await run_checks(Wanted(home=home, memory_mib=1)), "kernel").ok
