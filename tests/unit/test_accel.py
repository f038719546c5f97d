"""KVM or TCG: the right one, with the reason, and asked for only once."""

from __future__ import annotations

import errno
import json
import os
import platform
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from boxlite._errors import HostError
from boxlite._vm import accel, kvm_device, kvm_probe
from boxlite._vm.accel import Accelerator, choose_accelerator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="guests are x86-64")

USABLE = {
    "version": kvm_probe.VERSION,
    "outcome": "usable",
    "detail": "it ran a guest",
    "conclusive": True,
    "steps": [],
}
BROKEN = USABLE | {"outcome": "unusable", "detail": "the guest ended in flames"}


@attrs.frozen
class FakeProbe:
    """A probe that says what it is told, in a real child process, and counts its runs."""

    script: Path
    log: Path

    def says(self, report: object) -> None:
        """Print this report next time."""
        self.does(f"print({json.dumps(report)!r})")

    def does(self, program: str) -> None:
        """Do this next time."""
        count = f"open({str(self.log)!r}, 'a').write('x')"
        self.script.write_text(f"{count}\n{textwrap.dedent(program)}\n")

    @property
    def runs(self) -> int:
        """How often it was run."""
        return len(self.log.read_text())


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of /dev/kvm."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm_device, "DEVICE", device)
    return device


