"""The agent as a process: what it loads, finds, and says on the console."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import guest_agent_program
import pytest

from boxlite._wire import AGENT_CONSOLE_MARK
from boxlite.guest import console, lean
from boxlite.guest.ports import PortsMissingError, find_ports, wait_for_ports
from boxlite.guest.refused import RefusedError
from boxlite.guest.spawn import find_program

if TYPE_CHECKING:
    from collections.abc import Sequence

IMPORTS = """
import sys
sys.path[:0] = [{tests!r}]
sys.path.append({site_packages!r})
import guest_agent_program
guest_agent_program.install_bare_package()
from boxlite.guest import boot, lean
lean.leave_out()
import boxlite.guest.serve
print(*sorted(name for name, module in sys.modules.items() if module is not None))
"""


def loaded_modules() -> Sequence[str]:
    """Return the modules that the agent has loaded when it begins to serve."""
    program = IMPORTS.format(
        tests=str(Path(guest_agent_program.__file__).parent),
        site_packages=sysconfig.get_path("purelib"),
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_agent_loads_what_it_needs_and_no_more() -> None:
    """Every module is time at a cold boot and memory in a template."""
    modules = loaded_modules()

    assert {"boxlite.guest.serve", "boxlite._wire", "grpclib.server"} <= set(modules)
    unwanted = {"ssl", "email", "zipfile", "trio", "attr", "grpclib.client.ssl", "google"}
    assert not unwanted & set(modules)
    host_side = [
        name
        for name in modules
        if name.startswith("boxlite.")
        and not name.startswith(("boxlite.guest", "boxlite._rpc._generated"))
    ]
    allowed = ("boxlite._bulk", "boxlite._rpc", "boxlite._tree", "boxlite._wire")
    assert all(name.startswith(allowed) for name in host_side), host_side


def test_the_version_of_a_distribution_is_in_the_name_of_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is on the path, and whether or not all of it exists."""
    (tmp_path / "thing-1.2.dist-info").mkdir()
    (tmp_path / "thing_else-3.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", ["/no/such/directory", str(tmp_path)])

    assert lean.installed_version("thing") == "1.2"
    with pytest.raises(ImportError, match="nothing has no .dist-info"):
        lean.installed_version("nothing")


def test_ports_are_found_by_name(tmp_path: Path) -> None:
    """A port whose name has not arrived yet is left for later."""
    for device, name in (("vport0p1", "boxlite.control\n"), ("vport0p2", None)):
        (tmp_path / device).mkdir()
        if name is not None:
            (tmp_path / device / "name").write_text(name)

    assert find_ports(str(tmp_path)) == {"boxlite.control": "vport0p1"}


def test_a_machine_without_the_driver_has_no_ports(tmp_path: Path) -> None:
    """The directory appears with the driver."""
    assert find_ports(str(tmp_path / "virtio-ports")) == {}


def test_ports_that_do_not_appear_are_named() -> None:
    """The wait is bounded, and its end says what is missing."""
    with pytest.raises(PortsMissingError, match=r"no virtio-serial port named b\.x, b\.y within 0"):
        wait_for_ports(["b.y", "b.x"], timeout=0)


def test_a_program_is_looked_for_as_a_shell_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty entry of PATH is the current directory; what may not be executed is passed over."""
    (tmp_path / "denied").mkdir()
    (tmp_path / "denied" / "tool").touch(mode=0o644)
    (tmp_path / "tool").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)

    assert find_program(b"tool", b"denied:") == b"./tool"
    with pytest.raises(RefusedError, match="'denied/tool' has no permission"):
        find_program(b"tool", b"denied:/no/such/directory")


def test_a_console_line_has_the_mark_that_crash_reports_look_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the time since the kernel started."""
    console.log("a message")

    line = capsys.readouterr().out
    assert line.startswith(f"{AGENT_CONSOLE_MARK} T+")
    assert line.endswith("ms: a message\n")


def test_a_panic_leaves_its_traceback_and_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line stays one, whatever the message of the error."""
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        console.panic(error)

    captured = capsys.readouterr()
    assert captured.out == f"{AGENT_CONSOLE_MARK} panic: ValueError: first\n"
    assert "Traceback" in captured.err
    assert "test_a_panic_leaves" in captured.err
