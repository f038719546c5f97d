"""The interpreter in the box: runs pieces of code and tells what came of each.

It is given to the box's own Python as a program (``python3 -c``), so it uses the
standard library alone, of any Python from 3.8 on. Requests and answers are JSON, each
behind its length in four bytes, big end first; ``code_box.py`` is the other end.

Whatever the code prints, from this process or a child of it, goes to files in memory
and is read when the code has ended.
"""

from __future__ import annotations

import ast
import base64
import json
import linecache
import os
import signal
import struct
import sys
import traceback

TYPE_CHECKING = False  # importing typing would delay the first piece of code
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

#: What notebooks call the ways in which a value shows itself.
RICH = {
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "image/svg+xml": "_repr_svg_",
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "application/json": "_repr_json_",
}
#: The same for figures of matplotlib that nobody has shown.
PYPLOT = "matplotlib.pyplot"
#: No more rich results of one piece of code than this.
RESULTS = 64


class Interpreter:
    """One namespace, and the pieces of code that were run in it."""

    def __init__(self) -> None:
        self.count = 0
        self.results: list[dict[str, str]] = []
        self.namespace: dict[str, Any] = {}
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.namespace = {"__name__": "__main__", "__builtins__": __builtins__}
        self.namespace["display"] = self.display

    def display(self, *values: object) -> None:
        """Add rich results: for the code to call."""
        for value in values:
            self.results.extend(rich(value))

    def run(self, code: str, limit: int) -> dict[str, Any]:
        """Run a piece of code, and return what came of it."""
        self.count += 1
        self.results = []
        name = "<code %d>" % self.count
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        value = error = None
        outputs = [os.memfd_create("stdout"), os.memfd_create("stderr")]
        for number, fd in enumerate(outputs, 1):
            os.dup2(fd, number)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            value = self.evaluate(code, name)
        except BaseException as exc:
            error = describe(exc)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        answer: dict[str, Any] = {"value": value, "error": error, "results": self.results[:RESULTS]}
        for stream, fd in zip(("stdout", "stderr"), outputs):
            size = os.fstat(fd).st_size
            answer[stream] = encode(os.pread(fd, limit, 0))
            answer[stream + "_truncated"] = size > limit
            os.close(fd)
        return answer

    def evaluate(self, code: str, name: str) -> str | None:
        """Execute the code, and return how its last expression shows itself."""
        tree = ast.parse(code, name)
        end = tree.body[-1] if tree.body else None
        last = None
        if isinstance(end, ast.Expr):
            tree.body.pop()
            last = ast.Expression(end.value)
        exec(compile(tree, name, "exec"), self.namespace)
        value = None if last is None else eval(compile(last, name, "eval"), self.namespace)
        if PYPLOT in sys.modules:
            self.results.extend(figures(sys.modules[PYPLOT]))
        if value is None:
            return None
        self.namespace["_"] = value
        self.display(value)
        return repr(value)


def rich(value: object) -> list[dict[str, str]]:
    """Return the ways in which a value shows itself, but for its repr()."""
    found = []
    for mime, name in RICH.items():
        method = getattr(type(value), name, None)
        data = None if method is None else method(value)
        if data is None:
            continue
        if mime == "application/json":
            data = json.dumps(data)
        found.append({"mime": mime, "data": encode(data)})
    return found


def figures(pyplot: ModuleType) -> list[dict[str, str]]:
    """Return the open figures, and close them."""
    import io

    found = []
    for number in pyplot.get_fignums():
        image = io.BytesIO()
        pyplot.figure(number).savefig(image, format="png")
        found.append({"mime": "image/png", "data": encode(image.getvalue())})
    pyplot.close("all")
    return found


def encode(data: str | bytes) -> str:
    """Return bytes or text as JSON can carry them."""
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
    return base64.b64encode(raw).decode("ascii")


def describe(exc: BaseException) -> dict[str, str]:
    """Return an exception, with its traceback from the code on."""
    trace = exc.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<code "):
        trace = trace.tb_next
    lines = traceback.format_exception(type(exc), exc, trace)
    return {"type": type(exc).__name__, "message": str(exc), "traceback": "".join(lines)}


def main() -> None:
    """Answer requests until there are no more."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interpreter = Interpreter()
    while True:
        head = requests.read(4)
        if len(head) < 4:
            return
        request = json.loads(requests.read(struct.unpack(">I", head)[0]))
        if request["fresh"]:
            interpreter.forget()
        answer = interpreter.run(request["code"], request["limit"])
        for number in (1, 2):
            os.dup2(null, number)
        data = json.dumps(answer).encode()
        answers.write(struct.pack(">I", len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    main()