@pytest.fixture
def probe(tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProbe:
    """A probe in place of the real one; it says that KVM works until it is told otherwise."""
    probe = FakeProbe(tmp_path / "probe.py", tmp_path / "probe.log")
    probe.log.touch()
    probe.says(USABLE)
    monkeypatch.setattr(accel, "_PROBE", probe.script)
    return probe


async def test_kvm_is_used_where_a_guest_ran(probe: FakeProbe, tmp_path: Path) -> None:
    """The reason says that it was tried, not that a file exists."""
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert verdict.accelerator is Accelerator.KVM
    assert verdict.kvm_usable
    assert verdict.reason == "KVM is used: it ran a guest here"
    assert verdict.fix is None
    assert verdict.probed_at is not None
    assert verdict == await choose_accelerator("kvm", cache_dir=tmp_path)


async def test_tcg_is_used_where_no_guest_ran(probe: FakeProbe, tmp_path: Path) -> None:
    """A person learns what was seen and what would help."""
    probe.says(BROKEN)
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert verdict.accelerator is Accelerator.TCG
    assert not verdict.kvm_usable
    assert verdict.reason == "KVM is not used: /dev/kvm opens, but the guest ended in flames"
    assert verdict.fix is not None
    assert "nested virtualisation" in verdict.fix


async def test_insisting_on_broken_kvm_is_an_error(probe: FakeProbe, tmp_path: Path) -> None:
    """Asked for by name, it is not quietly replaced by something ten times slower."""
    probe.says(BROKEN)
    with pytest.raises(HostError, match=r"KVM cannot be used: .* in flames") as caught:
        await choose_accelerator("kvm", cache_dir=tmp_path)

    assert caught.value.fix.endswith("Without KVM, use accelerator 'auto' or 'tcg'.")


async def test_asking_for_tcg_asks_nothing_else(probe: FakeProbe, tmp_path: Path) -> None:
    """A user on a host where the probe itself does harm has a way out."""
    verdict = await choose_accelerator("tcg", cache_dir=tmp_path)

    assert verdict.accelerator is Accelerator.TCG
    assert (verdict.fix, verdict.probed_at) == (None, None)
    assert probe.runs == 0


@pytest.mark.parametrize(
    ("number", "said", "fix"),
    [
        (errno.EACCES, "may not open it", "Run `sudo "),
        (errno.EPERM, "may not open it", "Run `sudo "),
        (errno.ENOENT, "there is no ", ""),
        (errno.ENODEV, "there is no ", ""),
        (errno.EMFILE, "Too many open files", ""),
    ],
)
async def test_device_that_cannot_be_opened_is_not_probed(
    probe: FakeProbe,
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    said: str,
    fix: str,
) -> None:
    """And it is not remembered: permissions and modules change while a host runs."""
    real_open = os.open

    def refuse(path: Any, flags: int, *args: Any, **options: Any) -> int:  # noqa: ANN401
        if path == device:
            raise OSError(number, os.strerror(number), str(path))
        return real_open(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert verdict.accelerator is Accelerator.TCG
    assert said in verdict.reason
    assert verdict.fix is not None
    assert verdict.fix.startswith(fix)
    assert probe.runs == 0
    assert (await choose_accelerator("auto", cache_dir=tmp_path)).kvm_usable


@pytest.mark.parametrize(
    ("mode", "group", "fix"),
    [
        (0o660, "kvm", "Run `sudo usermod -aG kvm $USER` and log in again"),
        (0o600, "kvm", "Run `sudo setfacl -m u:$USER:rw "),
        (0o660, "root", "Run `sudo setfacl -m u:$USER:rw "),
    ],
)
def test_fix_for_access_is_one_that_works(
    device: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, fix: str
) -> None:
    """Joining a group helps only where the group may open the device."""
    device.chmod(mode)
    found = device.stat()
    gid = 0 if group == "root" else 104
    monkeypatch.setattr(
        kvm_device,
        "DEVICE",
        SimpleNamespace(stat=lambda: SimpleNamespace(st_mode=found.st_mode, st_gid=gid)),
    )
    monkeypatch.setattr(
        kvm_device, "grp", SimpleNamespace(getgrgid=lambda _: SimpleNamespace(gr_name=group))
    )

    assert kvm_device._access_fix().startswith(fix)


async def test_other_processor_is_not_probed(
    probe: FakeProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM on it runs other guests than ours."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert "this host is linux on aarch64" in verdict.reason
    assert probe.runs == 0


@pytest.mark.parametrize("report", [USABLE, BROKEN])
async def test_verdict_is_remembered(
    probe: FakeProbe, tmp_path: Path, report: dict[str, object]
) -> None:
    """Good or bad, it holds until the next boot."""
    probe.says(report)
    first = await choose_accelerator("auto", cache_dir=tmp_path)
    probe.does("raise SystemExit('asked again')")

    assert await choose_accelerator("auto", cache_dir=tmp_path) == first
    assert probe.runs == 1


def _other_mode(device: Path, _: pytest.MonkeyPatch) -> None:
    device.chmod(0o666)


def _other_kernel(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "99.0")


def _other_user(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)


def _other_probe(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe, "VERSION", 999)


@pytest.mark.parametrize("change", [_other_mode, _other_kernel, _other_user, _other_probe])
async def test_verdict_about_something_else_is_not_used(
    probe: FakeProbe,
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    """A verdict is about one boot, kernel, user, probe and device."""
    await choose_accelerator("auto", cache_dir=tmp_path)
    change(device, monkeypatch)
    probe.says(BROKEN)

    assert not (await choose_accelerator("auto", cache_dir=tmp_path)).kvm_usable
    assert probe.runs == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 60_000,
        lambda text: text.replace('"usable": true', '"usable": 1'),
        lambda text: text.replace('"probed_at"', '"probed"'),
        lambda text: text.replace('"answer"', '"reply"'),
        lambda text: text + " " * 100_000,
        lambda text: "[]",
    ],
)
async def test_damaged_cache_is_replaced(
    probe: FakeProbe, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    """It costs one more probe and nothing else."""
    file = tmp_path / accel.CACHE_NAME
    await choose_accelerator("auto", cache_dir=tmp_path)
    file.write_text(damage(file.read_text()))

    assert (await choose_accelerator("auto", cache_dir=tmp_path)).kvm_usable
    assert probe.runs == 2
    await choose_accelerator("auto", cache_dir=tmp_path)
    assert probe.runs == 2
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


async def test_verdict_needs_no_directory_to_be_kept_in(probe: FakeProbe, tmp_path: Path) -> None:
    """``doctor`` asks before there is a home, and makes none."""
    verdict = await choose_accelerator("auto", cache_dir=tmp_path / "home")

    assert verdict.kvm_usable
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"print({json.dumps(BROKEN | {'conclusive': False})!r})", "ended in flames"),
        ("raise SystemExit('no such module')", "the probe of /dev/kvm failed: no such module"),
        ("print('{')", "the probe of /dev/kvm failed: exit code 0"),
        ("print('[]')", "the probe of /dev/kvm failed: exit code 0"),
        (f"print({json.dumps(USABLE | {'version': -1})!r})", "failed: exit code 0"),
        ("import os; os.abort()", "the probe of /dev/kvm failed: exit code -6"),
    ],
)
async def test_inconclusive_probe_means_tcg_for_now(
    probe: FakeProbe, tmp_path: Path, program: str, said: str
) -> None:
    """What may have been an accident is not held against KVM until the next boot."""
    probe.does(program)
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert verdict.accelerator is Accelerator.TCG
    assert said in verdict.reason
    probe.says(USABLE)
    assert (await choose_accelerator("auto", cache_dir=tmp_path)).kvm_usable


