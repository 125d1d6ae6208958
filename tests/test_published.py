"""Published tables are what the committed records say: tables are made, never typed, and never left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import robustness

from fxprune.compat import table
from fxprune.compat.results import ROWS
from fxprune.rows import read_rows

ROOT = Path(__file__).parent.parent
MATRIX = ROOT / "model_zoo" / "compat"


@pytest.fixture(scope="module")
def entries() -> list[table.Entry]:
    return table.entries(read_rows(sorted((MATRIX / "results").glob("*.jsonl")), ROWS))


def test_pass_rates_in_the_readme(entries: list[table.Entry], tmp_path: Path) -> None:
    published = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(published, encoding="utf-8")
    table.update(tmp_path / "README.md", entries)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == published


def test_tables_of_the_matrix(entries: list[table.Entry]) -> None:
    assert (MATRIX / "table.md").read_text(encoding="utf-8") == table.markdown(entries)
    assert (MATRIX / "index.html").read_text(encoding="utf-8") == table.html(entries)


def test_the_table_of_what_it_has_been_put_through() -> None:
    records = sorted((ROOT / "benchmarks" / "results").glob("*.json*"))
    begin, end = robustness.MARKS
    published = (ROOT / "README.md").read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert published == robustness.table(records) + "\n"
