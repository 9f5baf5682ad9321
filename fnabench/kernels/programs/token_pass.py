"""One pass over the queries: attention of all tokens to the cells, with the landmarks' exact outputs written in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fnabench.kernels.programs.launching import LOG2_E, PLAIN_NUMBERS, dot_types, head_block

BLOCK_L = 16
"""Landmarks that a block of queries is compared with at once: more of them leave no registers for a second program."""


def launch(q: Tensor, index: Tensor, cells: Tensor, log_count: Tensor, scale: float, num_cells: int) -> Tensor:
    """The output [B, H, N, D], which lies in memory as [B, N, H, D]: that is how a layer reads it."""
    B, H, N, D = q.shape
    L = index.shape[-1]
    output = q.new_empty(B, N, H, D).transpose(1, 2)
    block_d, block_m = head_block(D), head_block(num_cells)
    block_n = 64 if q.dtype == torch.float32 else 128
    token_pass[(triton.cdiv(N, block_n), B * H)](
        q,
        index,
        cells,
        log_count,
        output,
        *q.stride(),
        *index.stride(),
        *output.stride(),
        scale * LOG2_E,
        H,
        N,
        L,
        num_cells,
        HEAD_DIM=D,
        BLOCK_D=block_d,
        BLOCK_N=block_n,
        BLOCK_L=BLOCK_L,
        BLOCK_M=block_m,
        **dot_types(q.dtype),
        num_warps=8,
        num_stages=1,
    )
    return output


@triton.jit(do_not_specialize=PLAIN_NUMBERS)
def token_pass(
    q,  # [B, H, N, D]
    index,  # [B, H, L]
    cells,  # [3, B, H, L, D] and
    log_count,  # [B, H, L], as solve leaves them
    output,  # [B, H, N, D], written
    q_stride_b,
    q_stride_h,
    q_stride_n,
    q_stride_d,
    index_stride_b,
    index_stride_h,
    index_stride_l,
    output_stride_b,
    output_stride_h,
    output_stride_n,
    output_stride_d,
    scale,  # times log2(e)
    num_heads,
    num_tokens,
    num_landmarks,
    num_cells,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program takes a block of queries of a head; the cells are few enough for a softmax in one piece."""
    head = tl.program_id(1)
    b, h = (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cell, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    is_token, is_cell, is_channel = n < num_tokens, cell < num_cells, d < HEAD_DIM
    in_tokens = is_token[:, None] & is_channel[None, :]
    in_cells = is_cell[:, None] & is_channel[None, :]

    part = tl.num_programs(1).to(tl.int64) * num_landmarks * HEAD_DIM  # elements of one of the three
    outputs_of_landmarks = cells + head.to(tl.int64) * num_landmarks * HEAD_DIM
    elements = cell[:, None] * HEAD_DIM + d[None, :]
    keys = tl.load(outputs_of_landmarks + part + elements, mask=in_cells, other=0.0)
    values = tl.load(outputs_of_landmarks + 2 * part + elements, mask=in_cells, other=0.0)
    log_size = tl.load(log_count + head.to(tl.int64) * num_landmarks + cell, mask=is_cell, other=float("-inf"))
    q += b * q_stride_b + h * q_stride_h
    queries = tl.load(q + n[:, None] * q_stride_n + d[None, :] * q_stride_d, mask=in_tokens, other=0.0)

    logits = tl.dot(queries.to(OPERAND), tl.trans(keys).to(OPERAND), input_precision=PRECISION) * scale
    logits += log_size[None, :]
    highest = tl.max(logits, axis=1)
    p = tl.exp2(logits - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    total = tl.sum(p, axis=1)
    p = p.to(values.dtype).to(OPERAND)
    result = tl.dot(p, values.to(OPERAND), input_precision=PRECISION) / tl.where(total > 0, total, 1.0)[:, None]

    position = tl.full([BLOCK_N], -1, tl.int32)  # among the landmarks, -1 for any other token
    for start in range(0, num_landmarks, BLOCK_L):
        landmark = start + tl.arange(0, BLOCK_L)
        token = tl.load(
            index + b * index_stride_b + h * index_stride_h + landmark * index_stride_l,
            mask=landmark < num_landmarks,
            other=-1,
        )
        found = tl.where(n[:, None] == token[None, :], landmark[None, :], -1)
        position = tl.maximum(position, tl.max(found, axis=1))
    is_landmark = (position >= 0)[:, None]
    exact = tl.load(
        outputs_of_landmarks + position[:, None] * HEAD_DIM + d[None, :], mask=is_landmark & in_tokens, other=0.0
    )
    result = tl.where(is_landmark, exact.to(tl.float32), result)
    output += b * output_stride_b + h * output_stride_h
    tl.store(
        output + n[:, None] * output_stride_n + d[None, :] * output_stride_d,
        result.to(output.dtype.element_ty),
        mask=in_tokens,
    )
