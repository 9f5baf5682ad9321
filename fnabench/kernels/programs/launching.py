"""What the launches of several programs share: block sizes and the arithmetic of their matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
"""Exponentials are base 2, as the hardware's."""
PLAIN_NUMBERS = (
    "num_heads",
    "num_tokens",
    "num_landmarks",
    "num_cells",
    "num_splits",
    "tokens_per_split",
    "index_stride_b",
    "index_stride_h",
    "index_stride_l",
    "cell_stride_b",
    "cell_stride_h",
    "allowed_stride_b",
    "allowed_stride_n",
    "guaranteed_stride_b",
    "guaranteed_stride_s",
)
"""Arguments whose values make no program better, so that none is compiled anew for another value of them."""


def head_block(size: int) -> int:
    """The block that holds `size` rows or channels: a power of two, at least what a tensor core takes."""
    return max(16, int(triton.next_power_of_2(size)))


def dot_types(dtype: torch.dtype) -> dict[str, Any]:
    """OPERAND and PRECISION: 16-bit operands are multiplied as such, fp32 ones as three TF32 products, all summed in
    fp32. The interpreter has no bf16 arithmetic, so there operands are widened, which changes no product."""
    exact = triton.knobs.runtime.interpret or dtype == torch.float32
    operand = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]
    return {"OPERAND": tl.float32 if exact else operand, "PRECISION": "tf32x3"}
