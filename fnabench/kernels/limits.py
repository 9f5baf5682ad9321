"""Where the kernels apply: each limit is one line of why not."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from torch import Tensor

MOST_CELLS = 128
"""The solve keeps a square matrix of that size in the registers of one program."""
MOST_HEAD_DIM = 128
MOST_PATCHES = 16384
"""Patches an image: the sampling keeps a distance of each in the registers of one program."""
MOST_HEADS = 65535
"""Of a whole batch: what the second dimension of a CUDA grid can be."""
MOST_ELEMENTS = 2**31
"""From the first token of an image to its last: the kernels count them in 32 bits."""
LEAST_CAPABILITY = (8, 0)
"""Of a CUDA device: what Triton supports."""


@cache
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_supported(device: torch.device) -> bool:
    """Whether the kernels are meant for this device, and Triton is there to compile them; no graph breaks over it."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def require_triton(device: torch.device) -> None:
    """ImpossibleError where Triton programs cannot run."""
    if find_spec("triton") is None:
        raise ImpossibleError("the fused kernels need triton, which is not installed; type pip install triton")
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ImpossibleError(
            f"the fused kernels run on CUDA devices, not on {device}; use the plain form there "
            "(or TRITON_INTERPRET=1, which is for tests and slow)"
        )


def require_sampling(num_tokens: int, num_landmarks: int, num_cells: int, num_prefix: int, num_alone: int) -> None:
    """ImpossibleError where the sampling cannot choose that many landmarks among that many tokens.

    num_alone: of the landmarks, prefix tokens and guaranteed ones, which share their cells with none.
    """
    if not num_alone < num_cells <= num_landmarks <= num_tokens:
        raise ImpossibleError(
            f"{num_landmarks} landmarks with {num_cells} cells do not fit {num_tokens} tokens of which {num_alone} "
            f"are prefix tokens or guaranteed: {num_alone} < cells <= landmarks <= {num_tokens}"
        )
    if num_tokens - num_prefix > MOST_PATCHES:
        raise ImpossibleError(
            f"the sampling kernel takes at most {MOST_PATCHES} patches an image, not {num_tokens - num_prefix}; "
            "use the plain form"
        )


def require_attention(
    dtype: torch.dtype | None,
    head_dim: int,
    num_landmarks: int,
    num_cells: int,
    device: torch.device | None = None,
) -> None:
    """ImpossibleError where the attention kernels cannot keep one head in the registers and memory of a program.

    dtype, device: None where they are not known yet; the limit is then the widest.
    """
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ImpossibleError(f"the fused kernels take fp32, bf16 and fp16, not {dtype}; use the plain form")
    if head_dim > MOST_HEAD_DIM:
        raise ImpossibleError(
            f"the fused kernels take heads of at most {MOST_HEAD_DIM} channels, not {head_dim}; use the plain form"
        )
    most = MOST_CELLS // 2 if dtype == torch.float32 and head_dim > MOST_HEAD_DIM // 2 else MOST_CELLS
    if not 1 <= num_cells <= min(num_landmarks, most):
        heads = f"{head_dim} channels" if dtype is None else f"{head_dim} channels in {dtype}"
        raise ImpossibleError(
            f"the fused kernels take 1..{most} cells of heads of {heads}, and no more cells than landmarks, not "
            f"{num_cells} cells and {num_landmarks} landmarks; use the plain form"
        )
    if dtype is not None and device is not None and device.type == "cuda":
        needed, there = shared_memory(dtype, head_dim, num_cells), _shared_memory_of(device)
        if needed > there:
            raise ImpossibleError(
                f"the fused kernels need {needed // 1024} KiB of shared memory for {num_cells} cells of heads of "
                f"{head_dim} channels in {dtype}, and {device} has {there // 1024}; use fewer landmarks or the plain "
                "form"
            )


def shared_memory(dtype: torch.dtype, head_dim: int, num_cells: int) -> int:
    """Bytes of a multiprocessor's shared memory that the solve takes at most, of all kernels by far the most: the cell
    means as operands of a TF32 product, two numbers for one, those of 16-bit keys excepted, and what it exchanges."""
    m, d = (max(16, 1 << (size - 1).bit_length()) for size in (num_cells, head_dim))
    return (16 if dtype == torch.float32 else 8) * m * d + 512 * max(m, 64)


@cache
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _shared_memory_of(device: torch.device) -> int:
    """Bytes that one program may have."""
    there: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return there


def require_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ImpossibleError where queries, keys and values are not of one type, too many or too far apart for one launch."""
    if not q.dtype == k.dtype == v.dtype:
        raise ImpossibleError(f"the fused kernels take q, k and v of one type, not {q.dtype}, {k.dtype}, {v.dtype}")
    if q.shape[0] * q.shape[1] > MOST_HEADS:
        raise ImpossibleError(
            f"the fused kernels take batches of at most {MOST_HEADS} heads, not {q.shape[0]} images of {q.shape[1]}; "
            "use a smaller batch or the plain form"
        )
    if max((each.shape[2] - 1) * each.stride(2) for each in (q, k, v)) >= MOST_ELEMENTS:
        raise ImpossibleError(
            f"the fused kernels take images whose first and last token lie less than {MOST_ELEMENTS} elements apart; "
            "lay the batch out image by image, use a smaller one or the plain form"
        )
