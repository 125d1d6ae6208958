"""Rows in a file that only grows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fxprune import rows
from fxprune.errors import ResultsError
from fxprune.rows import Kind, RowFile, read_rows

ROOT = Path(__file__).parent.parent
ROWS = Kind("a test", {"model": str})


def row_of(model: str, at: str = "1") -> dict[str, Any]:
    return {"model": model, "at": at}


def test_rows_are_read_back_and_added_to(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "rows.jsonl"
    with RowFile(file, ROWS) as kept:
        kept.append(row_of("timm:net0"))
    with RowFile(file, ROWS, resume=True) as kept:
        assert [row["model"] for row in kept.rows] == ["timm:net0"]
        kept.append(row_of("timm:net1", at="2"))
        assert len(kept.rows) == 2
    assert [row["model"] for row in read_rows([file], ROWS)] == ["timm:net0", "timm:net1"]


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = json.dumps(row_of("timm:net0")) + "\n"
    file.write_text(whole + json.dumps(row_of("timm:net1"))[:-9])
    assert len(read_rows([file], ROWS)) == 1
    with RowFile(file, ROWS, resume=True) as kept:
        kept.append(row_of("timm:net2"))
    assert file.read_text().startswith(whole)
    assert [row["model"] for row in read_rows([file], ROWS)] == ["timm:net0", "timm:net2"]


def test_a_second_run_on_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with RowFile(file, ROWS), pytest.raises(ResultsError, match="another run writes to this file"):
        RowFile(file, ROWS, resume=True)
    with RowFile(file, ROWS):
        pass  # the first one is over


def test_a_file_with_rows_is_not_added_to_by_chance(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row_of("timm:net0")) + "\n")
    with pytest.raises(ResultsError, match="has 1 rows; --resume goes on with it"):
        RowFile(file, ROWS)
    assert len(read_rows([file], ROWS)) == 1


@pytest.mark.parametrize("line", ["no JSON", "[1, 2]", '{"model": "timm:net0"}'])
def test_lines_that_are_no_rows_are_told(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row_of('timm:net0'))}\n{line}\n")
    with pytest.raises(ResultsError, match=r"rows.jsonl, line 2: expected a row"):
        read_rows([file], ROWS)
    with pytest.raises(ResultsError, match="cannot read"):
        read_rows([tmp_path / "none"], ROWS)


def test_version_says_which_code_ran() -> None:
    version = rows.own_version()
    assert version.startswith("0.1.0+")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert version.partition("+")[2].partition(".")[0] == commit[:9]
