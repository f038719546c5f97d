"""KVM or software emulation: which of the two a box gets, and why.

``/dev/kvm`` can exist, open and create VMs on a host where no stock guest runs.
So KVM is used only after a guest has run: :mod:`boxlite._vm.kvm_probe`, in a
child process, bounded in time, its verdict kept until the next boot.
"""

from __future__ import annotations

import enum
import json
import os
import sys
import time
from pathlib import Path
from typing import Final, Literal

import attrs
import trio

from boxlite._errors import HostError
from boxlite._program import ask

from . import kvm_probe
from .kvm_device import DEVICE, NoDevice, examine_device, missing_fix, unusable_fix
from .memo import recall, remember

#: The probe limits itself to 2 s in the guest; this is for one that cannot.
PROBE_SECONDS: Final = 4.0
#: The name of the file that keeps the verdict.
CACHE_NAME: Final = "kvm-verdict.json"

_PROBE = Path(kvm_probe.__file__)
_WITHOUT_KVM: Final = "Without KVM, use accelerator 'auto' or 'tcg'."


class Accelerator(enum.Enum):
    """What executes the guest's code; the value is QEMU's name for it."""

    #: The processor itself.
    KVM = "kvm"
    #: QEMU, which translates it.
    TCG = "tcg"


@attrs.frozen(kw_only=True)
class AccelVerdict:
    """The accelerator that boxes get.

    Args:
        accelerator: Which.
        kvm_usable: A guest has run under KVM, at this boot.
        reason: Why KVM is or is not used: one sentence, without a full stop.
        fix: What would make KVM usable; None if it is, or was not wanted.
        probed_at: When the guest of the probe ran, in Unix seconds; None if
            there was no need to try or no way to.
    """

    accelerator: Accelerator
    kvm_usable: bool
    reason: str
    fix: str | None = None
    probed_at: float | None = None


@attrs.frozen(kw_only=True)
class _Finding:
    """What is known of KVM here.

    Args:
        usable: A guest ran.
        detail: A sentence without a full stop.
        fix: What would help.
        conclusive: It holds until the next boot.
        probed_at: When the probe ended.
    """

    usable: bool
    detail: str
    fix: str | None = None
    conclusive: bool = False
    probed_at: float | None = None


async def choose_accelerator(
    requested: Literal["auto", "kvm", "tcg"], *, cache_dir: Path
) -> AccelVerdict:
    """Decide which accelerator boxes get on this host.

    The first call of a boot runs a small guest, for up to 4 s on a host where
    KVM is broken; later calls take about a millisecond. Calls at the same time share
    one probe. Cancelling kills and reaps it. Nothing here blocks the event loop.

    Args:
        requested: ``"auto"`` takes KVM if guests run under it, else TCG.
            ``"kvm"`` insists. ``"tcg"`` asks nothing.
        cache_dir: Where the verdict is kept. It need not exist; then nothing is.

    Raises:
        HostError: KVM was insisted on and cannot be used; says why and what
            helps. Or ``/proc`` is not mounted.
    """
    if requested == "tcg":
        await trio.lowlevel.checkpoint()
        reason = "software emulation (TCG) was asked for; KVM was not tried"
        return AccelVerdict(accelerator=Accelerator.TCG, kvm_usable=False, reason=reason)
    finding = await _find_out(cache_dir / CACHE_NAME)
    if requested == "kvm" and not finding.usable:
        raise HostError(
            f"KVM cannot be used: {finding.detail}", fix=f"{finding.fix}. {_WITHOUT_KVM}"
        )
    return AccelVerdict(
        accelerator=Accelerator.KVM if finding.usable else Accelerator.TCG,
        kvm_usable=finding.usable,
        reason=f"KVM is {'' if finding.usable else 'not '}used: {finding.detail}",
        fix=finding.fix,
        probed_at=finding.probed_at,
    )


async def _find_out(cache: Path) -> _Finding:
    device = await trio.to_thread.run_sync(examine_device)
    if isinstance(device, NoDevice):
        return _Finding(usable=False, detail=device.detail, fix=device.fix)
    kept = await trio.to_thread.run_sync(recall, cache, device)
    if (finding := _finding_from(kept)) is not None:
        return finding
    finding = await _probe_in_turn()
    if finding.conclusive:
        await trio.to_thread.run_sync(remember, cache, device, attrs.asdict(finding))
    return finding


def _finding_from(kept: object) -> _Finding | None:
    """Return a finding that was kept, or None if it is damaged."""
    match kept:
        case {
            "usable": bool(usable),
            "detail": str(detail),
            "fix": str() | None as fix,
            "conclusive": True,
            "probed_at": float(probed_at),
        }:
            return _Finding(
                usable=usable, detail=detail, fix=fix, conclusive=True, probed_at=probed_at
            )
    return None


@attrs.define
class _Turns:
    """Who probes, in one run of Trio.

    Args:
        lock: Held while probing.
        done: How many probes have ended.
        last: What the last one found.
    """

    lock: trio.Lock = attrs.field(factory=trio.Lock)
    done: int = 0
    last: _Finding | None = None


_turns: Final[trio.lowlevel.RunVar[_Turns]] = trio.lowlevel.RunVar("boxlite KVM probe")


async def _probe_in_turn() -> _Finding:
    """Probe, or share the result of a probe that ended while this call waited for its turn."""
    try:
        turns = _turns.get()
    except LookupError:
        turns = _Turns()
        _turns.set(turns)
    done = turns.done
    async with turns.lock:
        if turns.last is None or turns.done == done:
            turns.last = await _probe()
            turns.done += 1
        return turns.last


async def _probe() -> _Finding:
    try:
        answer = await ask([sys.executable, "-I", "-S", os.fspath(_PROBE)], seconds=PROBE_SECONDS)
    except OSError as error:
        return _Finding(
            usable=False,
            detail=f"the probe cannot be run with {sys.executable!r}: {error.strerror}",
            fix="Set sys.executable to a Python interpreter",
        )
    if answer.exit_code is None:
        detail = f"{DEVICE} opens, but running a guest did not end within {PROBE_SECONDS:g} s"
        return _Finding(usable=False, detail=detail, fix=unusable_fix(), probed_at=time.time())
    try:
        report = json.loads(answer.stdout)
    except ValueError:
        report = None
    return _judged(report, answer.last_words or f"exit code {answer.exit_code}")


def _judged(report: object, last_words: str) -> _Finding:
    """Say what a probe's report means."""
    now = time.time()
    match report:
        case {"outcome": "usable", "detail": str(detail), "version": kvm_probe.VERSION}:
            return _Finding(usable=True, detail=f"{detail} here", conclusive=True, probed_at=now)
        case {"outcome": "unusable", "detail": str(detail), "conclusive": bool(conclusive)}:
            return _Finding(
                usable=False,
                detail=f"{DEVICE} opens, but {detail}",
                fix=unusable_fix(),
                conclusive=conclusive,
                probed_at=now,
            )
        case {"outcome": "unavailable", "detail": str(detail)}:
            return _Finding(usable=False, detail=f"{DEVICE} {detail}", fix=missing_fix())
    return _Finding(
        usable=False,
        detail=f"the probe of {DEVICE} failed: {last_words}",
        fix="Please report this",
        probed_at=now,
    )
