"""The leaderboard shows each record once, in order, and never one that is not whole."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from records import a_cost, a_record, some_scores

from fnabench import leaderboard
from fnabench.statistics import Comparison, Estimate
from fnabench.store import Store


def with_landmarks(num_landmarks, **changes):
    attention = {"class": "fnabench.attention.fna.Fna", "num_landmarks": num_landmarks, "features": "q"}
    return a_record(identity={"attention": attention, "dtype": "float32"}, **changes)


def an_exact_record():
    identity = {"attention": {"class": "fnabench.attention.exact.Exact"}, "dtype": "float32"}
    return a_record(attention="exact", identity=identity, comparisons={}, layers=tuple(range(6)))


def rows(page):
    return [line for line in page.splitlines() if line.startswith("| timm")]


def test_exact_comes_first_and_every_record_has_a_row():
    page = leaderboard.to_markdown([with_landmarks(16), with_landmarks(32), an_exact_record()])
    assert [row.split(" | ")[3] for row in rows(page)] == ["exact", "fna num_landmarks=16", "fna num_landmarks=32"]


def test_a_row_shows_the_numbers_of_its_record():
    (row,) = rows(leaderboard.to_markdown([with_landmarks(16, cost=a_cost(1.25))]))
    for cell in ("64x64", "3/6", "75.00 of 4", "-25.00 [-50.00, +0.00]", "1.25 [1.20, 1.30]", "75.0", "0.00"):
        assert cell in row


def test_protocols_of_a_task_are_tables_of_their_own():
    def by(method):
        record = with_landmarks(16)
        return replace(
            record, identity=record.identity | {"task": {"class": "C", "method": method, "k": 20}}, key=method
        )

    page = leaderboard.to_markdown([by("knn"), by("linear"), by("knn")])
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## classification on folder (made up): top1, method=knn",
        "## classification on folder (made up): top1, method=linear",
    ]
    assert len(rows(page)) == 3


def test_one_model_with_other_settings_is_told_apart():
    def scoped(scope, edge):
        record = an_exact_record()
        model = {"class": "M", "scope": scope, "image_size": edge, "weights": "0123456789abcdef"}
        return replace(record, identity=record.identity | {"model": model}, key=f"{scope}{edge}")

    page = leaderboard.to_markdown([scoped("vision", 64), scoped("vision", 96), scoped("decoder", 64)])
    assert {row.split(" | ")[0] for row in rows(page)} == {"| timm scope=vision", "| timm scope=decoder"}


def test_a_score_stands_under_its_unit():
    assert "| score (%) |" in leaderboard.to_markdown([with_landmarks(16)])
    page = leaderboard.to_markdown([with_landmarks(16, units={"top1": "tokens"})])
    assert "| score (tokens) |" in page
    assert "| 0.75 of 4 |" in page
    assert "| 0.75000 of 4 |" in leaderboard.to_markdown([with_landmarks(16, units={"top1": "nats"})])


def test_a_star_needs_significance_after_correction():
    def compared(p_value):
        difference = Estimate(value=-0.25, low=-0.5, high=-0.1)
        return Comparison(difference=difference, p_value=p_value, agreement=0.9)

    alone = rows(leaderboard.to_markdown([with_landmarks(16, comparisons={"top1": compared(0.03)})]))
    assert "]*" in alone[0]
    family = [with_landmarks(m, comparisons={"top1": compared(0.03)}) for m in (16, 32)]
    assert not any("]*" in row for row in rows(leaderboard.to_markdown(family)))


def test_a_record_without_cost_or_scores_has_dashes():
    (row,) = rows(leaderboard.to_markdown([a_record(status="out of memory", scores={}, comparisons={}, cost=None)]))
    assert "out of memory" in row
    assert row.count(" - ") >= 6


def test_the_command_names_a_corrupt_record_and_skips_it(tmp_path, monkeypatch, capsys):
    store = Store(tmp_path / "results")
    good, bad = (store.save(with_landmarks(m), some_scores(), {}) for m in (16, 32))
    path = store.folder(bad) / "record.json"
    path.write_text(path.read_text()[:-40])
    monkeypatch.setattr(sys, "argv", ["fnabench leaderboard", str(store.root)])
    leaderboard.main()
    out, err = capsys.readouterr()
    assert "1 record, 1 skipped" in out
    assert str(store.folder(bad)) in err
    page = (store.root / "LEADERBOARD.md").read_text()
    assert [row.split(" | ")[-1] for row in rows(page)] == [f"{good.key[:12]} |"]
    assert "## Skipped" in page


def test_a_folder_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fnabench leaderboard", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        leaderboard.main()
    assert stop.value.code == 2
    assert "is not a folder" in capsys.readouterr().err
