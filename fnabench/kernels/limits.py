"""Where the kernels apply: each limit is one line of why not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from torch import device

MOST_LANDMARKS = 128
"""Query landmarks and cells: the solve keeps a square matrix of that size in the registers of one program."""
MOST_HEAD_DIM = 128
MOST_PATCHES = 16384
"""Patches an image: the sampling keeps a distance of each in the registers of one program."""


def require_triton(device: device) -> None:
    """ImpossibleError where Triton programs cannot run."""
    if find_spec("triton") is None:
        raise ImpossibleError("the fused kernels need triton, which is not installed; type pip install triton")
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ImpossibleError(
            f"the fused kernels run on CUDA devices, not on {device}; use the plain form there "
            "(or TRITON_INTERPRET=1, which is for tests and slow)"
        )


def require_sampling(num_tokens: int, num_landmarks: int, num_prefix: int) -> None:
    """ImpossibleError where the sampling cannot choose that many landmarks among that many tokens."""
    if not num_prefix < num_landmarks <= num_tokens:
        raise ImpossibleError(
            f"{num_landmarks} landmarks do not fit {num_tokens} tokens of which {num_prefix} are prefix tokens; "
            f"choose {num_prefix + 1}..{num_tokens}"
        )
    if num_tokens - num_prefix > MOST_PATCHES:
        raise ImpossibleError(
            f"the sampling kernel takes at most {MOST_PATCHES} patches an image, not {num_tokens - num_prefix}; "
            "use the plain form"
        )


def require_attention(head_dim: int, num_landmarks: int, num_cells: int) -> None:
    """ImpossibleError where the attention kernels cannot keep the sizes of one head in registers."""
    if head_dim > MOST_HEAD_DIM:
        raise ImpossibleError(
            f"the fused kernels take heads of at most {MOST_HEAD_DIM} channels, not {head_dim}; use the plain form"
        )
    if not 1 <= num_cells <= num_landmarks <= MOST_LANDMARKS:
        raise ImpossibleError(
            f"the fused kernels take 1 <= cells <= landmarks <= {MOST_LANDMARKS}, not {num_cells} cells and "
            f"{num_landmarks} landmarks; use the plain form or fewer landmarks"
        )
