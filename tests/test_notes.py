"""Progress bars: lively on a terminal, rare in a log."""

import io
import sys
from pathlib import Path

import pytest
from commandline import ROOT, run_in_process

from sdbench.notes import print_note, progress


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]


def replace_stderr(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Stream:
    for name in ("stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, stream)
    return stream


def drawn_counts(*, is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The counts that a bar of three rounds shows, each with a new postfix and a note before it."""
    stream = replace_stderr(Stream(is_terminal=is_terminal), monkeypatch)
    with progress(total=3, desc="probes") as bar:
        for number in range(3):
            bar.set_postfix_str(f"round {number}")
            print_note("hot")
            bar.update()
    return [line.split("|")[2].split()[0] for line in stream.getvalue().split("\r") if "probes" in line]


def test_forced_redraws_are_seen_on_a_terminal_but_do_not_fill_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn_counts(is_terminal=False, monkeypatch=monkeypatch) == ["0/3", "3/3"]
    assert drawn_counts(is_terminal=True, monkeypatch=monkeypatch) == ["0/3", "0/3", "0/3", "1/3", "1/3", "2/3", "2/3", "3/3"]


@pytest.mark.parametrize(("is_terminal", "interval_s"), [(True, 1), (False, 60)])
def test_interval_is_longer_in_a_log_unless_the_user_sets_it(is_terminal: bool, interval_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    replace_stderr(Stream(is_terminal=is_terminal), monkeypatch)
    with progress(total=1) as bar:
        assert bar.mininterval == interval_s
    monkeypatch.setenv("TQDM_MININTERVAL", "0.5")
    with progress(total=1) as bar:
        assert bar.mininterval == 0.5


def test_a_notebook_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.setattr(sys, "stderr", Stream(is_terminal=False))
    with progress(total=1) as bar:
        assert bar.mininterval == 1


@pytest.mark.parametrize(("variable", "disable", "expected"), [("", False, True), ("", True, False), ("1", False, False)])
def test_bar_is_disabled_by_the_caller_or_by_the_user(
    variable: str, disable: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", variable)
    code = f"from sdbench.notes import progress\nfor _ in progress(range(2), desc='rounds', disable={disable}): pass"
    assert ("rounds: 100%" in run_in_process(code, tmp_path).stderr) == expected


def test_all_bars_are_made_here() -> None:
    modules = (path for package in ("sdbench", "distillation") for path in (ROOT / package).rglob("*.py"))
    assert [path.name for path in modules if "import tqdm" in path.read_text(encoding="utf-8")] == ["notes.py"]


def test_without_stderr_notes_and_bars_go_nowhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    print_note("lost")
    assert list(progress([1, 2])) == [1, 2]
    assert capsys.readouterr().out == ""
