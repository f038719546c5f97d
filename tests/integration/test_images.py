"""Boxes of real images: what a program in one finds, and what it can and cannot do."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
from conftest import READY_TIMEOUT, forget, kill_when_there

import boxlite
from boxlite import TerminalSize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from image_layout import Layout

    InRuntime = Callable[[Callable[[boxlite.Runtime], Awaitable[Any]]], Any]

#: CapEff of a container's root: see boxlite.guest.confinement.
CONTAINER_CAPABILITIES = "00000000a00425fb"
#: A command that exits with 0 if it could mount something.
MOUNT = """python3 -c '
import ctypes, os
os._exit(ctypes.CDLL(None).mount(b"none", b"/mnt", b"tmpfs", 0, None) != 0)'"""
#: The same in a namespace of its own users.
USER_NAMESPACE = """python3 -c '
import ctypes, os
os._exit(ctypes.CDLL(None).unshare(0x10000000) != 0)'"""


def sh(script: str) -> list[str]:
    """Return a command that runs a script."""
    return ["sh", "-c", script]


async def output(box: boxlite.Box, script: str, **options: Any) -> str:  # noqa: ANN401
    """Return what a script says, which must succeed."""
    done = await box.run(sh(script), check=True, **options)
    return done.stdout.decode()


def test_debian_works(in_runtime: InRuntime, app_reference: str) -> None:
    """Its tools, its users, a set-user-ID program, and 200 processes at once."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=app_reference, ready_timeout=READY_TIMEOUT) as box:
            assert (await output(box, "apt-get --version")).startswith("apt 2.")
            assert await output(box, "python3 -c 'print(6 * 7)'") == "42\n"
            await box.run(
                ["adduser", "--disabled-password", "--gecos", "", "bob"], user="root", check=True
            )
            assert "(bob)" in await output(box, "id", user="bob", cwd="/")
            assert "uid=1234(app) gid=1234(app) euid=0(root)" in await output(box, "setuid-id")
            pipeline = "echo 1" + " | (read n; echo $((n + 1)))" * 200
            assert await output(box, pipeline) == "201\n"

    in_runtime(scenario)


def test_the_configuration_is_heeded(in_runtime: InRuntime, app_reference: str) -> None:
    """Environment, user, directory, entrypoint; and what is said wins over it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=app_reference, env={"GREETING": "bye"}, ready_timeout=READY_TIMEOUT
        ) as box:
            assert box.image is not None
            seen = await output(box, 'echo "$(id -un) $PWD $HOME $GREETING [$EMPTY] ${LANG-none}"')
            assert seen == "app /home/app /home/app bye [] none\n"
            seen = await output(box, 'echo "$(id -un) $PWD $HOME"', user=0, cwd="/usr")
            assert seen == "root /usr /root\n"
            assert await output(box, "echo $GREETING", env={"GREETING": "hi"}) == "hi\n"
            done = await box.run(box.image.command(), check=True)
            assert b"bye" in done.stdout
            with pytest.raises(boxlite.ExecStartError, match="there is no user"):
                await box.run(["true"], user="nobody-knows")

    in_runtime(scenario)


