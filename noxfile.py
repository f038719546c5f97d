"""What a change must pass, one session each: ``nox -l`` lists them.

``./bootstrap.sh tests`` runs them with ``--no-venv`` in the project's own
environment, which is what makes a second run quick.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "proto", "tests"]

#: Where every branch must be taken by a test.
COVERED = (
    *("boxlite/_process.py", "boxlite/_secrets.py", "boxlite/_state.py"),
    *(
        f"boxlite/_startup/{name}.py"
        for name in (
            *("attach", "console", "crash", "directory", "exitfile", "hostmemory"),
            *("pipeline", "ready", "record", "startup", "stories"),
        )
    ),
)
GENERATED = Path("boxlite/_rpc/_generated")


def _install(session: nox.Session, *extras: str) -> None:
    if session.venv_backend != "none":
        session.install("-e", f".[{','.join(extras)}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    _install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly: the package, its tests and this file."""
    _install(session, "dev")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, real virtual machines included; arguments go to pytest."""
    _install(session, "dev")
    session.run("pytest", *session.posargs)


@nox.session
def proto(session: nox.Session) -> None:
    """Generate the messages from protos/ again, and fail if the committed ones differ.

    With ``-- --write`` it replaces the committed ones instead.
    """
    _install(session, "dev", "proto")
    protos = Path("protos").absolute()
    sources = sorted(str(path) for path in protos.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as made:
        # Elsewhere, the compiler would take our own packages and ruff settings for its own.
        with session.chdir(made):
            session.run(
                *("python", "-m", "grpc_tools.protoc", "-I", str(protos)),
                f"--python_betterproto2_out={made}",
                "--python_betterproto2_opt=client_generation=async",
                "--python_betterproto2_opt=server_generation=async",
                *sources,
            )
        if "--write" in session.posargs:
            shutil.rmtree(GENERATED)
            shutil.copytree(made, GENERATED)
        else:
            session.run(
                *("diff", "--recursive", "--exclude=__pycache__", made, str(GENERATED)),
                external=True,
            )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Give what reads a guest's bytes 5,000 inputs of each kind; arguments go to tests/fuzz.py."""
    _install(session, "dev")
    session.run("python", "tests/fuzz.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Start, kill and cancel 1,000 real boxes at random; arguments go to tests/soak.py."""
    _install(session, "dev")
    session.run("python", "tests/soak.py", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the code of a start in many ways and see that its tests notice each."""
    _install(session, "dev")
    session.run("python", "tests/mutants.py", *session.posargs)


@nox.session
def cover(session: nox.Session) -> None:
    """Demand that the tests take every branch of the race, the reports and the pipeline."""
    _install(session, "dev")
    session.run("coverage", "erase")
    session.run(
        *("coverage", "run", "-m", "pytest", "-q", "tests/unit", "tests/property"),
        *("--deselect", "tests/unit/test_kit.py", *session.posargs),
    )
    include = f"--include={','.join(COVERED)}"
    session.run("coverage", "report", "--show-missing", "--fail-under=100", include)


@nox.session
def docs(session: nox.Session) -> None:
    """Compare docs/crash-reports.md with what the tests say; with ``-- --write``, replace it."""
    _install(session, "dev")
    env = {"BOXLITE_WRITE_DOCS": "1"} if "--write" in session.posargs else {}
    session.run("pytest", "-q", "tests/unit/test_crash_stories.py", env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: arguments go to ``python -m benchmarks``, such as ``--base REV``."""
    _install(session, "dev", "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)
