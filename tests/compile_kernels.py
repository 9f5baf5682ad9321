"""Compile the Triton programs as their launches ask for them, for an H100 or H200 but without one: one JSON line each.

python tests/compile_kernels.py TYPE CELLS WIDTH; test_kernels.py runs it in a process in which nothing is interpreted.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fnabench.kernels.programs import farthest_points, landmark_pass, solve, token_pass


class NoDevice:
    """As much of a driver as the compiler asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(program, *arguments, grid, **options):
    kernel = program.run(*arguments, grid=grid, warmup=True, **options)
    print(json.dumps({"program": program.__name__, "shared": kernel.metadata.shared, "size": len(kernel.asm["cubin"])}))


def main() -> None:
    triton.runtime.driver.set_active(NoDevice())
    JITFunction.__getitem__ = lambda program, grid: partial(compile_only, program, grid=grid)
    dtype, num_cells, width = getattr(torch, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    B, H, N, L = 1, 2, 65, num_cells
    q, k, v = torch.empty(B, N, 3, H, width, dtype=dtype).permute(2, 0, 3, 1, 4)
    index, cell_of = torch.zeros(B, H, L, dtype=torch.long), torch.zeros(B, H, N, dtype=torch.long)
    farthest_points.launch(q[:, 0], L, num_cells, 1, None, index[:, 0, :2])
    sums, counts = landmark_pass.launch(q, k, v, index, cell_of, None, 0.1, num_cells, 1)
    cells, log_count = solve.launch(q, index, None, sums, counts, 0.1, 1e-3, num_cells)
    token_pass.launch(q, index, cells, log_count, 0.1, num_cells)


if __name__ == "__main__":
    main()
