"""The pictures of a record of task=tokens and of a masking sweep, from the command line."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fnabench import __main__
from fnabench.bench.report import Table, write
from fnabench.bench.vit_tiny import COST_COLUMNS
from fnabench.figures.fidelity import error_against_cost, read_table
from fnabench.figures.masking import read_panels, start_block
from fnabench.figures.tokens import latest_record
from fnabench.store import ARRAYS, read_record

pytest.importorskip("matplotlib")
NAMES = ("growth", "rounds", "suppression", "suppression_heads", "places", "images")


@pytest.fixture
def figures(world, monkeypatch, capsys):
    """Exit code, stdout and stderr of `fnabench figures`."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["fnabench", "figures", *map(str, arguments)])
        code = 0
        try:
            __main__.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out.split(), captured.err

    return command


def test_a_record_becomes_pictures_and_a_table(world, figures):
    world.run(task="tokens", attention="exact", task__min_gap="0.01", task__rounds="3")
    (folder,) = world.records()
    code, paths, _ = figures("tokens", folder)
    assert code == 0
    assert {path.rpartition("/")[2] for path in paths} == {
        "tokens.md",
        *(f"{name}.{form}" for name in NAMES for form in ("png", "svg")),
    }
    for name in NAMES:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, f"{name} is all but empty"
    with np.load(folder / ARRAYS) as arrays:
        mean = f"| massive_norm | {arrays['massive_norm'].sum(1).mean():.2f} | "
    assert mean in (folder / "figures" / "tokens.md").read_text()


def test_a_record_without_any_such_token_has_pictures_too(world, figures):
    world.run(task="tokens", attention="exact", task__min_gap="50", task__iterative="false", task__detect_block="0")
    (folder,) = world.records()
    assert figures("tokens", folder, "--images", 0)[0] == 0


def test_without_the_images_the_other_pictures_are_drawn_and_the_lack_is_told(world, figures):
    world.run(task="tokens", attention="exact")
    (folder,) = world.records()
    world.images.rename(world.folder / "elsewhere")
    code, paths, err = figures("tokens", folder, "--out", world.folder / "out")
    assert code == 0
    assert not any("images.png" in path for path in paths)
    assert "no picture of the tokens on their images" in err
    assert (world.folder / "out" / "growth.png").is_file()