async def test_probe_that_hangs_is_killed(
    probe: FakeProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is TCG, and not for ever."""
    monkeypatch.setattr(accel, "PROBE_SECONDS", 0.1)
    probe.does("import time; time.sleep(1000)")
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert "did not end within 0.1 s" in verdict.reason
    assert not (tmp_path / accel.CACHE_NAME).exists()


async def test_cancelling_leaves_no_process(probe: FakeProbe, tmp_path: Path) -> None:
    """The probe is killed and reaped, and the next call starts afresh."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    probe.does(f"""
        import os, time
        open({str(fifo)!r}, "w").write(str(os.getpid()))
        time.sleep(1000)
    """)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: choose_accelerator("auto", cache_dir=tmp_path))
        pid = int(await trio.Path(fifo).read_text())
        nursery.cancel_scope.cancel()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    probe.says(USABLE)
    with trio.fail_after(30):
        assert (await choose_accelerator("auto", cache_dir=tmp_path)).kvm_usable


def waiting_for_a_turn() -> int:
    """Return how many calls wait until another's probe has ended."""
    try:
        return accel._turns.get().lock.statistics().tasks_waiting
    except LookupError:
        return 0


@pytest.mark.parametrize("conclusive", [True, False])
async def test_calls_at_the_same_time_share_one_probe(
    probe: FakeProbe, tmp_path: Path, conclusive: bool
) -> None:
    """Ten boxes that start together ask once, whether the answer may be kept or not."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    report = json.dumps(BROKEN | {"conclusive": conclusive})
    probe.does(f"open({str(fifo)!r}).read(); print({report!r})")
    verdicts = []

    async def choose() -> None:
        verdicts.append(await choose_accelerator("auto", cache_dir=tmp_path))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(choose)
        # The probe goes on when all ten wait: for it, or for their turn.
        with trio.fail_after(30):
            while waiting_for_a_turn() < 9:
                await trio.lowlevel.checkpoint()
        await trio.Path(fifo).write_text("")

    assert probe.runs == 1
    assert len(verdicts) == 10
    assert len({verdict.reason for verdict in verdicts}) == 1


async def test_this_machine_gets_a_verdict(tmp_path: Path) -> None:
    """The real probe of the real device: whatever it says, the verdict is consistent."""
    verdict = await choose_accelerator("auto", cache_dir=tmp_path)

    assert verdict.kvm_usable == (verdict.accelerator is Accelerator.KVM)
    assert verdict.kvm_usable == (verdict.fix is None)
    if not verdict.kvm_usable:
        with pytest.raises(HostError):
            await choose_accelerator("kvm", cache_dir=tmp_path)
