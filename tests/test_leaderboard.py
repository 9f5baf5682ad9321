"""The leaderboard shows each record once, in order, and never one that is not whole."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hydra.utils import get_class
from layouts import CONF
from omegaconf import OmegaConf
from records import a_cost, a_record, some_scores

from fnabench import leaderboard
from fnabench.identity import locations
from fnabench.leaderboard_tables import UNTOLD
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


def headings(page):
    return [line for line in page.splitlines() if line.startswith("## ")]


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
    assert headings(page) == [
        "## classification on folder (made up): top1, method=knn",
        "## classification on folder (made up): top1, method=linear",
    ]
    assert len(rows(page)) == 3


def test_a_hash_of_weights_is_short_in_a_heading():
    def headed(weights):
        record = with_landmarks(16)
        return replace(record, identity=record.identity | {"task": {"class": "C", "weights": weights}}, key=weights)

    page = leaderboard.to_markdown([headed("0" * 64), headed("1" * 64)])
    assert [line.rpartition(", ")[2] for line in headings(page)] == [f"weights={'0' * 12}", f"weights={'1' * 12}"]


def of_data(num_landmarks, fingerprint, **config):
    record = with_landmarks(num_landmarks, config={"data": {"_target_": "D"} | config})
    return replace(
        record, identity=record.identity | {"data": fingerprint}, key=f"{num_landmarks}{fingerprint}{config}"
    )


def test_settings_of_the_data_are_tables_and_families_of_their_own():
    difference = Estimate(value=-0.25, low=-0.5, high=-0.1)
    comparisons = {"top1": Comparison(difference=difference, p_value=0.03, agreement=0.9)}
    asked = [
        ("a", {"ocr": None, "limit": 500}), ("b", {"ocr": "tokens.json", "limit": 500}), ("c", {"limit": 1000}),
    ]  # fmt: skip
    records = [replace(of_data(16, name, **config), comparisons=comparisons) for name, config in asked]
    page = leaderboard.to_markdown(records)
    assert {line.partition(": top1")[2] for line in headings(page)} == {
        ", data.ocr=None, data.limit=500",
        ", data.ocr=tokens.json, data.limit=500",
        ", data.ocr=None, data.limit=1000",
    }
    assert sum("]*" in row for row in rows(page)) == 3


def test_the_same_samples_are_one_table_however_they_were_asked_for():
    records = [
        of_data(16, "a", limit=None, root="/here", cache="decoded"),
        of_data(32, "a", limit=500, root="/there"),
        of_data(64, "a"),
    ]
    page = leaderboard.to_markdown(records)
    assert headings(page) == ["## classification on folder (made up): top1"]
    assert len(rows(page)) == 3


def test_two_folders_asked_for_alike_are_told_apart_by_their_content_and_not_by_their_place():
    page = leaderboard.to_markdown([of_data(16, "a", root="/here"), of_data(16, "b", root="/there")])
    assert len(set(headings(page))) == 2
    assert all(": top1, data.content=" in line for line in headings(page))
    assert "/here" not in page


def test_heads_that_were_fitted_on_other_images_are_tables_of_their_own():
    def fitted_on(content, num_landmarks):
        record = of_data(num_landmarks, "a")
        return replace(record, identity=record.identity | {"fitted_on": content}, key=f"{content}{num_landmarks}")

    records = [fitted_on("x", 16), fitted_on("x", 32), fitted_on(None, 16)]
    assert len(headings(leaderboard.to_markdown(records))) == 1
    page = leaderboard.to_markdown([*records, fitted_on("y", 16)])
    assert len(set(headings(page))) == 3
    assert all(": top1, fitted_on=" in line for line in headings(page))


def test_a_record_stands_aside_for_a_later_one_that_has_all_it_has():
    def taken(hour, code, num_rounds=10, **changes):
        record = with_landmarks(16, **({"cost": a_cost() if num_rounds else None} | changes))
        identity = record.identity | {"code": code, "probe": {"num_rounds": num_rounds}}
        created = f"2026-01-01T{hour:02}:00:00+00:00"
        return replace(record, identity=identity, created=created, key=f"{hour:02}{code}{num_rounds}")

    def left(*records):
        return sorted(row.split(" | ")[-1].rstrip(" |") for row in rows(leaderboard.to_markdown(records)))

    assert left(taken(1, "old"), taken(2, "new")) == ["02new10"]
    assert left(taken(2, "old"), taken(1, "new")) == ["02old10"], "the later one, whichever code is newer"
    assert left(taken(1, "old", 0), taken(2, "new")) == ["02new10"], "a cost more"
    assert left(taken(1, "old"), taken(2, "new", 0)) == ["01old10", "02new0"], "no cost"
    assert left(taken(1, "old", 20), taken(2, "new")) == ["01old20", "02new10"], "another cost"
    assert left(taken(1, "old"), taken(2, "new", scores={})) == ["01old10", "02new10"], "no scores"
    compared = with_landmarks(32, key="compared", exact_key="01old10")
    assert left(taken(1, "old"), taken(2, "new"), compared) == ["01old10", "02new10", "compared"], "its exact twin"
    other = taken(2, "new")
    other = replace(other, identity=other.identity | {"batch_size": 1})
    assert left(taken(1, "old"), other) == ["01old10", "02new10"], "another setting"


def test_records_without_a_fingerprint_are_told_apart_by_what_was_asked_for():
    asked = [with_landmarks(m, config={"data": {"limit": limit}}) for m, limit in ((16, 500), (16, 1000), (32, 500))]
    page = leaderboard.to_markdown([*asked, with_landmarks(64, config={})])
    assert [line.rpartition(", ")[2] for line in headings(page)] == [
        "data.limit=500", "data.limit=1000", "data.limit=None",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_place_of_data_stands_in_a_heading(path):
    assert set(locations(get_class(OmegaConf.load(path)["_target_"]))) <= set(UNTOLD)


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


def test_a_record_without_scores_does_not_choose_the_unit():
    exact = replace(an_exact_record(), status="out of memory", scores={}, cost=None)
    page = leaderboard.to_markdown([exact, with_landmarks(16, units={"top1": "nats"})])
    assert "| score (nats) |" in page
    assert "out of memory" in rows(page)[0]


def test_ratios_are_marked_where_the_times_had_not_settled():
    steady, drifting = a_cost(1.25), replace(a_cost(1.5), settled=False)
    page = leaderboard.to_markdown([with_landmarks(16, cost=steady), with_landmarks(32, cost=drifting)])
    cells = [row.split(" | ")[8:11] for row in rows(page)]
    assert cells == [
        ["1.25 [1.20, 1.30]", "1.25 [1.20, 1.30]", "1.25"],
        ["~1.50 [1.45, 1.55]", "~1.50 [1.45, 1.55]", "~1.50"],
    ]
    assert " ~ " in leaderboard.HEAD


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
