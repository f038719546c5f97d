"""Are the tests of a start good for anything? Break its code and see: ``nox -s mutants``.

Each mutation is one mistake that somebody could make, in a copy of the project; the
tests must notice. One that they do not is printed, and fails the session.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).parent.parent
#: What is run against each, in this order, until something fails.
TESTS: Final = (
    "tests/unit/test_ready.py",
    "tests/unit/test_process.py",
    "tests/unit/test_pipeline.py",
    "tests/unit/test_crash.py",
    "tests/unit/test_crash_stories.py",
    "tests/unit/test_secrets.py",
    "tests/unit/test_hostmemory.py",
    "tests/unit/test_attach.py",
    "tests/unit/test_faults.py",
    "tests/property/test_box_states.py",
    "tests/property/test_race.py",
)
#: A mutant that makes a test wait for ever has been noticed.
HANG_SECONDS: Final = 180


@attrs.frozen
class Mutation:
    """One mistake: in a file, what is replaced by what."""

    name: str
    file: str
    old: str
    new: str


_READY: Final = "boxlite/_startup/ready.py"
_CRASH: Final = "boxlite/_startup/crash.py"
_STORIES: Final = "boxlite/_startup/stories.py"
_PROCESS: Final = "boxlite/_process.py"
_PIPELINE: Final = "boxlite/_startup/pipeline.py"
_STAGES: Final = "boxlite/_startup/stages.py"
_STARTUP: Final = "boxlite/_startup/startup.py"
_DIRECTORY: Final = "boxlite/_startup/directory.py"

MUTATIONS: Final = (
    Mutation("exit beats ready", _READY, "READY = 1\n    EXIT = 2", "READY = 2\n    EXIT = 1"),
    Mutation(
        "deadline beats exit", _READY, "EXIT = 2\n    DEADLINE = 3", "EXIT = 3\n    DEADLINE = 2"
    ),
    Mutation("the last of a tick wins", _READY, "return min(finished)", "return max(finished)"),
    Mutation(
        "the losers are not cancelled",
        _READY,
        "cancel_shielded_checkpoint()\n            nursery.cancel_scope.cancel()",
        "cancel_shielded_checkpoint()",
    ),
    Mutation(
        "no time for others of the same tick",
        _READY,
        "await trio.lowlevel.cancel_shielded_checkpoint()\n",
        "\n",
    ),
    Mutation(
        "a death after ready is overlooked",
        _READY,
        "if shim is not None and shim.has_ended():",
        "if outcome is Outcome.EXIT:",
    ),
    Mutation(
        "an announcement at the deadline is dropped", _READY, " and not listener.announced", ""
    ),
    Mutation("the exit code is lost", _READY, "exit_code=reap()", "exit_code=None"),
    Mutation("another user may announce", _READY, "if uid != os.geteuid():", "if uid is None:"),
    Mutation(
        "any nonce will do",
        _READY,
        "hmac.compare_digest(received, self._expected)",
        'received.startswith(b"ready ")',
    ),
    Mutation("a stranger starts the box", _READY, "if await self._is_genuine(peer):", "if True:"),
    Mutation(
        "a stranger may stay for ever",
        _READY,
        "with peer, trio.move_on_after(_STRANGER_SECONDS):",
        "with peer:",
    ),
    Mutation(
        "strangers are not counted",
        _READY,
        "_STRANGERS_AT_ONCE: Final = 16",
        "_STRANGERS_AT_ONCE: Final = 99",
    ),
    Mutation(
        "a stranger's place is never free again", _READY, "                free.release()\n", ""
    ),
    Mutation(
        "an aborted connection ends the start",
        _READY,
        "except ConnectionAbortedError:\n                continue",
        "except ConnectionAbortedError:\n                raise",
    ),
    Mutation("the socket file stays", _READY, "self.path.unlink()", "pass"),
    Mutation("a descriptor stays open", _READY, "        self._socket.close()\n", ""),
    Mutation(
        "an error of a contender is swallowed",
        _READY,
        "    raise failure\n",
        "    return Outcome.READY\n",
    ),
    Mutation("an unknown shim is called alive", _READY, "None if shim is None else True", "True"),
    Mutation(
        "the exit file's code is not believed",
        _CRASH,
        "exit_code if record is None else record.exit_code",
        "exit_code",
    ),
    Mutation(
        "secrets are shown",
        _CRASH,
        "about.secrets.hide_in(read_excerpt(about.layout.shim_stderr))",
        "read_excerpt(about.layout.shim_stderr)",
    ),
    Mutation(
        "an unreadable exit file is not mentioned",
        _CRASH,
        '[("exit file", unread)] if unread else []',
        "[]",
    ),
    Mutation("a full disk is not mentioned", _STORIES, "if traces.disk_full:", "if False:"),
    Mutation(
        "a kill for memory is called a kill",
        _STORIES,
        'if name == "SIGKILL" and traces.out_of_memory:',
        "if False:",
    ),
    Mutation(
        "a panic of the kernel is overlooked", _STORIES, "if console.kernel_panic:", "if False:"
    ),
    Mutation("somebody else's stop is the guest's", _STORIES, "if record.requested:", "if False:"),
    Mutation("a signal in an exit code is an error", _STORIES, "128 < code <", "192 < code <"),
    Mutation("a zombie is alive", _PROCESS, '{b"Z", b"X"}', '{b"X"}'),
    Mutation(
        "a pid given out again is the process",
        _PROCESS,
        'found == ("alive", self.start_time)',
        'found[0] == "alive"',
    ),
    Mutation(
        "the watch is on whoever has the pid",
        _PROCESS,
        "if not process.is_alive():",
        "if False:",
    ),
    Mutation(
        "an old kernel is not supported",
        _PROCESS,
        "frozenset({errno.ENOSYS, errno.EPERM})",
        "frozenset({errno.EPERM})",
    ),
    Mutation("an unknown process has ended", _PROCESS, "await trio.sleep_forever()", "return"),
    Mutation(
        "any wakeup is an end", _PROCESS, "while not self.has_ended():", "if not self.has_ended():"
    ),
    Mutation("the others are not woken", _PROCESS, "            self._others.unpark_all()\n", ""),
    Mutation(
        "a closed descriptor is waited on",
        _PROCESS,
        "trio.lowlevel.notify_closing(fd)",
        "pass",
    ),
    Mutation("nothing ever ends", _PROCESS, "return bool(poll.poll(0))", "return False"),
    Mutation("any number is a pid", _PROCESS, "if not 0 < pid <= _PID_MAX or", "if not 0 < pid or"),
    Mutation("a failed stage counts as done", _PIPELINE, 'if what == "done":', "if True:"),
    Mutation("a stage is under way for ever", _PIPELINE, "del self.under_way[name]", "pass"),
    Mutation(
        "errors come in groups",
        _PIPELINE,
        "async with open_nursery_unwrapped()",
        "async with trio.open_nursery()",
    ),
    Mutation(
        "a group runs one after the other",
        _PIPELINE,
        'nursery.start_soon(run, stage, name=f"stage {stage.name}")',
        "await run(stage)",
    ),
    Mutation(
        "the listener is left open", _STAGES, "    start.undo.callback(start.listener.close)\n", ""
    ),
    Mutation(
        "the shim is left running",
        _STAGES,
        "    start.undo.push_async_callback(end_shim, start)\n",
        "",
    ),
    Mutation(
        "the directory is left", _STAGES, "        start.undo.callback(remove_box, start)\n", ""
    ),
    Mutation(
        "a failed start leaves no evidence",
        _STAGES,
        "        start.fail()\n        if exc",
        "        if exc",
    ),
    Mutation(
        "evidence is removed",
        _DIRECTORY,
        "if not (keep_evidence and path in evidence):",
        "if True:",
    ),
    Mutation("a detached box is stopped", _STARTUP, "self.stays = self.options.detach", "pass"),
    Mutation("a dead box stays", _STARTUP, "        self.stays = False\n", ""),
)


def noticed(mutation: Mutation) -> str:
    """Return which test noticed, or nothing.

    Raises:
        ValueError: The mutation does not fit the code any more.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name in ("boxlite", "tests", "benchmarks", "docs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        path = tree / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.name}: {mutation.old!r} is not in {mutation.file} once")
        path.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        with subprocess.Popen(
            [*command, *TESTS],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as tests:
            try:
                said, _ = tests.communicate(timeout=HANG_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(tests.pid, 9)
                return f"nothing ended within {HANG_SECONDS} s"
        if tests.returncode == 0:
            return ""
        failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].partition(" - ")[0] if failed else f"pytest exited with {tests.returncode}"


def main() -> int:
    """Try each mutation, and the code without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutations with one of these in their name")
    names = parser.parse_args().names
    chosen = [m for m in MUTATIONS if not names or any(name in m.name for name in names)]
    began = time.perf_counter()
    sound = Mutation("none", _READY, '"""The race:', '"""The race:')
    if by := noticed(sound):
        print(f"the tests fail without a mutation: {by}")
        return 1
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, by in zip(chosen, pool.map(noticed, chosen), strict=True):
            print(f"{'killed' if by else 'SURVIVED':9} {mutation.name}  ({by})", flush=True)
            if not by:
                survivors.append(mutation)
    print(
        f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutations were killed,"
        f" in {time.perf_counter() - began:.0f} s"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
