"""Text files and streams have the same content on every machine, whatever its encoding and its ends of lines."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ROOT, git

SOURCES = sorted(
    [ROOT / "noxfile.py", *(path for name in ("sdbench", "distillation", "suites", "tests") for path in (ROOT / name).rglob("*.py"))]
)
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # an environment in which Python's default encoding is ASCII


def leaves_encoding_open(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the machine's encoding. Ruff's rule for it overlooks paths whose type it cannot infer."""
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in options:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    mode = call.args[0] if call.args else options.get("mode", ast.Constant("r"))
    return (
        (name == "read_text" and not call.args)
        or name == "write_text"
        or (name == "open" and isinstance(mode, ast.Constant) and "b" not in str(mode.value))
        or any(isinstance(value := options.get(option), ast.Constant) and value.value is True for option in ("text", "universal_newlines"))
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("path.read_text()", True),
        ("path().write_text(content)", True),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open(mode='w')", True),
        ("subprocess.run(words, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("distribution.read_text('direct_url.json')", False),  # its argument is a file, which importlib reads as UTF-8
        ("path.open('rb')", False),
        ("path.open('a', encoding='utf-8')", False),
        ("Image.open(path)", False),
        ("prepare(text=prompt)", False),
        ("subprocess.run(words, encoding='utf-8')", False),
    ],
)
def test_calls_that_leave_the_encoding_open_are_found(code: str, expected: bool) -> None:
    (call,) = (node for node in [ast.parse(code, mode="eval").body] if isinstance(node, ast.Call))
    assert leaves_encoding_open(call) == expected


def test_every_text_file_and_pipe_names_its_encoding() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    calls = ((path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [f"{path.relative_to(ROOT)}:{call.lineno}" for path, call in calls if leaves_encoding_open(call)] == []


def test_configuration_is_read_the_same_under_another_encoding(tmp_path: Path) -> None:
    content = {"ë": "a café"}
    (tmp_path / "vocab.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    code = (
        "import json, sys; from pathlib import Path; from sdbench.models.files import read_model_json; "
        "print(json.dumps(read_model_json(Path(sys.argv[1]))))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "vocab.json")]
    environment = {**os.environ, **ASCII, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout) == content


def test_git_leaves_the_ends_of_lines_as_their_digests_expect(tmp_path: Path) -> None:
    files = {".gitattributes": (ROOT / ".gitattributes").read_bytes(), "record.json": b"{\n}\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    git(tmp_path, "init")
    git(tmp_path, "config", "core.autocrlf", "true")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "test: files")
    for name in files:
        (tmp_path / name).unlink()
    git(tmp_path, "checkout", ".")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
