"""The bench of both forms: its planted sinks are what it says, and its tables say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from builders import attention_inputs, softmax_attention

from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.selection import Selection
from fnabench.bench.alternatives import ALTERNATIVES
from fnabench.bench.bounds import bounds, over_naive
from fnabench.bench.fidelity import ABLATION, OFFICIAL
from fnabench.bench.inputs import grouped_inputs, random_inputs
from fnabench.bench.report import Row, Table, compare_arms, write
from fnabench.bench.sinks import plant
from fnabench.cost import core_arm
from fnabench.statistics import Estimate
from fnabench.timing import Repeat, Timings


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
def test_a_planted_sink_takes_its_share_in_every_head(mass: float) -> None:
    inputs = attention_inputs(tokens=60, head_dim=16)
    inputs = replace(inputs, q=inputs.q + 1)
    changed = plant(inputs, mass)
    moved = (changed.k != inputs.k).any(-1)
    assert (moved.sum(-1) == 1).all()
    received = softmax_attention(changed.q, changed.k, torch.eye(60).expand(2, 3, 60, 60), changed.scale).mean(2)
    torch.testing.assert_close(received[moved], torch.full((6,), mass, dtype=torch.float64), atol=1e-3, rtol=0)


def test_the_ablation_begins_with_the_published_form_and_ends_with_the_default() -> None:
    (inputs,) = random_inputs(100, num_layers=1)
    official, fna = (core(replace(inputs, memo={})) for core in (FnaRefined(**OFFICIAL), Fna()))
    torch.testing.assert_close(official, fna, atol=1e-5, rtol=1e-5)
    assert FnaRefined() in [FnaRefined(**options) for options in ABLATION.values()]  # type: ignore[arg-type]


def test_the_alternatives_differ_from_the_default_and_from_one_another() -> None:
    forms = list(ALTERNATIVES.values())
    assert forms[0] == FnaRefined()
    assert len(set(forms)) == len(forms)


def test_the_bounds_are_relative_to_the_mean_of_the_landmarks_values() -> None:
    inputs = grouped_inputs(tokens=30)
    assert over_naive(FnaRefined(num_landmarks=30), inputs) < 1e-4  # as many landmarks as tokens are exact
    assert over_naive(FnaRefined(num_landmarks=4, inverse="ridge", ridge=1e7), inputs) < 1
    constant = replace(inputs, q=0 * inputs.q)  # every query attends to all tokens alike
    assert over_naive(Fna(num_landmarks=4), constant) < 1e-4


def test_the_bounds_have_a_line_for_each_form_on_each_kind_of_tokens() -> None:
    table = bounds(num_draws=3)
    assert len({(kind, form) for kind, form, *_ in table.lines}) == len(table.lines) == 20
    for _, _, middle, largest, _ in table.lines:
        assert isinstance(middle, float)
        assert isinstance(largest, float)
        assert 0 < middle <= largest


def test_the_layers_of_a_forward_choose_their_landmarks_once() -> None:
    with patch.object(Selection, "choose", autospec=True, side_effect=Selection.choose) as choose:
        core_arm(FnaRefined(), random_inputs(100, num_layers=3)).run()
    assert choose.call_count == 1


def test_tables_stand_in_both_files(tmp_path) -> None:
    table = Table(title="Errors", columns=("form", "KL"), lines=[("fna", 0.0123456), ("refined", 1e-5)])
    path = write(tmp_path, "name", "Title", [], torch.device("cpu"), [table])
    assert "| fna | 0.01235 |\n| refined | 1e-05 |" in path.read_text()
    (read,) = json.loads((tmp_path / "name.json").read_text())["tables"]
    assert read["lines"] == [["fna", 0.0123456], ["refined", 1e-5]]


def test_a_row_shows_the_median_of_an_even_number_of_rounds() -> None:
    times = {"exact": (10.0, 20.0, 40.0, 80.0), "fna": (1.0, 2.0, 3.0, 5.0)}
    repeats = tuple(
        Repeat(arm=arm, round=number, wall_ms=wall_ms, device_ms=None)
        for arm, all_ms in times.items()
        for number, wall_ms in enumerate(all_ms)
    )
    row = compare_arms("N=1025", Timings(repeats=repeats, num_warm_up_rounds=6, settled=True), "exact", "fna")
    assert (row.baseline_ms, row.arm_ms) == (30, 2.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(4.6, 5.0, "met"), (4.0, 4.4, "missed"), (4.4, 4.6, "undecided"), (4.5, 5.0, "undecided")],
)
def test_a_goal_says_whether_it_was_met(low: float, high: float, verdict: str, tmp_path) -> None:
    ratio = Estimate(value=(low + high) / 2, low=low, high=high)
    row = Row(what="N=1025", baseline="exact", arm="fna", baseline_ms=9.0, arm_ms=2.0, ratio=ratio, goal="at least 4.5")
    without = replace(row, goal="")
    text = write(tmp_path, "name", "Title", [row, without], torch.device("cpu")).read_text()
    assert f"| {ratio} | at least 4.5: {verdict} |\n" in text
    assert f"| {ratio} |  |\n" in text
    assert json.loads((tmp_path / "name.json").read_text())["rows"][0]["goal"] == "at least 4.5"
