"""The project's verbs: `nox -s benchmark`, `tests`, `lowest`, `web`, `peers`, `lint`, `distill`, `gate`, `calibrate`, `speed`, `scenes`.

Each builds what it needs.
"""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]


def _install(session: nox.Session, *groups: str) -> None:
    session.install("-e", ".", *(word for group in groups for word in ("--group", group)))
    # uv compiles nothing at installation; without caches each measuring process would compile PyTorch for 8 s.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure every model of a profile and write results/LEADERBOARD.md: nox -s benchmark -- [--profile NAME] [--dry-run]."""
    _install(session)
    session.run("sdbench", "benchmark", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests in up to four processes: nox -s tests; with pytest's options, such as -m slow, in one unless -n says more."""
    _install(session, "test")
    session.run("pytest", *(session.posargs or ["-n", str(min(4, os.cpu_count() or 1))]))


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Compare set metrics with the libraries that they are named after: nox -s peers -- [pytest's options]."""
    _install(session, "test", "peers")
    session.run("pytest", "tests/encoders", "tests/metrics", *session.posargs)


@nox.session(default=False, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run the tests with the oldest versions that pyproject.toml allows: nox -s lowest -- [pytest's options]."""
    session.install("--resolution", "lowest-direct", "-e", ".", "--group", "test")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types: of the packages, suites, tests and this file alike."""
    _install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(default=False)
def distill(session: nox.Session) -> None:
    """Regenerate a student: nox -s distill -- vega [--out FOLDER] [--dry-run]."""
    _install(session)
    # After Ctrl-C, training finishes its step and saves it.
    session.run("distillation", "run", *session.posargs, interrupt_timeout=600)


@nox.session(default=False)
def gate(session: nox.Session) -> None:
    """Hold back a regressed checkpoint: nox -s gate -- CANDIDATE --baseline BASELINE. Nox exits with 0 for a pass, else with 1."""
    _install(session)
    session.run("sdbench", "gate", *session.posargs)


@nox.session(default=False)
def calibrate(session: nox.Session) -> None:
    """Measure how often the gate errs on the committed pool of scores: nox -s calibrate -- [--draws N]; -- pool draws that pool again."""
    _install(session)
    step = [] if session.posargs[:1] == ["pool"] else ["judge"]
    session.run("python", "suites/calibrate_gate.py", *step, *session.posargs)


@nox.session(default=False)
def web(session: nox.Session) -> None:
    """Try the report in a headless chromium: nox -s web -- [pytest's options]; nox -s web -- --images draws the README's images."""
    _install(session, "web")
    if session.posargs == ["--images"]:
        session.run("python", "tests/readme_images.py", "results")
    else:
        session.run("pytest", "-m", "browser", "tests/report", *session.posargs)


@nox.session(default=False)
def speed(session: nox.Session) -> None:
    """Time the harness itself against its peers, as ratios: nox -s speed -- [pytest's options]."""
    _install(session, "web")
    files = sorted(map(str, Path("suites").glob("speed_*.py")))
    session.run("pytest", *files, "-s", "--benchmark-columns=median,iqr,rounds", *session.posargs)


@nox.session(default=False)
def scenes(session: nox.Session) -> None:
    """Train the embedded family from scratch and install its weights: hours on two cores; a killed run resumes."""
    _install(session)
    work = "results/runs/training"
    session.run("sdbench", "scenes", "train", "--work", work, *session.posargs, interrupt_timeout=600)
    runs = {"ssd-1b": ["run", "ssd-1b", "--work", work], "vega": ["run", "vega", "--work", work], "vega-pruned": ["prune", "vega"]}
    for student, words in runs.items():
        out = Path(work) / "out" / "unets" / student
        if not out.exists():  # a finished student stays when a killed run goes on
            teacher_and_out = "--teacher", f"{work}/out/pipeline", "--out", str(out), "--unet-only"
            session.run("distillation", *words, *teacher_and_out, interrupt_timeout=600)
    session.run("sdbench", "scenes", "ship", "--work", work)
