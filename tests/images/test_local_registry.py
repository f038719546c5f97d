"""The registry of the tests lives as long as it is wanted, and no longer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import image_registry
import pytest
from image_layout import Layout, ToolError
from image_registry import open_registry

if TYPE_CHECKING:
    from image_registry import Registry


def test_a_private_registry_wants_its_login(private_registry: Registry, busybox: Layout) -> None:
    """It tells strangers nothing, and says how it wants to be asked."""
    private_registry.push(busybox, "test/busybox:latest")
    assert private_registry.manifest("test/busybox:latest")[1] == busybox.digest()

    stranger = attrs.evolve(private_registry, login=False)
    status, headers, _ = stranger.request("GET", "/v2/test/busybox/manifests/latest")
    assert status == 401
    assert headers["www-authenticate"] == 'Basic realm="boxlite tests"'
    with pytest.raises(ToolError, match="authentication required"):
        stranger.push(busybox, "test/busybox:latest")


def test_a_registry_ends_with_its_block(image_tools: None, tmp_path: Path) -> None:
    """No process is left, and nobody listens any more."""
    with open_registry(tmp_path) as registry:
        assert registry.request("GET", "/v2/")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        registry.request("GET", "/v2/")


def test_a_registry_ends_with_tests_that_are_killed(image_tools: None, tmp_path: Path) -> None:
    """Nobody is left to end it in order."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from image_registry import open_registry\n"
        "with open_registry(Path(sys.argv[1])) as registry:\n"
        "    print(registry.host, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_script(script, tmp_path)
    host, _, port = done.stdout.strip().partition(":")
    assert done.returncode == -signal.SIGKILL

    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            break
        except ConnectionResetError:
            pass  # It is being ended at this moment.
        assert time.monotonic() < deadline


def test_a_registry_that_fails_says_why(
    image_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is in the error."""
    monkeypatch.setenv("REGISTRY_LOG_LEVEL", "no such level")
    with pytest.raises(ToolError, match="no such level"), open_registry(tmp_path):
        pass


def run_script(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that has the tests' modules, with a directory as its argument."""
    environment = {**os.environ, "PYTHONPATH": str(Path(image_registry.__file__).parent)}
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
