"""One pass over the keys and values: attention of the landmarks to all tokens, and the sums of each cell."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fnabench.kernels.programs.launching import LOG2_E, PLAIN_NUMBERS, dot_types, head_block

LEAST_TOKENS = 256
"""Of a split: below, its partial results outweigh the tokens that it reads."""


def count_splits(num_tokens: int, num_programs: int, num_multiprocessors: int) -> int:
    """Into how many parts the tokens are split, so that a small batch keeps the device busy."""
    wanted = -(-2 * num_multiprocessors // num_programs)
    return max(1, min(wanted, num_tokens // LEAST_TOKENS))


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    cell_of: Tensor,
    allowed: Tensor | None,
    scale: float,
    num_cells: int,
    num_splits: int,
) -> tuple[Tensor, Tensor]:
    """Of each split of the tokens, in fp32: [3, S, B, H, L, D] sums of softmax numerator times value, of keys and of
    values by cell; [3, S, B, H, L] base-2 maximum and sum of the numerators, and members of the cell."""
    B, H, N, D = q.shape
    L = index.shape[-1]
    sums = torch.empty(3, num_splits, B, H, L, D, device=q.device)
    counts = torch.empty(3, num_splits, B, H, L, device=q.device)
    block_n = 32 if q.dtype == torch.float32 else 64
    block_l = min(block_n, head_block(L))  # of more landmarks, each block reads the keys and values once more
    block_d = head_block(D)
    landmark_pass[(num_splits, B * H, triton.cdiv(L, block_l))](
        q,
        k,
        v,
        index,
        cell_of,
        allowed,
        sums,
        counts,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *index.stride(),
        *cell_of.stride(),
        *((0, 0) if allowed is None else allowed.stride()),
        scale * LOG2_E,
        H,
        N,
        L,
        num_cells,
        triton.cdiv(triton.cdiv(N, num_splits), block_n) * block_n,
        HEAD_DIM=D,
        BLOCK_D=block_d,
        BLOCK_L=block_l,
        BLOCK_N=block_n,
        HAS_MASK=allowed is not None,
        **dot_types(q.dtype),
        num_warps=8 if block_d > 64 else 4,
        num_stages=_num_stages(q.dtype, block_d),
    )
    return sums, counts


def _num_stages(dtype: torch.dtype, block_d: int) -> int:
    """With three, the next tile is read while this one is computed, with two after it; three wide ones need more shared
    memory than some devices have."""
    if dtype == torch.float32:
        return 1
    return 3 if block_d <= 64 else 2


@triton.jit(do_not_specialize=PLAIN_NUMBERS)
def landmark_pass(
    q,  # [B, H, N, D], as k and v
    k,
    v,
    index,  # [B, H, L]
    cell_of,  # [B, H, N]
    allowed,  # [B, N] bool, read where HAS_MASK
    sums,  # [3, S, B, H, L, D] fp32, written
    counts,  # [3, S, B, H, L] fp32, written
    q_stride_b,
    q_stride_h,
    q_stride_n,
    q_stride_d,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    k_stride_d,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    v_stride_d,
    index_stride_b,
    index_stride_h,
    index_stride_l,
    cell_stride_b,
    cell_stride_h,
    cell_stride_n,
    allowed_stride_b,
    allowed_stride_n,
    scale,  # times log2(e)
    num_heads,
    num_tokens,
    num_landmarks,
    num_cells,
    tokens_per_split,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program takes a split of the tokens, a head and a block of its landmarks and cells."""
    split, head = tl.program_id(0), tl.program_id(1)
    b, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    row = tl.program_id(2) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.arange(0, BLOCK_D)
    is_row, is_channel = row < num_landmarks, d < HEAD_DIM

    token = tl.load(index + b * index_stride_b + h * index_stride_h + row * index_stride_l, mask=is_row, other=0)
    landmarks = tl.load(
        q + b * q_stride_b + h * q_stride_h + token[:, None] * q_stride_n + d[None, :] * q_stride_d,
        mask=is_row[:, None] & is_channel[None, :],
        other=0.0,
    )
    k += b * k_stride_b + h * k_stride_h
    v += b * v_stride_b + h * v_stride_h
    cell_of += b * cell_stride_b + h * cell_stride_h

    maximum = tl.full([BLOCK_L], float("-inf"), tl.float32)
    numerators = tl.zeros([BLOCK_L], tl.float32)
    outputs = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    key_sums = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    value_sums = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    members = tl.zeros([BLOCK_L], tl.float32)

    first = split * tokens_per_split
    for start in range(first, tl.minimum(first + tokens_per_split, num_tokens), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        live = n < num_tokens
        if HAS_MASK:
            live &= tl.load(allowed + b * allowed_stride_b + n * allowed_stride_n, mask=live, other=0) != 0
        readable = live[:, None] & is_channel[None, :]
        keys = tl.load(k + n[:, None] * k_stride_n + d[None, :] * k_stride_d, mask=readable, other=0.0)
        values = tl.load(v + n[:, None] * v_stride_n + d[None, :] * v_stride_d, mask=readable, other=0.0)
        cell = tl.load(cell_of + n * cell_stride_n, mask=live, other=-1)

        logits = tl.dot(landmarks.to(OPERAND), tl.trans(keys).to(OPERAND), input_precision=PRECISION) * scale
        logits = tl.where(live[None, :], logits, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, axis=1))
        reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        p = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(maximum - reference)
        maximum = new_maximum
        numerators = numerators * shrink + tl.sum(p, axis=1)
        p = p.to(values.dtype).to(OPERAND)
        outputs = tl.dot(p, values.to(OPERAND), outputs * shrink[:, None], input_precision=PRECISION)

        is_member = (row[:, None] == cell[None, :]).to(OPERAND)
        key_sums = tl.dot(is_member, keys.to(OPERAND), key_sums, input_precision=PRECISION)
        value_sums = tl.dot(is_member, values.to(OPERAND), value_sums, input_precision=PRECISION)
        members += tl.sum((row[:, None] == cell[None, :]).to(tl.float32), axis=1)

    batch_heads = tl.num_programs(1).to(tl.int64)
    part = tl.num_programs(0) * batch_heads * num_landmarks  # elements of one of the three
    rows = (split * batch_heads + head) * num_landmarks + row
    tl.store(counts + rows, maximum, mask=is_row)
    tl.store(counts + part + rows, numerators, mask=is_row)
    tl.store(counts + 2 * part + rows, members, mask=is_row)
    cells = sums + rows[:, None] * HEAD_DIM + d[None, :]
    writable = is_row[:, None] & is_channel[None, :]
    tl.store(cells, outputs, mask=writable)
    tl.store(cells + part * HEAD_DIM, key_sums, mask=writable)
    tl.store(cells + 2 * part * HEAD_DIM, value_sums, mask=writable)
