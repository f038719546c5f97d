"""An image from a registry to a root file system, beside skopeo and umoci, which do it in C and Go.

Both pull the same image, of Debian with a compiler, from a registry on this machine, and
begin with nothing: skopeo copies to an OCI layout and umoci unpacks that into a directory,
boxlite downloads and writes a root disk, in a process of its own.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .harness import Series

_PACKAGES: Final = ("adduser", "python3", "perl", "gcc", "libc6-dev")
_NAME: Final = "test/big:latest"
_STARTED: Final = "test/debian:bookworm"
_READY_SECONDS: Final = 120.0
#: How often the memory of a tree of processes is read.
_SAMPLE_MILLISECONDS: Final = 20
_PULL: Final = """
import sys
from pathlib import Path
from time import perf_counter
import trio
import boxlite

async def main(reference, home):
    async with boxlite.open_runtime(home=Path(home)) as runtime:
        began = perf_counter()
        await runtime.images.pull(reference)
        print(perf_counter() - began)

trio.run(main, *sys.argv[1:])
"""


@attrs.frozen(kw_only=True)
class _Cost:
    """What a program took.

    Args:
        seconds: From its start to its end.
        processor: Seconds of processor time, those of its children included.
        pss: The most that all of its processes had in memory at once, in bytes, pages that
            are shared divided among those that share them. 0 if it was not sampled.
        largest: The most that any one of them had, in bytes, as the kernel keeps count of it
            (proc(5), VmHWM): pages that are shared count in full. That of getrusage(2) would
            count what this process had when it forked. 0 if it was not sampled.
        output: What it wrote to standard output.
    """

    seconds: float
    processor: float
    pss: int
    largest: int
    output: str


async def pull(rounds: int) -> Series:
    """Measure how long it takes, in seconds."""
    series: Series = {
        "skopeo copy, umoci unpack (baseline)": [],
        "of that skopeo copy": [],
        "of that umoci unpack": [],
        "of that processor time": [],
        "boxlite, from its program's start to its end": [],
        "of that pull()": [],
        "of that its processor time": [],
    }
    both, copy, unpack, used, ours, pulling, our_use = series.values()
    with _registry() as reference:
        for _ in range(rounds):
            copied, unpacked = await _baseline(reference, sample=False)
            both.append(copied.seconds + unpacked.seconds)
            copy.append(copied.seconds)
            unpack.append(unpacked.seconds)
            used.append(copied.processor + unpacked.processor)
            cost = await _boxlite(reference, sample=False)
            ours.append(cost.seconds)
            pulling.append(float(cost.output))
            our_use.append(cost.processor)
    return series


async def memory(rounds: int) -> Series:
    """Measure the most memory that it takes at any moment, in bytes."""
    series: Series = {
        "skopeo copy or umoci unpack, all processes (baseline)": [],
        "of that skopeo copy": [],
        "of that umoci unpack": [],
        "skopeo or umoci, its largest process, VmHWM": [],
        "boxlite, all processes": [],
        "boxlite, its largest process, VmHWM": [],
    }
    both, copy, unpack, largest, ours, our_largest = series.values()
    with _registry() as reference:
        for _ in range(rounds):
            copied, unpacked = await _baseline(reference, sample=True)
            both.append(max(copied.pss, unpacked.pss))
            copy.append(copied.pss)
            unpack.append(unpacked.pss)
            largest.append(max(copied.largest, unpacked.largest))
            cost = await _boxlite(reference, sample=True)
            ours.append(cost.pss)
            our_largest.append(cost.largest)
    return series


async def starts(rounds: int) -> Series:
    """Measure how long a box of an image takes, which the home has, beside a built-in one."""
    series: Series = {
        "template start of the built-in image (baseline)": [],
        "box of an image": [],
        "its first box: the image's template is made": [],
        "the same without templates of images": [],
    }
    builtin, image, first, plain = series.values()
    _find_builders()
    from image_builder import debian  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        async with boxlite.open_runtime(home=Path(name)) as runtime:
            await runtime.images.load(debian().directory, name=_STARTED)
            await _start(runtime)  # Imports, and the template of the machine.
            first.append(await _start(runtime, image=_STARTED))
            async with runtime.open_box(image=_STARTED, keep=True) as kept:
                pass
            for _ in range(rounds):
                builtin.append(await _start(runtime))
                image.append(await _start(runtime, image=_STARTED))
                began = perf_counter()
                # One with a disk of its own is mounted anew, as every box would be.
                async with runtime.reopen_box(kept.id):
                    plain.append(perf_counter() - began)
    return series


async def _start(runtime: boxlite.Runtime, image: str = "builtin") -> float:
    began = perf_counter()
    async with runtime.open_box(image=image, ready_timeout=_READY_SECONDS):
        return perf_counter() - began


def _find_builders() -> None:
    """Make importable what builds images for the tests, which are no package."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))


