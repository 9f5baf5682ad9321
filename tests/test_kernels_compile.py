"""The Triton programs compile for GPUs of which there is none, within the shared memory that those have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fnabench.errors import ImpossibleError
from fnabench.kernels import limits
from fnabench.kernels.limits import require_attention, shared_memory

triton = pytest.importorskip("triton", reason="triton is not installed")
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a program may have, by compute capability."""
MOST_STACK = 1024
"""Bytes of a thread: registers that a program did without, read from memory again and again."""
REGISTERS = 65536
"""Of a multiprocessor."""


@pytest.mark.skipif(not PTXAS.is_file(), reason="this build of triton has no assembler for NVIDIA's GPUs")
@pytest.mark.parametrize(
    ("capability", "dtype", "num_cells", "width", "num_patches", "mask"),
    [
        (90, "bfloat16", 64, 64, 9216, ""),
        (90, "float32", 64, 128, 196, "masked"),
        (90, "float16", 128, 32, 196, "masked"),
        (80, "bfloat16", 64, 64, 196, "masked"),
    ],
)
def test_the_programs_compile(
    capability: int, dtype: str, num_cells: int, width: int, num_patches: int, mask: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), str(capability), dtype, str(num_cells), str(width), str(num_patches), mask],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    programs = [each["program"] for each in compiled]
    assert programs == [*3 * ["sample_farthest_points"], "landmark_pass", "solve", "token_pass"]
    assert max(each["shared"] for each in compiled) <= MOST_SHARED[capability]
    assert max(each["stack"] for each in compiled) <= MOST_STACK
    if dtype != "float32" and width <= 64:
        assert compiled[-1]["registers"] * 8 * 32 * 2 <= REGISTERS, "no second program of the last pass fits beside it"
    assert compiled[-2]["shared"] <= shared_memory(getattr(torch, dtype), width, num_cells)


def test_what_a_device_has_no_shared_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(limits, "_shared_memory_of", lambda device: 99 * 1024)
    require_attention(torch.bfloat16, 64, 64, 64, device)
    with pytest.raises(ImpossibleError, match=r"need 128 KiB .* for 128 cells .* cuda has 99; use fewer landmarks"):
        require_attention(torch.bfloat16, 64, 128, 128, device)
    require_attention(torch.bfloat16, 64, 128, 128, torch.device("cpu"))
    monkeypatch.setattr(limits, "_shared_memory_of", lambda device: MOST_SHARED[90])
    for dtype, width, num_cells in ((torch.float16, 128, 128), (torch.float32, 64, 128), (torch.float32, 128, 64)):
        require_attention(dtype, width, num_cells, num_cells, device)  # all that a Hopper's limits allow
