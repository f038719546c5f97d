"""Bytes in bulk: through a command's streams and by copies, beside the bare port they travel on.

The machine has one virtio-serial port more than a box has, without agent, gRPC or Trio at
either end: a program of the guest on the one, a blocking socket on the other. That is what
the same bytes make at best.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import trio

import boxlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .harness import Series

_SIZE = 64 << 20
_MIB = 1 << 20
_TREE_FILES = 10_000
_PORT = "port=/dev/$(basename $(dirname $(grep -lx bench /sys/class/virtio-ports/*/name)))"
_QEMU = """#!/bin/sh
case "$*" in
*virtserialport*)
    set -- "$@" -chardev socket,id=bench,path={socket},server=on,wait=off \
        -device virtio-serial-pci,id=bench \
        -device virtserialport,bus=bench.0,chardev=bench,name=bench
esac
exec {qemu} "$@"
"""


@asynccontextmanager
async def _box_with_port(directory: Path) -> AsyncIterator[tuple[boxlite.Box, socket.socket]]:
    """Start a box whose machine has a port of our own, and connect to that."""
    qemu = directory / "qemu"
    path = directory / "port"
    real = os.environ.get("BOXLITE_QEMU") or shutil.which("qemu-system-x86_64")
    qemu.write_text(_QEMU.format(socket=path, qemu=real))
    qemu.chmod(0o700)
    async with (
        boxlite.open_runtime(qemu=qemu, templates=False) as runtime,
        runtime.open_box(memory_mib=512, ready_timeout=120) as box,
    ):
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(path))
            yield box, port


async def _rate(series: list[float], measure: Callable[[], Awaitable[object]], size: int) -> None:
    began = perf_counter()
    await measure()
    series.append(size / _MIB / (perf_counter() - began))


def _drain(port: socket.socket) -> None:
    buffer, left = bytearray(1 << 18), _SIZE
    while left:
        left -= port.recv_into(buffer)


async def out(rounds: int) -> Series:
    """Measure how fast bytes come out of a box, in MiB/s."""
    series: Series = {
        "cat file > port, socket.recv (baseline)": [],
        "dd bs=32k file > port, socket.recv": [],
        "exec: cat file, stdout to its end": [],
        "run: cat file, captured": [],
        "copy_out of the file": [],
        "exec: 64 MiB in writes of 512 bytes": [],
    }
    cat, dd, stdout, captured, copied, small = series.values()
    with tempfile.TemporaryDirectory() as name:
        async with _box_with_port(Path(name)) as (box, port):

            async def bare(command: str) -> None:
                async with box.exec(["sh", "-c", f"{_PORT}; {command}"]):
                    await trio.to_thread.run_sync(_drain, port)

            async def read(*command: str) -> None:
                async with box.exec(command) as execution:
                    async for _ in execution.stdout:
                        pass

            target = Path(name) / "copy"
            await box.run(["dd", "if=/dev/urandom", "of=/tmp/file", "bs=1M", "count=64"])
            for _ in range(rounds):
                await _rate(cat, lambda: bare("cat /tmp/file > $port"), _SIZE)
                await _rate(dd, lambda: bare("dd bs=32k if=/tmp/file of=$port"), _SIZE)
                await _rate(stdout, lambda: read("cat", "/tmp/file"), _SIZE)
                run = ["cat", "/tmp/file"]
                await _rate(captured, lambda: box.run(run, max_output=_SIZE), _SIZE)  # noqa: B023 - called at once
                await _rate(copied, lambda: box.copy_out("/tmp/file", target), _SIZE)
                target.unlink()
                await _rate(small, lambda: read("dd", "if=/tmp/file", "bs=512"), _SIZE)
    return series


async def into(rounds: int) -> Series:
    """Measure how fast bytes get into a box, in MiB/s."""
    series: Series = {
        "socket.send, dd port > file (baseline)": [],
        "exec: stdin, cat > file": [],
        "copy_in of the file": [],
    }
    dd, stdin, copied = series.values()
    count = _SIZE // _MIB
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "file"
        data = os.urandom(_SIZE)
        source.write_bytes(data)
        async with _box_with_port(Path(name)) as (box, port):

            async def bare() -> None:
                script = f"{_PORT}; dd iflag=fullblock bs=1M count={count} if=$port of=/tmp/file"
                async with box.exec(["sh", "-c", script]):
                    await trio.to_thread.run_sync(port.sendall, data)

            for _ in range(rounds):
                await _rate(dd, bare, _SIZE)
                feed = ["sh", "-c", "cat > /tmp/file"]
                await _rate(stdin, lambda: box.run(feed, input=data), _SIZE)  # noqa: B023 - called at once
                await _rate(copied, lambda: box.copy_in(source, "/tmp/file"), _SIZE)
    return series


async def trees(rounds: int) -> Series:
    """Measure a tree of many small files, in seconds."""
    series: Series = {
        "tar in the box, its input from the host's tar (baseline)": [],
        "copy_in": [],
        "tar in the box, its output to the host's tar": [],
        "copy_out": [],
    }
    tar_in, copy_in, tar_out, copy_out = series.values()
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "tree", Path(name) / "out"
        for number in range(_TREE_FILES):
            path = source / f"{number // 100:02}" / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d\n" % number * 100)
        async with boxlite.open_runtime() as runtime, runtime.open_box(memory_mib=512) as box:
            await box.run(["mkdir", "/tmp/tar", "/tmp/copy"])
            for _ in range(rounds):
                began = perf_counter()
                packed = await trio.run_process(["tar", "cC", source, "."], capture_stdout=True)
                unpack = ["tar", "xC", "/tmp/tar"]
                await box.run(unpack, input=packed.stdout, check=True)
                tar_in.append(perf_counter() - began)
                began = perf_counter()
                await box.copy_in(source, "/tmp/copy/tree")
                copy_in.append(perf_counter() - began)
                began = perf_counter()
                done = await box.run(["tar", "cC", "/tmp/tar", "."], max_output=_SIZE, check=True)
                target.mkdir()
                await trio.run_process(["tar", "xC", target], stdin=done.stdout)
                tar_out.append(perf_counter() - began)
                shutil.rmtree(target)
                began = perf_counter()
                await box.copy_out("/tmp/copy/tree", target)
                copy_out.append(perf_counter() - began)
                shutil.rmtree(target)
                await box.run(["sh", "-c", "rm -r /tmp/tar/* /tmp/copy/*"], check=True)
    return series


async def many(rounds: int) -> Series:
    """Measure a command of many, one after the other and 20 at a time, in seconds each."""
    series: Series = {"200 x true, one by one (baseline)": [], "200 x true, 20 at a time": []}
    serial, side_by_side = series.values()
    async with boxlite.open_runtime() as runtime, runtime.open_box() as box:
        await box.run(["/bin/true"])
        limit = trio.CapacityLimiter(20)

        async def one() -> None:
            async with limit:
                await box.run(["/bin/true"], check=True)

        for _ in range(rounds):
            began = perf_counter()
            for _ in range(200):
                await box.run(["/bin/true"], check=True)
            serial.append((perf_counter() - began) / 200)
            began = perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(one)
            side_by_side.append((perf_counter() - began) / 200)
    return series