def test_a_command_is_confined_as_in_a_container(
    in_runtime: InRuntime, debian_reference: str
) -> None:
    """It sees its own processes, its own file system, and nothing of the machine's devices."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=debian_reference, ready_timeout=READY_TIMEOUT) as box:
            status = dict(
                line.split(":\t", 1)
                for line in (await output(box, "cat /proc/self/status")).splitlines()
            )
            for name in ("CapPrm", "CapEff", "CapBnd"):
                assert status[name] == CONTAINER_CAPABILITIES
            assert int(status["Seccomp"]) == 0
            # Process 1 is the namespace's; the agent is not to be seen.
            processes = await output(box, "cat /proc/[0-9]*/comm")
            assert "kthreadd" not in processes
            assert (await box.run(["ls", "/proc/1/root"])).exit_code != 0
            await box.run(sh("kill -9 1; kill -INT 1; kill -TERM 1"))
            assert await output(box, "echo alive") == "alive\n"
            # An orphan is buried.
            await output(box, "sh -c 'sleep 0.1 &' ; sleep 0.3")
            assert "Z" not in await output(box, "cut -d' ' -f3 /proc/[0-9]*/stat")

            for script in (
                "echo b > /proc/sysrq-trigger",
                "echo 1 > /proc/sys/kernel/sysrq",
                "echo x > /sys/kernel/uevent_helper",
                "mknod /disk b 254 0",
                "mknod /dev/disk b 254 0",
                "test -e /dev/console",
                USER_NAMESPACE,
                "hostname other",
                MOUNT,
            ):
                assert (await box.run(sh(script))).exit_code != 0, script

    in_runtime(scenario)


def test_no_path_leads_to_the_agent(in_runtime: InRuntime, debian_reference: str) -> None:
    """What the agent looks up for the host, it looks up with no more power than the box has."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=debian_reference, ready_timeout=READY_TIMEOUT) as box:
            await output(box, "ln -s /proc/1/root /r; ln -s /proc/1/exe /e; ln -s /proc/1/cwd /c")
            await output(box, "ln -s /proc/sys/kernel/core_pattern /p")
            for path in ("/r", "/c"):
                with pytest.raises(PermissionError):
                    await box.path(path).iterdir()
                with pytest.raises(boxlite.ExecStartError, match="Permission denied"):
                    await box.run(["true"], cwd=path)
                with pytest.raises(PermissionError):
                    await box.path(f"{path}/dev/vda").read_bytes()
            with pytest.raises(PermissionError):
                await box.path("/e").read_bytes()
            with pytest.raises(OSError, match="Read-only"):
                await box.path("/p").write_text("|/bin/sh")
            for name in ("maps", "mem", "environ", "fd/3", "root/init"):
                assert (await box.run(["cat", f"/proc/1/{name}"])).exit_code != 0, name

    in_runtime(scenario)


def test_the_kernel_does_not_end_process_1_for_memory(
    in_runtime: InRuntime, debian_reference: str
) -> None:
    """All commands would end with it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=debian_reference, ready_timeout=READY_TIMEOUT) as box:
            assert await output(box, "cat /proc/1/oom_score_adj") == "-1000\n"
            assert await output(box, "cat /proc/self/oom_score_adj") == "0\n"

    in_runtime(scenario)


def test_small_limits_are_the_commands_alone(in_runtime: InRuntime, debian_reference: str) -> None:
    """The agent goes on, however little its commands may have."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=debian_reference,
            rlimits={"nofile": 8, "nproc": 50, "fsize": 1024},
            ready_timeout=READY_TIMEOUT,
        ) as box:
            assert await output(box, "ulimit -n; ulimit -Hn") == "8\n8\n"
            done = await box.run(["sh", "-c", "ulimit -n"], terminal=TerminalSize(), user="nobody")
            assert done.stdout == b"8\r\n"
            assert (await box.run(sh("head -c 5000 /dev/zero > /tmp/big"))).exit_code != 0
            await box.path("/tmp/large").write_bytes(bytes(5000))

    in_runtime(scenario)