@contextmanager
def _registry() -> Iterator[str]:
    """Run a registry that has the image, and yield what the image is called."""
    _find_builders()
    from image_builder import PATH, bootstrap_debian  # noqa: PLC0415
    from image_layout import Layout  # noqa: PLC0415
    from image_registry import open_registry  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        layout = Layout.create(Path(name) / "big")
        layout.add_layer(bootstrap_debian(_PACKAGES, "debian-big"))
        layout.configure(env=[PATH], cmd=["bash"])
        with open_registry(Path(name) / "registry") as registry:
            yield registry.push(layout, _NAME)


async def _baseline(reference: str, *, sample: bool) -> tuple[_Cost, _Cost]:
    """Copy and unpack with skopeo and umoci; tell what each took."""
    with tempfile.TemporaryDirectory() as name:
        layout, bundle = f"{name}/layout", f"{name}/bundle"
        source = ["--src-tls-verify=false", f"docker://{reference}"]
        skopeo = ["skopeo", "--insecure-policy", "copy", "--quiet"]
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        return (
            await _run([*skopeo, *source, f"oci:{layout}:latest"], sample=sample),
            await _run(
                ["umoci", "unpack", *rootless, "--image", f"{layout}:latest", bundle],
                sample=sample,
            ),
        )


async def _boxlite(reference: str, *, sample: bool) -> _Cost:
    """Pull with boxlite into an empty home; tell what it took."""
    with tempfile.TemporaryDirectory() as name:
        home = str(Path(name) / "home")
        command = [sys.executable, "-P", "-c", _PULL, reference, home]
        return await _run(command, sample=sample)


async def _run(command: list[str], *, sample: bool) -> _Cost:
    # What an earlier program wrote is not to be waited for by this one.
    await trio.to_thread.run_sync(os.sync)
    return await trio.to_thread.run_sync(_run_here, command, sample)


def _run_here(command: list[str], sample: bool) -> _Cost:  # noqa: FBT001 - called by a thread
    """Run a program to its end, in this thread."""
    with tempfile.TemporaryFile("w+") as output:
        began = perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)
        exited = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(exited, select.POLLIN)
            pss = largest = 0
            while not poll.poll(_SAMPLE_MILLISECONDS if sample else None):
                now = [_memory_of(pid) for pid in _tree(process.pid)]
                pss = max(pss, sum(share for share, _ in now))
                largest = max(largest, *(most for _, most in now), 0)
            seconds = perf_counter() - began
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            os.close(exited)
        if process.returncode != 0:
            raise RuntimeError(f"{command} failed with {process.returncode}")
        output.seek(0)
        return _Cost(
            seconds=seconds,
            processor=used.ru_utime + used.ru_stime,
            pss=pss,
            largest=largest,
            output=output.read(),
        )


def _tree(root: int) -> Iterator[int]:
    """Yield a process and its descendants. One that ends meanwhile may be left out."""
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())


def _memory_of(pid: int) -> tuple[int, int]:
    """Return a process's share of memory now, and the most it has had; none if it has ended."""
    found = {"Pss": 0, "VmHWM": 0}
    with suppress(FileNotFoundError, ProcessLookupError):
        for file in ("smaps_rollup", "status"):
            for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                name, _, amount = line.partition(":")
                if name in found:
                    found[name] = int(amount.split()[0]) << 10
    return found["Pss"], found["VmHWM"]
