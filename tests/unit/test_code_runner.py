"""The interpreter of a code box, run on this machine: its answers, and the check of them."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

import boxlite
from boxlite import CodeResult, GuestProtocolError
from boxlite._code.answer import code_result

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = Path(boxlite.__file__).parent / "_code" / "runner.py"


class Runner:
    """A running interpreter."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def ask(self, code: str, *, fresh: bool = False, limit: int = 1000) -> None:
        """Send a piece of code."""
        assert self.process.stdin is not None
        data = json.dumps({"code": code, "fresh": fresh, "limit": limit}).encode()
        self.process.stdin.write(struct.pack(">I", len(data)) + data)
        self.process.stdin.flush()

    def answer(self) -> CodeResult:
        """Receive what came of it."""
        assert self.process.stdout is not None
        (size,) = struct.unpack(">I", self.process.stdout.read(4))
        return code_result(self.process.stdout.read(size))

    def run(self, code: str, **how: Any) -> CodeResult:  # noqa: ANN401
        """Do both."""
        self.ask(code, **how)
        return self.answer()


@pytest.fixture
def runner() -> Iterator[Runner]:
    """An interpreter, started as a code box starts it."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", RUNNER.read_text()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        yield Runner(process)
        said = process.communicate()[1]
        assert (process.returncode, said) == (0, b"")


def test_the_last_expression_is_the_value(runner: Runner) -> None:
    """And names stay for the next piece, until they are forgotten."""
    assert runner.run("x = 6") == CodeResult()
    assert runner.run("y = 7\nx * y").value == "42"
    assert runner.run("None").value is None
    assert runner.run("_ + 1").value == "43"
    forgotten = runner.run("x", fresh=True).error
    assert forgotten is not None
    assert (forgotten.type, forgotten.message) == ("NameError", "name 'x' is not defined")
    assert runner.run("").value is None


def test_output_of_every_kind_is_kept(runner: Runner) -> None:
    """Of the code, of its children, of what writes to the descriptor; not of the next piece."""
    code = (
        "import os, subprocess, sys\n"
        "print('one')\n"
        "sys.stderr.write('err')\n"
        "os.write(1, b'two\\n')\n"
        "subprocess.run(['echo', 'three'])\n"
    )
    result = runner.run(code)
    assert (result.stdout, result.stderr) == ("one\ntwo\nthree\n", "err")
    assert runner.run("1") == CodeResult(value="1")


def test_output_is_cut_and_flagged(runner: Runner) -> None:
    """The beginning is kept."""
    result = runner.run("print('x' * 100)", limit=10)
    assert (result.stdout, result.stdout_truncated) == ("x" * 10, True)
    assert not result.stderr_truncated


def test_an_exception_is_told_with_the_lines_of_the_code(runner: Runner) -> None:
    """And nothing of the interpreter around it."""
    result = runner.run("def f():\n    return 1 / 0\nprint('before')\nf()\n")
    assert result.stdout == "before\n"
    assert result.error is not None
    assert result.error.type == "ZeroDivisionError"
    assert "return 1 / 0" in result.error.traceback
    assert "evaluate" not in result.error.traceback
    syntax = runner.run("if:").error
    assert syntax is not None
    assert syntax.type == "SyntaxError"
    ended = runner.run("import sys; sys.exit(3)").error
    assert ended is not None
    assert (ended.type, ended.message) == ("SystemExit", "3")


def test_values_that_show_themselves_are_rich_results(runner: Runner) -> None:
    """As in a notebook."""
    code = (
        "class Plot:\n"
        "    def _repr_png_(self): return b'\\x89PNG'\n"
        "    def _repr_html_(self): return '<b>ü</b>'\n"
        "    def _repr_json_(self): return {'a': 1}\n"
        "    def __repr__(self): return 'plot'\n"
        "display(Plot())\n"
        "Plot()\n"
    )
    result = runner.run(code)
    assert result.value == "plot"
    shown = [(it.mime, it.data) for it in result.results]
    once = [
        ("image/png", b"\x89PNG"),
        ("text/html", "<b>ü</b>".encode()),
        ("application/json", b'{"a": 1}'),
    ]
    assert shown == once * 2


def test_a_figure_that_nobody_showed_is_a_rich_result(runner: Runner) -> None:
    """And is closed, so that the next piece does not show it again."""
    code = (
        "import sys, types\n"
        "class Figure:\n"
        "    def savefig(self, file, format): file.write(format.encode())\n"
        "pyplot = types.ModuleType('matplotlib.pyplot')\n"
        "open_figures = [1]\n"
        "pyplot.get_fignums = lambda: list(open_figures)\n"
        "pyplot.figure = lambda number: Figure()\n"
        "pyplot.close = lambda which: open_figures.clear()\n"
        "sys.modules['matplotlib.pyplot'] = pyplot\n"
    )
    assert [it.data for it in runner.run(code).results] == [b"png"]
    assert runner.run("1").results == ()


def test_an_interrupt_ends_the_code_and_not_the_interpreter(runner: Runner) -> None:
    """Whatever it was doing; and one that comes too late does nothing."""
    runner.ask("import sys, time\nx = 1\nprint('up')\nwhile True: time.sleep(0.01)")
    # Where it is cannot be seen from here: it is told until it has ended.
    while not _readable(runner):
        runner.process.send_signal(signal.SIGINT)
    result = runner.answer()
    assert result.error is not None
    assert result.error.type == "KeyboardInterrupt"
    runner.process.send_signal(signal.SIGINT)
    assert runner.run("2").value == "2"


def _readable(runner: Runner) -> bool:
    import select

    assert runner.process.stdout is not None
    return bool(select.select([runner.process.stdout], [], [], 0.05)[0])


ANSWER: dict[str, Any] = {
    "value": "1",
    "error": None,
    "results": [],
    "stdout": "",
    "stderr": "",
    "stdout_truncated": False,
    "stderr_truncated": False,
}


@pytest.mark.parametrize(
    "change",
    [
        {"value": 1},
        {"error": "no"},
        {"error": {"type": 1, "message": "", "traceback": ""}},
        {"results": {}},
        {"results": [1]},
        {"results": [{"mime": "a/b", "data": "not base64!"}]},
        {"results": [{"mime": "a/b", "data": ""}] * 65},
        {"stdout": 1},
        {"stderr": "\u00fc"},
        {"stdout": "a"},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    """Code in the box can write anything in its place."""
    assert code_result(json.dumps(ANSWER).encode()) == CodeResult(value="1")
    with pytest.raises(GuestProtocolError, match="makes no sense"):
        code_result(json.dumps({**ANSWER, **change}).encode())
    with pytest.raises(GuestProtocolError):
        code_result(json.dumps({**ANSWER, "missing": None, "value": None})[:-1].encode())


@given(st.one_of(st.binary(max_size=200), st.just(b"[" * 100_000)))
def test_any_answer_is_a_result_or_refused(data: bytes) -> None:
    """Nothing else comes out."""
    with pytest.raises(GuestProtocolError):
        code_result(data)
