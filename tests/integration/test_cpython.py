"""CPython's own tests in a box: the same tests, with the same results, as on this machine.

Whoever moves a program into a box counts on Python there being Python: its files,
processes, signals, threads and event loop. Nobody has written that down better than the
tests that the interpreter comes with. Those that need no network are copied into the box,
with what they import, and run there and here, each test's outcome beside the other.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from boxlite._kit import python_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conftest import Stage

    import boxlite

# Once is enough: how the box came to be is nothing to its Python.
pytestmark = pytest.mark.parametrize("stage", [True], ids=[""], indirect=True, scope="session")

#: The slowest module takes a tenth of it on two quiet cores.
_SECONDS: Final = 240.0

#: Runs what of a module is wanted, and prints what became of each test. Where a test has
#: several outcomes, its own or its subtests', the worst counts. What the tests themselves
#: print goes to stderr, and so do the reasons.
RUNNER: Final = """
import json, os, signal, sys, traceback, unittest

ORDER = ["ok", "skipped", "expected failure", "failed"]

class Told(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcomes = {}

    def tell(self, test, outcome, why=None):
        name = getattr(test, "test_case", test).id()
        self.outcomes[name] = max(self.outcomes.get(name, "ok"), outcome, key=ORDER.index)
        if why is not None:
            print(outcome, name, why, file=sys.stderr)

    def startTest(self, test):
        super().startTest(test)
        self.tell(test, "ok")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.tell(test, "skipped", reason)

    def addError(self, test, error):
        super().addError(test, error)
        self.tell(test, "failed", "".join(traceback.format_exception(*error)))

    addFailure = addError

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.tell(test, "failed", "".join(traceback.format_exception(*error)))

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.tell(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.tell(test, "failed", "unexpected success")

def flat(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item

wanted = json.loads(sys.argv[1])
# Whoever runs this in the background has it ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
found = unittest.defaultTestLoader.loadTestsFromNames(wanted["names"])
without = set(wanted["without"])
told = Told()
unittest.TestSuite(t for t in flat(found) if without.isdisjoint(t.id().split("."))).run(told)
json.dump(told.outcomes, out)
out.close()
"""


@attrs.frozen
class Part:
    """What is run of a module below ``test``.

    Args:
        module: Its name.
        only: Its classes that are run, if not all.
        without: Classes and tests that are not: they take too long in emulation, by the
            interpreters that they start or by sleeping, or say the same as others.
        needs: What it needs of the rest of ``test``.
    """

    module: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_ASYNCIO: Final = (
    *("test_asyncio/__init__", "test_asyncio/utils", "certdata"),
    # Where there is no certdata yet.
    *("ssl_cert.pem", "ssl_key.pem", "keycert3.pem", "pycacert.pem"),
)

PARTS: Final = (
    # Each test of the two tools starts an interpreter.
    Part("test_json", without=("TestTool", "test_unicode_decode")),
    Part("test_struct"),
    Part("test_base64", without=("TestMain",)),
    Part("test_textwrap"),
    Part("test_heapq"),
    Part("test_bisect"),
    Part("test_dict", needs=("mapping_tests",)),
    Part("test_generators"),
    Part("test_threading_local"),
    Part(
        "test_pathlib",
        without=(
            *("test_glob_many_open_files", "test_pathlib_abc"),
            # In 3.13 it takes the number of a group for that of a user.
            "test_group_no_follow_symlinks",
        ),
    ),
    Part(
        "test_signal",
        without=(
            *("SiginterruptTest", "StressTest", "ItimerTest", "test_interprocess_signal"),
            *("test_sigwait_thread", "test_sigwaitinfo", "test_sigtimedwait"),
            "test_sigtimedwait_timeout",
            # They demand that a system call ends within some seconds.
            *("test_wakeup_fd_early", "test_wakeup_fd_during"),
        ),
    ),
    Part(
        "test_subprocess",
        only=("POSIXProcessTestCase", "RunFuncTestCase"),
        without=(
            *("test_pass_fds", "test_close_fds", "test_close_fds_after_preexec"),
            *("test_swap_fds", "test_swap_std_fds_with_one_closed", "test_undecodable_env"),
            *("test_send_signal_dead", "test_kill_dead", "test_terminate_dead"),
            *("test_communicate_repeated_call_after_stdout_close", "test_group"),
            "test_check_output_timeout",
            # It demands that a shell starts and is killed within 1.5 s.
            "test_run_with_shell_timeout_and_capture_output",
        ),
        needs=("subprocessdata",),
    ),
    Part("test_asyncio.test_queues", needs=_ASYNCIO),
    Part("test_asyncio.test_locks", needs=_ASYNCIO),
    Part(
        "test_asyncio.test_tasks",
        only=("CTask_CFuture_Tests",),
        without=("test_task_del_collect",),
        needs=_ASYNCIO,
    ),
    Part(
        "test_asyncio.test_subprocess",
        only=("SubprocessThreadedWatcherTests",),
        without=(
            *("test_subprocess_communicate_stdout", "test_read_stdout_after_process_exit"),
            "test_kill_issue43884",
        ),
        needs=_ASYNCIO,
    ),
)

#: Extension modules that exist for the tests, and so are not in the built-in image.
_EXTENSIONS: Final = ("_testcapi", "_testinternalcapi")

#: The outcomes that are meant to differ: here, and in the box.
DIFFERENCES: Final[Mapping[str, tuple[str, str]]] = {
    # It wants bash or ksh, and the image has no shell but busybox's.
    "test.test_subprocess.POSIXProcessTestCase.test_specific_shell": ("ok", "skipped"),
}


@attrs.frozen
class Suite:
    """The copied tests.

    Args:
        here: Where they are on this machine.
        there: Where they are in the box.
    """

    here: Path
    there: str


@attrs.frozen
class Told:
    """What a runner said.

    Args:
        code: Its exit code.
        out: What became of each test, as JSON.
        err: What it and the tests wrote to stderr: the reasons.
    """

    code: int
    out: bytes
    err: bytes

    @property
    def reasons(self) -> str:
        """What it wrote to stderr, to be shown."""
        return self.err.decode(errors="replace")

    def outcomes(self) -> dict[str, str]:
        """Return what became of each test; the runner has to have ended in order."""
        assert self.code == 0, self.reasons
        outcomes: dict[str, str] = json.loads(self.out)
        # A module that cannot be imported would be the same failure on both sides.
        assert not any(name.startswith("unittest.loader.") for name in outcomes), self.reasons
        assert "ok" in outcomes.values(), self.reasons
        return outcomes


@pytest.fixture(scope="module")
def suite(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Copy the tests, compiled, to a directory here and into the shared box."""
    found = None
    with suppress(ModuleNotFoundError):  # no package of this name at all
        found = importlib.util.find_spec("test.test_json")
    if found is None or found.origin is None:
        pytest.skip(
            "this Python has no tests of its own: Debian has them in libpython3-testsuite, "
            "other builds leave them out with --disable-test-modules"
        )
    here = tmp_path_factory.mktemp("cpython")
    names = {"__init__", "support"}
    for part in PARTS:
        names |= {part.module.replace(".", "/"), *part.needs}
    for name in sorted(names):
        _copy(Path(found.origin).parents[1] / name, here / "test" / name)
    for name in _EXTENSIONS:
        extension = importlib.util.find_spec(name)
        if extension is not None and extension.has_location:
            shutil.copy2(str(extension.origin), here)
    compileall.compile_dir(here, quiet=2)
    (here / "runner.py").write_text(RUNNER)
    (here / "work").mkdir()
    there = f"/tmp/{here.name}"

    async def bring(box: boxlite.Box) -> None:
        await box.copy_in(here, there)
        # For whoever runs them; pytest's directories are for their owner alone.
        await box.run(["chmod", "-R", "a+rwX", there], check=True, timeout=60)

    async def remove(box: boxlite.Box) -> None:
        await box.run(["rm", "-rf", there], check=True, timeout=60)

    try:
        stage.play_in_box(bring)
        yield Suite(here, there)
    finally:
        stage.play_in_box(remove)


def _copy(source: Path, target: Path) -> None:
    """Copy a package, a module, or a directory of data, if this version of Python has it."""
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy2(source, target)
    elif source.with_suffix(".py").exists():
        shutil.copy2(source.with_suffix(".py"), target.with_suffix(".py"))


def _environment(tree: str, prefix: str) -> dict[str, str]:
    """Return all that a runner and the interpreters below it are told.

    The image has the interpreter below /usr, wherever it was built for. PYTHONHOME says
    so, and ``test.support`` takes it as a sign to hand the environment on.
    """
    return {
        "HOME": f"{tree}/work",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONHOME": prefix,
        "PYTHONPATH": tree,
        "TMPDIR": f"{tree}/work",
    }


def _arguments(part: Part) -> Sequence[str]:
    module = f"test.{part.module}"
    names = [f"{module}.{name}" for name in part.only] or [module]
    return ["../runner.py", json.dumps({"names": names, "without": part.without})]


async def _run_here(suite: Suite, part: Part) -> Told:
    async def kill(process: trio.Process) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await trio.lowlevel.checkpoint()

    env = _environment(str(suite.here), sys.base_prefix)
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        # Some builds need it to find their library; in the box that is where any loader looks.
        env["LD_LIBRARY_PATH"] = libraries
    with trio.fail_after(_SECONDS):
        done = await trio.run_process(
            [python_root.interpreter(), *_arguments(part)],
            env=env,
            cwd=suite.here / "work",
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            # As a command in a box has it.
            start_new_session=True,
            deliver_cancel=kill,
        )
    return Told(done.returncode, done.stdout, done.stderr)


async def _run_there(box: boxlite.Box, suite: Suite, part: Part) -> Told:
    done = await box.run(
        ["python3", *_arguments(part)],
        env=_environment(suite.there, str(Path(python_root.STDLIB).parents[1])),
        cwd=f"{suite.there}/work",
        # Some tests are for root and some for others: as here, so there.
        user="root" if os.geteuid() == 0 else "nobody",
        timeout=_SECONDS,
    )
    return Told(done.exit_code, done.stdout, done.stderr)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.module)
def test_a_module_of_cpythons_tests_ends_in_a_box_as_it_does_here(
    stage: Stage, suite: Suite, part: Part
) -> None:
    """Every test found here is found there and ends alike, but for the table above.

    What Python relies on, a box has: no program has to allow for being in one.
    """
    told: dict[str, Told] = {}

    async def scenario(box: boxlite.Box) -> None:
        async def run_here() -> None:
            told["here"] = await _run_here(suite, part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_here)
            told["there"] = await _run_there(box, suite, part)

    stage.play_in_box(scenario)
    expected, found = told["here"].outcomes(), told["there"].outcomes()
    for name, (here, there) in DIFFERENCES.items():
        if expected.get(name) == here:
            expected[name] = there
    differing = {
        name: (expected.get(name), found.get(name))
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    }
    reasons = "".join(f"\n\n{where}:\n{each.reasons}" for where, each in told.items())
    assert not differing, f"{differing}{reasons}"
