"""Farthest point sampling with its cells: one program an image, one launch a batch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fnabench.kernels.programs.launching import PLAIN_NUMBERS

ALIGNMENT = 16
"""Elements at whose multiples the rows of the features and their first patch lie, so that reads are wide. Triton has to
be told: 3.6 reads one by one else, and then finds no registers for more than 8,192 patches."""
UNROLL = 8
"""Features whose reads are under way at once."""
PATCHES_PER_WARP = 128
MOST_WARPS = 16


def launch(
    features: Tensor,
    num_landmarks: int,
    num_cells: int,
    num_prefix: int,
    allowed: Tensor | None,
    guaranteed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The landmarks [B, L] and the cell of each token [B, N], int64, of features [B, N, F]."""
    B, N, F = features.shape
    lead, length = _aligned(num_prefix), _aligned(N - num_prefix)
    rows = features.new_empty(B, F, lead + length)  # feature by feature: neighbouring threads read neighbouring tokens
    rows[:, :, lead - num_prefix : lead - num_prefix + N] = features.mT
    index = torch.empty(B, num_landmarks, dtype=torch.long, device=features.device)
    cell_of = torch.empty(B, N, dtype=torch.long, device=features.device)
    block = max(128, triton.next_power_of_2(N - num_prefix))
    sample_farthest_points[(B,)](
        rows[:, :, lead:],
        allowed,
        guaranteed,
        index,
        cell_of,
        N,
        num_landmarks,
        num_cells,
        rows.stride(0),
        rows.stride(1),
        0 if allowed is None else allowed.stride(0),
        0 if allowed is None else allowed.stride(1),
        0 if guaranteed is None else guaranteed.stride(0),
        0 if guaranteed is None else guaranteed.stride(1),
        NUM_PREFIX=num_prefix,
        NUM_GUARANTEED=0 if guaranteed is None else guaranteed.shape[1],
        NUM_FEATURES=F,
        HAS_MASK=allowed is not None,
        BLOCK_N=block,
        ALIGNMENT=ALIGNMENT,
        UNROLL=UNROLL,
        num_warps=min(MOST_WARPS, max(4, block // PATCHES_PER_WARP)),
    )
    return index, cell_of


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


@triton.jit(do_not_specialize=PLAIN_NUMBERS)
def sample_farthest_points(
    features,  # [B, F, N] of any floating type from the first patch on: the prefix tokens lie before it
    allowed,  # [B, N] bool, read where HAS_MASK
    guaranteed,  # [B, NUM_GUARANTEED] int64, distinct patches
    index,  # [B, L] int64, written
    cell_of,  # [B, N] int64, written
    num_tokens,
    num_landmarks,
    num_cells,
    stride_b,
    stride_f,
    allowed_stride_b,
    allowed_stride_n,
    guaranteed_stride_b,
    guaranteed_stride_s,
    NUM_PREFIX: tl.constexpr,
    NUM_GUARANTEED: tl.constexpr,
    NUM_FEATURES: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Distances and cells of all patches stay in registers; a step reads the features once and reduces once."""
    image = tl.program_id(0).to(tl.int64)
    features += image * stride_b
    index += image * num_landmarks
    cell_of += image * num_tokens
    patch = tl.arange(0, BLOCK_N)
    inside = patch < num_tokens - NUM_PREFIX
    readable = patch < tl.cdiv(num_tokens - NUM_PREFIX, ALIGNMENT) * ALIGNMENT  # a mask that lets reads be wide
    may = inside
    if HAS_MASK:
        flags = allowed + image * allowed_stride_b + (NUM_PREFIX + patch) * allowed_stride_n
        may &= tl.load(flags, mask=inside, other=0) != 0

    start = tl.full([BLOCK_N], float("inf"), tl.float32)
    if NUM_PREFIX + NUM_GUARANTEED == 0:  # the start is the mean of the tokens that may be chosen
        start = tl.zeros([BLOCK_N], tl.float32)
        count = tl.sum(may.to(tl.float32), axis=0)
        for f in range(NUM_FEATURES):
            x = tl.load(features + tl.multiple_of(f * stride_f, ALIGNMENT) + patch, mask=readable, other=0.0)
            x = x.to(tl.float32) - tl.sum(tl.where(may, x.to(tl.float32), 0.0), axis=0) / count
            start += x * x
    # Squared distance to the start and all landmarks so far; below zero: forbidden (-1), chosen or no token (-inf).
    start = tl.minimum(start, float("inf"))  # NaN is far away: no choice may fall on what is no token
    to_chosen = tl.where(may, start, tl.where(inside, -1.0, float("-inf")))
    to_cell = tl.full([BLOCK_N], float("inf"), tl.float32)  # to the nearest landmark that others may belong to
    cell = tl.full([BLOCK_N], NUM_PREFIX + NUM_GUARANTEED, tl.int32)

    for m in range(num_landmarks):
        newest = m - NUM_PREFIX
        if m >= NUM_PREFIX + NUM_GUARANTEED:
            newest = tl.argmax(to_chosen, axis=0)
        elif NUM_GUARANTEED > 0:  # noqa: SIM102  apart, for the compiler to know that there is no pointer
            if m >= NUM_PREFIX:
                chosen = guaranteed + image * guaranteed_stride_b + newest * guaranteed_stride_s
                newest = tl.load(chosen).to(tl.int32) - NUM_PREFIX
        tl.store(index + m, NUM_PREFIX + newest)
        distance = tl.zeros([BLOCK_N], tl.float32)
        for f in tl.range(NUM_FEATURES, loop_unroll_factor=UNROLL):
            x = tl.load(features + tl.multiple_of(f * stride_f, ALIGNMENT) + patch, mask=readable, other=0.0)
            x = x.to(tl.float32) - tl.load(features + f * stride_f + newest).to(tl.float32)
            distance += x * x
        is_newest = patch == newest
        to_chosen = tl.where(is_newest | ~inside, float("-inf"), tl.minimum(to_chosen, distance))
        if m < NUM_PREFIX:
            tl.store(cell_of + m, m)
        elif m < num_cells:
            closer = (distance < to_cell) & (m >= NUM_PREFIX + NUM_GUARANTEED)
            if HAS_MASK:  # a landmark that is not allowed has no other token
                flag = allowed + image * allowed_stride_b + (NUM_PREFIX + newest) * allowed_stride_n
                closer &= tl.load(flag) != 0
            cell = tl.where(closer | is_newest, m, cell)
            to_cell = tl.where(is_newest, float("-inf"), tl.where(closer, distance, to_cell))
    tl.store(cell_of + NUM_PREFIX + patch, cell, mask=inside)