def test_a_masking_sweep_becomes_a_picture_and_a_table(world, figures):
    settings = {"attention__min_gap": "0.01", "attention__start_block": "4,5", "attention__detect_block": "4"}
    world.run("-m", attention="exact_masked", attention__tokens="massive,artifact", **settings)
    folder = world.records()[0].parent
    code, paths, _ = figures("masking", folder)
    assert (code, len(paths)) == (0, 3)
    table = (folder / "figures" / "masking.md").read_text()
    assert "| from block 4 | from block 5 |" in table
    for kept in (path for path in world.records() if path.name.startswith("exact_masked")):
        record = read_record(kept)
        row = next(line for line in table.splitlines() if f"| {record.identity['attention']['tokens']} |" in line)
        assert f"{100 * record.comparison.difference.value:+.2f} [" in row
    with Image.open(folder / "figures" / "masking.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_sweep_stands_beside_what_masking_competes_with(world, figures):
    settings = {"attention__min_gap": "0.01", "attention__start_block": "-2,-1", "attention__detect_block": "-2"}
    world.run("-m", attention="fna_masked", attention__inner__num_landmarks="5", **settings)
    world.run(attention="fna")
    world.run(attention="fna", attention__num_landmarks="6")
    world.run(attention="fna_registers", attention__inner__num_landmarks="5", attention__min_gap="0.01")
    folder = world.records()[0].parent
    (panel,) = read_panels(folder)
    assert panel.attention == "fna_masked"
    assert [start_block(record) for record in panel.runs["massive", ""]] == [4, 5]  # of 6 blocks
    assert sorted(panel.beside) == ["fna", "fna_registers"]
    assert panel.beside["fna"].identity["attention"]["num_landmarks"] == 5
    world.run(attention="fna_masked", attention__inner__num_landmarks="6", attention__start_block="5")
    assert list(read_panels(folder)[0].runs) == [
        ("massive", "min_gap=0.01, detect_block=4, inner.num_landmarks=5"),
        ("massive", "min_gap=0.7, detect_block=None, inner.num_landmarks=6"),
    ]
    code, paths, _ = figures("masking", folder, "--formats", "png")
    assert (code, [path.rpartition("/")[2] for path in paths]) == (0, ["masking.md", "masking.png"])
    table = (folder / "figures" / "masking.md").read_text()
    for record in panel.beside.values():
        assert f"| {record.attention} | - | {100 * record.comparison.difference.value:+.2f} [" in table


def test_runs_with_another_twin_are_left_out_and_told(world, figures):
    for limit in ("4", "6"):
        world.run(attention="exact_masked", data__limit=limit)
    world.run(attention="exact_masked", attention__start_block="4")
    folder = world.records()[0].parent
    code, _, err = figures("masking", folder)
    assert code == 0
    assert "1 masked runs are compared with another exact run and left out" in err


def test_the_latest_record_below_a_folder_is_drawn_and_a_sweep_with_it(world, figures):
    world.run(task="tokens", attention="exact", task__rounds="1")
    (first,) = world.records()
    world.run(task="tokens", attention="exact", task__rounds="2")
    (second,) = set(world.records()) - {first}
    assert latest_record(first.parent) == second
    assert latest_record(first) == first
    world.run(attention="exact_masked")
    (masked,) = world.results.glob("classification/*/*")
    out = world.folder / "report"
    code, _, _ = figures(
        "tokens", first.parent, "--masking", masked, "--formats", "png", "--images", 0, "--out", out
    )  # fmt: skip
    assert code == 0
    assert {path.name for path in out.iterdir()} == {
        "tokens.md", "masking.md", "masking.png", *(f"{name}.png" for name in NAMES if name != "images"),
    }  # fmt: skip
    table = (out / "tokens.md").read_text()
    with np.load(second / ARRAYS) as arrays:
        after_last = np.nanmean(arrays["norms"][:, -1, 0])
    assert f"| (after the last) | {after_last:.1f} |" in table


def costs(folder, *lines):
    """A fidelity.json with these lines of error against cost."""
    table = Table(title="Error against cost: a model", columns=COST_COLUMNS, lines=lines)
    write(folder, "fidelity", "Title", [], torch.device("cpu"), [table])
    return folder / "fidelity.json"


def test_error_against_cost_becomes_a_picture(world, figures):
    exact = ("exact", "", 0.0, 25.0, 0.8, "")
    forms = [(form, m, 1 / m**power, 0.4 * m, 0.01 * m, "")
             for form, power in (("fna", 1), ("fna_refined", 2)) for m in (16, 64)]  # fmt: skip
    path = costs(world.folder, exact, *forms)
    code, paths, _ = figures("fidelity", path, "--formats", "png")
    assert (code, paths) == (0, [str(world.folder / "figures" / "fidelity.png")])
    with Image.open(paths[0]) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    drawn = error_against_cost(read_table(path))
    for axes, cost in zip(drawn.axes, (3, 4), strict=True):
        published, refined, line = axes.lines
        assert list(zip(*published.get_data(), strict=True)) == [(each[cost], each[2]) for each in forms[:2]]
        assert list(zip(*refined.get_data(), strict=True)) == [(each[cost], each[2]) for each in forms[2:]]
        assert line.get_xdata() == [exact[cost]] * 2


def test_a_file_without_costs_is_refused_in_one_line(world, figures):
    write(world.folder, "fna", "Title", [], torch.device("cpu"))
    for name in ("fna.json", "absent.json"):
        code, paths, err = figures("fidelity", world.folder / name)
        assert (code, paths, len(err.splitlines())) == (2, [], 1)
        assert "holds no table of error against cost" in err


def test_what_is_no_record_of_the_task_is_refused_in_one_line(world, figures):
    world.run(attention="exact")
    (folder,) = world.records()
    for kind, given, reason in (
        ("tokens", folder, "give one of task=tokens"),
        ("tokens", world.folder, "holds no record"),
        ("masking", folder.parent, "holds no masked run"),
    ):
        code, paths, err = figures(kind, given)
        assert (code, paths) == (2, [])
        assert err.startswith("fnabench: ")
        assert reason in err
        assert len(err.splitlines()) == 1
