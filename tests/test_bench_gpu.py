"""The benchmark of the kernels, as far as it runs without a GPU: small and in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from on_kernels import DEVICE, NEEDS_KERNELS, UNREAD_PADDING

from fnabench.attention.fna import Fna
from fnabench.bench import kernel_tests
from fnabench.bench.attempts import MOST_SECONDS, Report
from fnabench.bench.gpu import Case, compare_forms, compare_models, profile_kernels
from fnabench.bench.launches import launches
from fnabench.bench.report import Note, Table, write

SMALL = Case(
    num_tokens=20, batch=1, num_heads=1, head_dim=16, num_landmarks=5, num_layers=1, dtype=torch.float32, device=DEVICE
)
PASSED = Note(what="tests", finding="all passed")
pytestmark = UNREAD_PADDING


@NEEDS_KERNELS
@torch.inference_mode()
def test_exact_attention_is_timed_beside_every_other_form(tmp_path) -> None:
    rows = list(compare_forms(SMALL, num_rounds=1))
    assert {row.arm for row in rows} >= {
        "fna",
        "plain",
        "fused",
        "variant",
        "variant, not fused",
        "variant, selection alone",
        "memory alone",
    }
    assert all(row.arm_ms > 0 and row.ratio.value > 0 for row in rows)
    table = write(tmp_path, "gpu", "Kernels", rows, DEVICE, notes=[PASSED]).read_text()
    assert "* tests: all passed" in table
    assert "| plain |" in table


@NEEDS_KERNELS
@torch.inference_mode()
def test_the_profile_says_how_far_the_kernels_are_from_the_plain_form() -> None:
    notes = {note.what: note for note in profile_kernels(SMALL)}
    assert set(notes) == {
        "N=20, selection", "N=20, the variant's selection", "N=20, a layer", "N=20, fused against plain",
    }  # fmt: skip
    assert not any(note.is_failure for note in notes.values())
    assert "relative difference " in notes["N=20, fused against plain"].finding


@torch.inference_mode()
def test_a_whole_model_reaches_a_share_of_the_ceiling() -> None:
    rows = list(compare_models("vit_tiny_patch16_224", 144, SMALL, num_rounds=1))
    assert [(row.baseline, row.arm, row.goal) for row in rows] == [
        ("exact", "variant", ""), ("exact", "free", ""), ("free", "variant", "at least 0.95"),
    ]  # fmt: skip
    assert rows[2].what == "forward, vit_tiny_patch16_224, 144 px, half of the layers, M=64: share of the ceiling"
    assert rows[2].baseline_ms == rows[1].arm_ms > 0


@NEEDS_KERNELS
@torch.inference_mode()
def test_a_form_that_fails_is_noted_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(Fna, "__call__", fail)
    failed, *rows = compare_forms(SMALL, num_rounds=1)
    assert failed == Note(what="attention, N=20: fna", finding="FAILED: RuntimeError: no kernel image", is_failure=True)
    assert {"plain", "fused", "variant"} <= {row.arm for row in rows}


def test_a_step_that_fails_leaves_what_it_found_and_the_next_one_runs(tmp_path: Path, capsys) -> None:
    def breaks() -> Iterator[Note]:
        yield Note(what="first", finding="found")
        raise ValueError("out of order")

    report = Report(folder=tmp_path, name="gpu", title="Kernels", device=torch.device("cpu"))
    report.attempt("a", breaks)
    assert "* a: FAILED: ValueError: out of order" in (tmp_path / "gpu.md").read_text(), "written at once"
    report.attempt("b", lambda: iter([Note(what="second", finding="found too")]))
    text = (tmp_path / "gpu.md").read_text()
    assert all(line in text for line in ("* first: found", "* a: FAILED", "* second: found too"))
    assert [note.is_failure for note in report.notes] == [False, True, False]
    assert "a ...\n" in capsys.readouterr().err


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    report = Report(folder=tmp_path, name="gpu", title="Kernels", device=torch.device("cpu"), begin=-MOST_SECONDS)
    report.attempt("late", lambda: iter([Note(what="late", finding="begun")]))
    assert [note.finding for note in report.notes] == ["FAILED: TimeoutError: not begun after 450 seconds"]


@pytest.mark.parametrize(
    ("body", "limit", "finding", "failures"),
    [
        ("assert True", 60, "1 passed", []),
        ("assert False", 60, "1 failed", ["test_it.py::test_it"]),
        ("import time; time.sleep(60)", 1, "stopped after 1 seconds", []),
    ],
)
def test_the_tests_are_run_as_they_are_and_stopped_in_time(
    body: str, limit: int, finding: str, failures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    for name, value in (("ROOT", tmp_path), ("TESTS", ("test_it.py",)), ("MOST_SECONDS_OF_TESTS", limit)):
        monkeypatch.setattr(kernel_tests, name, value)
    *named, last = kernel_tests.run_tests()
    assert [note.what for note in named] == failures
    assert finding in last.finding
    assert last.is_failure == (finding != "1 passed")


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_test_that_failed_before_all_were_stopped_is_named(
    side_by_side: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = "import os, time; time.sleep(3); os.killpg(0, 9)"  # as when the time is up
    (tmp_path / "test_it.py").write_text(f"def test_a():\n 1 / 0\n\ndef test_b():\n {stop}\n")
    for name, value in (("ROOT", tmp_path), ("TESTS", ("test_it.py",))):
        monkeypatch.setattr(kernel_tests, name, value)
    monkeypatch.setattr(kernel_tests, "find_spec", lambda name: side_by_side or None)
    failed, last = kernel_tests.run_tests()
    assert failed.what == "test_it.py::test_a"
    assert last.finding.endswith("(stopped after 300 seconds)")


def test_every_test_that_fails_stands_in_the_files_though_its_name_holds_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("import pytest", '@pytest.mark.parametrize("size", ["7 by 8", "7 by 9"])', "def test_it(size):", " 1 / 0")
    (tmp_path / "test_it.py").write_text("\n".join(lines))
    for name, value in (("ROOT", tmp_path), ("TESTS", ("test_it.py",))):
        monkeypatch.setattr(kernel_tests, name, value)
    report = Report(folder=tmp_path, name="gpu", title="Kernels", device=torch.device("cpu"))
    report.attempt("tests", kernel_tests.run_tests)
    failing = ["test_it.py::test_it[7 by 8]", "test_it.py::test_it[7 by 9]"]
    notes = json.loads((tmp_path / "gpu.json").read_text())["notes"]
    assert sorted(note["what"] for note in notes) == [*failing, "the kernels' tests on this device"]
    assert all(f"* {name}: FAILED {name}" in (tmp_path / "gpu.md").read_text() for name in failing)


def test_findings_of_one_name_are_all_kept(tmp_path: Path) -> None:
    notes = [Note(what="test_it", finding="FAILED"), Note(what="test_it", finding="ERROR", is_failure=True)]
    text = write(tmp_path, "gpu", "Kernels", [], DEVICE, notes=notes).read_text()
    assert text.endswith("\n\n* test_it: FAILED\n* test_it: ERROR\n")
    kept = json.loads((tmp_path / "gpu.json").read_text())["notes"]
    assert [Note(**note) for note in kept] == notes


def test_the_benchmark_and_what_it_tests_need_no_library_of_the_harness() -> None:
    absent = ("hydra", "omegaconf", "faiss", "datasets", "wandb", "pydantic", "open_clip")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import pytest, fnabench.bench.gpu, fnabench.bench.kernel_tests as kernel_tests\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', *kernel_tests.TESTS]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=kernel_tests.ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(kernel_tests.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_report_without_rows_has_single_blank_lines(tmp_path) -> None:
    table = Table(title="Numbers", columns=("a", "b"), lines=[(1, 2.5)])
    for tables, notes in (((table,), []), ((), [PASSED]), ((table, table), [PASSED])):
        text = write(tmp_path, "gpu", "Kernels", [], DEVICE, tables=tables, notes=notes).read_text()
        assert "\n\n\n" not in text
        assert text.count("\n\n") == 1 + 2 * len(tables) + bool(notes)


def test_launches_are_counted_on_the_gpu_alone() -> None:
    x = torch.ones(3, device=DEVICE)
    for _ in range(3):  # sessions
        names = launches(lambda: x + 1)
        assert names is None if DEVICE.type == "cpu" else len(names) == 1


@pytest.mark.skipif(DEVICE.type == "cuda", reason="this machine has a CUDA device")
def test_without_a_gpu_one_line_says_so(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fnabench.bench.gpu", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "bench-gpu needs an NVIDIA GPU, and torch finds no CUDA device on this machine\n"
    assert list(tmp_path.iterdir()) == []
