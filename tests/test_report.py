"""The table of a run shows every number in its unit."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import a_record

from fnabench.report import print_table
from fnabench.run import Outcome
from fnabench.statistics import Estimate


@pytest.mark.parametrize(
    ("units", "row"), [({"top1": "tokens"}, "top1 (tokens) 3.94"), ({"top1": "nats"}, "top1 (nats) 3.94000")]
)
def test_a_run_out_of_memory_shows_the_score_of_exact_attention_in_its_unit(
    units: dict[str, str], row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    score = Estimate(value=3.94, low=3.5, high=4.5)
    exact = a_record(attention="exact", units=units, scores={"top1": score}, comparisons={})
    hungry = a_record(status="out of memory", scores={}, comparisons={}, cost=None)
    print_table(Outcome(record=hungry, exact=exact, folder=Path("here"), is_new=True), to_stderr=False)
    cells = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{row} out of memory -" in cells


def test_a_score_without_a_unit_is_a_percentage(capsys: pytest.CaptureFixture[str]) -> None:
    hungry = a_record(status="out of memory", scores={}, comparisons={}, cost=None)
    exact = a_record(attention="exact", comparisons={})
    print_table(Outcome(record=hungry, exact=exact, folder=Path("here"), is_new=True), to_stderr=False)
    assert "top1 (%) 75.00 out of memory" in " ".join(capsys.readouterr().out.replace("│", " ").split())
