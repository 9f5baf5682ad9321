"""The benchmark of the kernels, as far as it runs without a GPU: small and in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from on_kernels import DEVICE, NEEDS_KERNELS, UNREAD_PADDING

from fnabench.bench.gpu import Case, compare_forms, launches, profile_kernels
from fnabench.bench.report import Table, write

SMALL = Case(
    num_tokens=20, batch=1, num_heads=1, head_dim=16, num_landmarks=5, num_layers=1, dtype=torch.float32, device=DEVICE
)
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
    }
    assert all(row.arm_ms > 0 and row.ratio.value > 0 for row in rows)
    table = write(tmp_path, "gpu", "Kernels", rows, DEVICE, notes={"tests": "all passed"}).read_text()
    assert "* tests: all passed" in table
    assert "| plain |" in table


@NEEDS_KERNELS
@torch.inference_mode()
def test_the_profile_says_how_far_the_kernels_are_from_the_plain_form() -> None:
    notes = profile_kernels(SMALL)
    assert float(notes["N=20, fused against plain"].split()[-1]) < 1e-4
    assert set(notes) == {
        "N=20, selection", "N=20, the variant's selection", "N=20, a layer", "N=20, fused against plain",
    }  # fmt: skip


def test_a_report_without_rows_has_single_blank_lines(tmp_path) -> None:
    table = Table(title="Numbers", columns=("a", "b"), lines=[(1, 2.5)])
    for tables, notes in (((table,), None), ((), {"tests": "all passed"}), ((table, table), {"tests": "all passed"})):
        text = write(tmp_path, "gpu", "Kernels", [], DEVICE, tables=tables, notes=notes).read_text()
        assert "\n\n\n" not in text
        assert text.count("\n\n") == 1 + 2 * len(tables) + (notes is not None)


def test_launches_are_counted_on_the_gpu_alone() -> None:
    x = torch.ones(3, device=DEVICE)
    assert len(launches(lambda: x + 1)) == (1 if DEVICE.type == "cuda" else 0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="this machine has a CUDA device")
def test_without_a_gpu_one_line_says_so(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fnabench.bench.gpu", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "bench-gpu needs an NVIDIA GPU, and torch finds no CUDA device on this machine\n"
    assert list(tmp_path.iterdir()) == []
