"""Reading what earlier runs wrote."""

from pathlib import Path

import pytest

from sdbench.disk import read_json, read_json_lines
from sdbench.errors import UserError


def test_half_a_line_at_the_end_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert list(read_json_lines(log)) == []
    log.write_text('{"a": "\u2028"}\n{"a": 2}\n{"a":', encoding="utf-8")
    assert list(read_json_lines(log)) == [{"a": "\u2028"}, {"a": 2}]
    log.write_bytes(b'{"a": 1}\n\0\0\0\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*log\.jsonl is damaged .*; remove that line"):
        list(read_json_lines(log))


@pytest.mark.parametrize("content", [b"", b"[1", b'"\xff"'])
def test_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"losses\.json is damaged .*; restore it, or move .* away"):
        read_json(path)
