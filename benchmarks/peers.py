"""Yardsticks that are not boxlite: gVisor, and a sandbox that is no machine at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from time import perf_counter

#: One start of ``true``: a user-space kernel over ptrace, without its own network or cgroup.
GVISOR = ("runsc", "--platform=ptrace", "--network=none", "--ignore-cgroups", "do", "/bin/true")
#: One start of ``true`` in fresh namespaces: the host's own kernel, and so the limit.
BUBBLEWRAP = (
    *("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    "/bin/true",
)


def seconds(command: tuple[str, ...]) -> list[float]:
    """Run a peer once: its seconds, or nothing if it is not installed or does not run here."""
    if shutil.which(command[0]) is None:
        print(f"{command[0]} is not installed: apt-get install runsc bubblewrap", file=sys.stderr)
        return []
    began = perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    took = perf_counter() - began
    if done.returncode != 0:
        print(f"{command[0]} does not run here: {done.stderr[-200:]!r}", file=sys.stderr)
        return []
    return [took]
