"""What the doctor finds of packages, compilers and folders."""

import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdbench import cli
from sdbench.doctor import checks


def test_old_or_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy>=2.0", "torch>=99", "nowhere>=1", "scipy"])
    found = [*checks._packages()]
    assert [(finding.is_ok, finding.is_fatal) for finding in found] == [(False, True), (False, True), (True, True)]
    assert re.match(r"torch 2\.\S+, needed is torch>=99: pip install 'torch>=99'$", found[0].text)
    assert found[1].text.startswith("nowhere is not installed, needed is nowhere>=1: pip install")
    assert found[2].text == f"packages: numpy {metadata.version('numpy')}, scipy {metadata.version('scipy')}"
    monkeypatch.undo()
    assert [finding.is_ok for finding in checks._packages()] == [True]
    monkeypatch.setattr(metadata, "requires", lambda _: metadata.version("nowhere"))
    assert [finding.is_fatal for finding in checks._packages()] == [False]


WELL, LACKING, BAD = (
    checks.Finding(True, "well", is_fatal=True),
    checks.Finding(False, "lacking"),
    checks.Finding(False, "bad", is_fatal=True),
)


@pytest.mark.parametrize(
    ("findings", "last", "code"),
    [
        ([WELL], "must be put right (BAD): nothing; lacking for some commands (--): nothing", 0),
        ([LACKING, WELL, LACKING], "must be put right (BAD): nothing; lacking for some commands (--): 2", 0),
        ([BAD, LACKING, WELL], "must be put right (BAD): 1; lacking for some commands (--): 1", 2),
    ],
)
def test_doctor_ends_with_how_much_is_wrong(
    findings: list[checks.Finding], last: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "examine", lambda *_: iter(findings))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_doctor_tells_what_compiled_settings_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "my-cc"
    compiler.touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", str(compiler))
    assert checks._compiler().is_ok
    monkeypatch.delenv("CC")
    (tmp_path / "Python.h").unlink()
    finding = checks._compiler()
    assert (finding.is_ok, finding.is_fatal) == (False, False)
    assert "without a C compiler and Python's headers" in finding.text


def test_doctor_checks_the_given_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_metrics", lambda: iter(()))
    monkeypatch.setattr(checks, "_published_values", lambda: iter(()))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=40 * 10**9))
    found = {finding.text for finding in checks.examine(tmp_path / "new" / "results", tmp_path / "away")}
    assert f"folder {tmp_path}/new/results can be written" in found
    assert f"40 GB of disk free for {tmp_path}/away" in found


def test_doctor_finds_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    finding = checks._writable(tmp_path / "results" / "runs", "--runs")
    assert (finding.is_ok, finding.text.endswith("results/runs cannot be written; name another with --runs")) == (False, True)