def test_images_with_the_same_layers_have_templates_of_their_own(
    in_runtime: InRuntime, debian: Layout, tmp_path: Path
) -> None:
    """A directory that one of them wants is there for it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        for directory in ("/one/of/them", "/two"):
            layout = debian.derive(tmp_path / directory.replace("/", "-"))
            layout.configure(workingdir=directory)
            name = "same/layers" + directory.replace("/", "-")
            await runtime.images.load(layout.directory, name=name)
            async with runtime.open_box(image=name, ready_timeout=READY_TIMEOUT) as box:
                assert await output(box, "pwd") == f"{directory}\n"

    in_runtime(scenario)


def test_what_programs_expect_is_there(in_runtime: InRuntime, debian_reference: str) -> None:
    """Kernel file systems, devices, shared memory, names, limits, a terminal."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=debian_reference,
            rlimits={"nofile": (123, 456), "core": 0},
            ready_timeout=READY_TIMEOUT,
        ) as box:
            mounts = {
                line.split()[1]: line.split()[2:4]
                for line in (await output(box, "cat /proc/mounts")).splitlines()
            }
            assert mounts["/"][0] == "overlay"
            assert mounts["/sys"][0] == "sysfs"
            assert mounts["/sys"][1].startswith("ro,")
            assert {"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"} <= mounts.keys()
            assert await output(box, "stat -c %a /tmp /dev/shm") == "1777\n1777\n"
            await output(
                box, "echo x > /dev/shm/x; echo y > /tmp/y; head -c9 /dev/urandom >/dev/null"
            )
            assert await output(box, "cat < /dev/null; echo x >/dev/fd/1") == "x\n"
            name = f"box-{box.id}"
            assert await output(box, "hostname; cat /etc/hostname") == f"{name}\n{name}\n"
            assert f"127.0.1.1\t{name}" in await output(box, "cat /etc/hosts")
            assert "localhost" in await output(box, "getent hosts 127.0.0.1")
            assert (await output(box, "cat /etc/resolv.conf")).startswith("#")
            assert await output(box, "ulimit -n; ulimit -Hn; ulimit -c") == "123\n456\n0\n"
            done = await box.run(
                sh("tty; stty size </dev/tty; echo x > /dev/tty"), terminal=TerminalSize()
            )
            assert done.stdout == b"/dev/pts/0\r\n24 80\r\nx\r\n"

    in_runtime(scenario)


def test_files_and_copies_are_the_images(
    in_runtime: InRuntime, app_reference: str, tmp_path: Path
) -> None:
    """A path of the box means what it means to a command in it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=app_reference, ready_timeout=READY_TIMEOUT) as box:
            assert "Debian" in await box.path("/etc/os-release").read_text()
            await box.path("/home/app/note").write_text("written")
            assert await output(box, "cat note") == "written"
            await box.run(["ln", "-s", "/etc/passwd", "link"], check=True)
            assert "app:x:1234" in await box.path("/home/app/link").read_text()
            source = tmp_path / "tree"
            (source / "inner").mkdir(parents=True)
            (source / "inner" / "file").write_text("there and back")
            await box.copy_in(source, "/srv/")
            assert await output(box, "cat /srv/tree/inner/file") == "there and back"
            await box.copy_out("/srv/tree", tmp_path / "back")
            assert (tmp_path / "back" / "inner" / "file").read_text() == "there and back"
            await box.copy_out("/home/app/link", tmp_path / "passwd")
            assert "app:x:1234" in (tmp_path / "passwd").read_text()

    in_runtime(scenario)


def test_layers_are_flattened_and_changes_stay_in_the_box(
    in_runtime: InRuntime, busybox_reference: str
) -> None:
    """What one box writes another of the same image does not see."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        for _ in range(2):
            async with runtime.open_box(
                image=busybox_reference, disk_size_gib=1, ready_timeout=READY_TIMEOUT
            ) as box:
                assert await output(box, "ls /marker 2>/dev/null || echo none") == "none\n"
                await output(box, "echo x > /marker; rm /etc/passwd; mkdir -p /deep/er")
                size = int((await output(box, "df -k / | tail -1 | awk '{print $2}'")).strip())
                assert 900_000 < size < 1 << 20
                # The agent has the user's name from the image as it is now.
                with pytest.raises(boxlite.ExecStartError):
                    await box.run(["true"], user="app")

    in_runtime(scenario)


