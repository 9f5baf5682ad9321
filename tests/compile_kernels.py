"""Compile the Triton programs as their launches ask for them, for a GPU that need not be there: one JSON line each.

python tests/compile_kernels.py CAPABILITY TYPE CELLS WIDTH PATCHES [masked]; test_kernels_compile.py runs it in a
process in which nothing is interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fnabench.kernels.programs import farthest_points, landmark_pass, solve, token_pass

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class NoDevice:
    """As much of a driver as the compiler asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(program, *arguments, grid, **options):
    kernel = program.run(*arguments, grid=grid, warmup=True, **options)
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", used)[1]) for name in ("REG", "STACK"))
    shared = kernel.metadata.shared
    print(json.dumps({"program": program.__name__, "shared": shared, "registers": registers, "stack": stack}))


def main() -> None:
    triton.runtime.driver.set_active(NoDevice(int(sys.argv[1])))
    JITFunction.__getitem__ = lambda program, grid: partial(compile_only, program, grid=grid)
    dtype, num_cells, width = getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    num_patches = int(sys.argv[5])
    B, H, N, L = 1, 2, 1 + num_patches, num_cells
    q, k, v = torch.empty(B, N, 3, H, width, dtype=dtype).permute(2, 0, 3, 1, 4)
    index, cell_of = torch.zeros(B, H, L, dtype=torch.long), torch.zeros(B, H, N, dtype=torch.long)
    allowed = torch.ones(B, N, dtype=torch.bool) if "masked" in sys.argv else None
    for num_prefix, guaranteed in ((1, index[:, 0, :2]), (1, None), (0, None)):
        farthest_points.launch(q[:, 0, : num_prefix + num_patches], L, num_cells, num_prefix, allowed, guaranteed)
    sums, counts = landmark_pass.launch(q, k, v, index, cell_of, allowed, 0.1, num_cells, 1)
    cells, log_count = solve.launch(q, index, allowed, sums, counts, 0.1, 1e-3, num_cells)
    token_pass.launch(q, index, cells, log_count, 0.1, num_cells)


if __name__ == "__main__":
    main()
