"""The parts of `benchmarks/gradient_flow.py` that its figures hang on."""

from __future__ import annotations

from pathlib import Path

import gradient_flow
import pytest
import record
import torch
from cases import captured_case

from fxprune import criteria
from fxprune.loss import classification
from fxprune.masks import cut, kept_count
from fxprune.scoring import prepare


def test_every_sparsity_finds_the_weights_that_synflow_had_left_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_flow, "SYNFLOW_ROUNDS", 10)
    captured, weights = captured_case("conv_net")
    scoring = prepare(captured, weights, None, classification(), live=False, mode="eval")
    lasted = gradient_flow.synflow(scoring)
    flat = torch.cat([count.flatten() for count in lasted.values()])
    for sparsity in gradient_flow.SPARSITIES:
        kept = kept_count(len(flat), sparsity)
        threshold = flat.sort(descending=True).values[kept - 1]
        assert int((flat >= threshold).sum()) == kept  # no round straddles it
    first = criteria.get("synflow").score(scoring)  # what went in the first round was lowest in it
    scores = torch.cat([score.flatten() for score in first.values()])
    assert scores[flat == 0].max() <= scores[flat > 0].min()
    assert cut(lasted, 0.995).kept == kept_count(len(flat), 0.995)


def test_a_torn_line_costs_one_row(tmp_path: Path) -> None:
    file = tmp_path / "flow.jsonl"
    row = {"network": "n", "seed": 0, "sparsity": 0.9, "method": "grasp", "temperature": 1.0, "norm": 1.0}
    record.append_line(file, {"command": "c"})
    record.append_line(file, row)
    with file.open("a") as out:
        out.write('{"network": "n", "se')
    assert gradient_flow.read_rows(file) == [row]
    record.append_line(file, {**row, "seed": 1})
    assert [found["seed"] for found in gradient_flow.read_rows(file)] == [0, 1]


def test_the_table_says_where_grasp_is_not_best() -> None:
    def rows(method: str, *norms: float) -> list[dict[str, object]]:
        head = {"network": "net", "sparsity": 0.98, "method": method, "temperature": 1.0, "data": "digits"}
        return [{**head, "seed": seed, "norm": norm} for seed, norm in enumerate(norms)]

    found = rows("grasp", 3, 5, 4, 3, 5) + rows("snip", 1, 6, 1, 1, 1) + rows("|grasp|", 7, 8, 9, 7, 9)
    other = [{**row, "temperature": 200.0, "norm": 99.0} for row in rows("snip", 1)]
    text = "\n".join(gradient_flow.table(found + other, temperature=1.0))
    assert "| 98% | 4 (3 to 5) | **8 (7 to 9)** |  | 2 (1 to 6) |  |  |  |" in text
    assert r"GraSP is **not** the largest: below \|grasp\| (0 of 5); above snip (4 of 5)." in text