def test_a_kept_box_has_its_disk_again(in_runtime: InRuntime, busybox_reference: str) -> None:
    """After an orderly stop, after a kill, larger if that is asked for; until it is removed."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=busybox_reference, keep=True, disk_size_gib=1, ready_timeout=READY_TIMEOUT
        ) as box:
            await output(box, "echo first > /root/first")
        with pytest.raises(boxlite.BoxCrashedError) as caught:
            async with runtime.reopen_box(box.id, disk_size_gib=2) as again:
                assert await output(again, "cat /root/first") == "first\n"
                await output(again, "echo second > /root/second; sync")
                await kill_when_there(runtime.home.box(box.id).vm_pid, signal.SIGKILL)
                await trio.sleep_forever()
        assert caught.value.report.box_id == box.id
        await runtime.images.prune(all=True)
        with pytest.raises(boxlite.InvalidOptionError, match="at least 2"):
            async with runtime.reopen_box(box.id, disk_size_gib=1):
                pytest.fail("opened")

        async with runtime.reopen_box(box.id) as again:
            assert await output(again, "cat /root/first /root/second") == "first\nsecond\n"
            size = int((await output(again, "df -k / | tail -1 | awk '{print $2}'")).strip())
            assert size > 1_900_000
            assert again.image is not None
            with pytest.raises(boxlite.StateError, match="open in it"):
                await runtime.remove_box(box.id)
            with pytest.raises(boxlite.StateError, match="used by a box"):
                await runtime.images.remove(again.image.name)
        await runtime.remove_box(box.id)
        with pytest.raises(boxlite.InvalidOptionError):
            await runtime.remove_box(box.id)

    in_runtime(scenario)


def test_a_detached_box_of_an_image_is_found_again(
    in_runtime: InRuntime, app_reference: str
) -> None:
    """With its user and its environment, and while it runs its image stays."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(
            image=app_reference, detach=True, ready_timeout=READY_TIMEOUT
        ) as box:
            await output(box, "echo x > note")
        await runtime.images.prune(all=True)
        async with runtime.attach(box.id) as again:
            assert await output(again, "cat note; id -un; echo $GREETING") == (
                "x\napp\nhello, world\n"
            )
            await again.stop()

    in_runtime(scenario)


def test_a_broken_root_is_one_error_with_the_guests_words(
    in_runtime: InRuntime, busybox_reference: str
) -> None:
    """Neither a template nor a box comes of it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        image = await runtime.images.pull(busybox_reference)
        whole = image.root.read_bytes()
        templates = {template.key for template in await runtime.templates()}
        image.root.unlink()
        # It begins as one, or it would be made again.
        image.root.write_bytes(whole[:96] + bytes(len(whole) - 96))
        try:
            with pytest.raises(boxlite.BoxStartError) as caught:
                async with runtime.open_box(
                    image=busybox_reference, memory_mib=288, ready_timeout=READY_TIMEOUT
                ):
                    pytest.fail("opened")
            assert "/run/boxlite/image" in str(caught.value)
            forget(caught.value)
        finally:
            image.root.unlink()
            image.root.write_bytes(whole)
        made = {template.key for template in await runtime.templates()} - templates
        assert all("image" not in key for key in made)

    in_runtime(scenario)


def test_nothing_is_made_for_an_image_that_cannot_be_had(in_runtime: InRuntime) -> None:
    """A name that is none, a registry that is not there."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        with pytest.raises(boxlite.InvalidOptionError, match="image"):
            async with runtime.open_box(image="Not A Reference"):
                pytest.fail("opened")
        with pytest.raises(boxlite.RegistryError):
            async with runtime.open_box(image="127.0.0.1:1/nothing:here"):
                pytest.fail("opened")

    in_runtime(scenario)


def test_an_ordinary_user_owns_what_it_should(in_runtime: InRuntime, app_reference: str) -> None:
    """Owners in the image are the image's, whoever unpacked it."""

    async def scenario(runtime: boxlite.Runtime) -> None:
        async with runtime.open_box(image=app_reference, ready_timeout=READY_TIMEOUT) as box:
            assert await output(box, "stat -c %u:%g /home/app /etc/passwd") == "1234:1234\n0:0\n"
            assert os.geteuid() == 0 or await output(box, "id -u", user="root") == "0\n"

    in_runtime(scenario)
