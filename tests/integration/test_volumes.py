"""Volumes: a box sees files of the host, and the host keeps the last word."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from conftest import READY_TIMEOUT

import boxlite
from boxlite import Volume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]


async def said(box: boxlite.Box, script: str) -> str:
    """Return what a script says on both streams, however it ends."""
    done = await box.run(["sh", "-c", script], merge_stderr=True, user="root")
    return done.stdout.decode()


def test_a_read_only_volume_is_so_at_the_device(in_runtime: InRuntime, tmp_path: Path) -> None:
    """Root in the guest mounts it writable, and still cannot write."""
    (tmp_path / "file").write_text("the host's")

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            volumes=[Volume(tmp_path, "/data/in")], ready_timeout=READY_TIMEOUT
        ) as box:
            assert await said(box, "cat /data/in/file") == "the host's"
            mounted = await said(box, "mount -o remount,rw /data/in; grep /data/in /proc/mounts")
            assert " rw," in mounted
            for script in (
                "echo x > /data/in/file",
                "echo x > /data/in/new",
                "rm /data/in/file",
                "mkdir /data/in/d",
                "chmod 777 /data/in/file",
                "ln /data/in/file /data/in/other",
                "mv /data/in/file /data/in/moved",
                "truncate -s 0 /data/in/file",
                "touch /data/in/file",
            ):
                assert "Read-only file system" in await said(box, script), script
            (tmp_path / "late").write_text("seen")
            assert await said(box, "cat /data/in/late") == "seen"
            # And in a mount of its own making.
            await said(box, "umount /data/in; mkdir /m")
            await said(box, "mount -t 9p -o trans=virtio,version=9p2000.L volume0 /m")
            assert await said(box, "cat /m/late") == "seen"
            assert "Read-only" in await said(box, "echo x > /m/new")

    in_runtime(scenario)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "late"}
    assert (tmp_path / "file").read_text() == "the host's"


def test_what_a_box_writes_is_ordinary_on_the_host(in_runtime: InRuntime, tmp_path: Path) -> None:
    """Owners, modes, links and devices are the box's own; the host has plain files."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            volumes=[Volume(tmp_path, "/out", read_only=False)], ready_timeout=READY_TIMEOUT
        ) as box:
            script = """
                cd /out
                echo data > file; chown 1000:1000 file; chmod 4755 file
                mkdir dir; chmod 700 dir; ln -s /etc/shadow link; mknod null c 1 3
                stat -c '%n %a %u %F' file dir link null; readlink link
            """
            assert (await said(box, script)).splitlines() == [
                "file 4755 1000 regular file",
                "dir 700 0 directory",
                "link 777 0 symbolic link",
                "null 644 0 character special file",
                "/etc/shadow",
            ]
        # Another box sees what the first one set.
        async with runtime.open_box(
            volumes=[Volume(tmp_path, "/out", read_only=False)], ready_timeout=READY_TIMEOUT
        ) as box:
            assert await said(box, "stat -c %a /out/file") == "4755\n"

    in_runtime(scenario)
    for name in ("file", "link", "null"):
        found = (tmp_path / name).lstat()
        assert (found.st_mode, found.st_uid) == (0o100644, os.geteuid()), name
    assert (tmp_path / "file").read_text() == "data\n"
    assert (tmp_path / "dir").lstat().st_mode == 0o040755


def test_no_link_leads_out_of_a_volume(in_runtime: InRuntime, tmp_path: Path) -> None:
    """Not the host's own, not one that is swapped in while the box runs."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret").write_text("SECRET")
    (shared / "up").symlink_to("../secret")
    (shared / "absolute").symlink_to(tmp_path / "secret")
    (shared / "dir").symlink_to(tmp_path)
    (shared / "inner").mkdir()
    (shared / "inner" / "secret").write_text("inner")

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            volumes=[Volume(shared, "/v"), Volume(shared, "/w", read_only=False)],
            ready_timeout=READY_TIMEOUT,
        ) as box:
            for path in ("up", "absolute", "dir/secret", "../secret", "dir/../secret"):
                for volume in ("/v", "/w"):
                    assert "SECRET" not in await said(box, f"cat {volume}/{path}")
            await said(box, "cat /v/inner/secret /w/inner/secret")
            (shared / "inner").rename(tmp_path / "moved")
            (shared / "inner").symlink_to(tmp_path)
            for volume in ("/v", "/w"):
                assert "SECRET" not in await said(box, f"cat {volume}/inner/secret")
            await said(box, "echo evil > /w/up; echo evil > /w/inner/secret")

    in_runtime(scenario)
    assert (tmp_path / "secret").read_text() == "SECRET"


def test_single_files_are_shared_alone(
    in_runtime: InRuntime, busybox_reference: str, tmp_path: Path
) -> None:
    """In an image too, over a file that it has; what is beside them stays the host's."""
    (tmp_path / "settings").write_text("one = 1\n")
    (tmp_path / "log").write_text("begin\n")
    (tmp_path / "beside").write_text("SECRET")

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=busybox_reference,
            volumes=[
                Volume(tmp_path / "settings", "/entrypoint.sh"),
                Volume(tmp_path / "log", "/var/log/deep/log", read_only=False),
            ],
            ready_timeout=READY_TIMEOUT,
        ) as box:
            assert await said(box, "cat /entrypoint.sh") == "one = 1\n"
            assert "Read-only" in await said(box, "echo x >> /entrypoint.sh")
            await said(box, "echo end >> /var/log/deep/log")
            assert await said(box, "ls /var/log/deep") == "log\n"
            assert "volume" not in await said(box, "ls -a /dev")

    in_runtime(scenario)
    assert (tmp_path / "log").read_text() == "begin\nend\n"
    assert (tmp_path / "settings").read_text() == "one = 1\n"


def test_a_volume_that_cannot_be_is_refused_before_anything_is_made(
    in_runtime: InRuntime, tmp_path: Path
) -> None:
    """The error names the field."""
    os.mkfifo(tmp_path / "fifo")

    async def scenario(runtime: boxlite.Runtime) -> None:
        for source in ("missing", "fifo"):
            with pytest.raises(boxlite.InvalidOptionError) as caught:
                async with runtime.open_box(volumes=[Volume(tmp_path / source, "/v")]):
                    pytest.fail("opened")
            assert caught.value.field == "volumes[0].source"

    in_runtime(scenario)


def test_a_detached_box_keeps_its_volumes(in_runtime: InRuntime, tmp_path: Path) -> None:
    """They are QEMU's by then."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            detach=True,
            volumes=[Volume(tmp_path, "/v", read_only=False)],
            ready_timeout=READY_TIMEOUT,
        ) as box:
            pass
        async with runtime.attach(box.id) as again:
            await said(again, "echo still > /v/there")
            await again.stop()

    in_runtime(scenario)
    assert (tmp_path / "there").read_text() == "still\n"
