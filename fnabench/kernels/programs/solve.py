"""The landmark system of each head: cell means, A', and the ridge solve, all in the registers of one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fnabench.kernels.programs.launching import LOG2_E, PLAIN_NUMBERS, dot_types, head_block

LANDMARKS_AT_ONCE = 16
"""Rows of A' that are formed and added to the Gram matrix in one step; more of them spill registers."""


def launch(
    q: Tensor,
    index: Tensor,
    allowed: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    scale: float,
    ridge: float,
    num_cells: int,
) -> tuple[Tensor, Tensor]:
    """In the type of q, [3, B, H, L, D]: the landmarks' outputs U, the cells' mean keys and their effective values;
    in fp32, [B, H, L]: base-2 logarithms of the cells' sizes. Rows of cells from `num_cells` on are not written."""
    _, num_splits, B, H, L, D = sums.shape
    cells = q.new_empty(3, B, H, L, D)
    log_count = torch.empty(B, H, L, device=q.device)
    block_m, block_d = head_block(num_cells), head_block(D)
    solve[(B * H,)](
        q,
        index,
        allowed,
        sums,
        counts,
        cells,
        log_count,
        *q.stride(),
        *index.stride(),
        *((0, 0) if allowed is None else allowed.stride()),
        scale * LOG2_E,
        ridge,
        torch.finfo(q.dtype).max,
        H,
        num_splits,
        L,
        num_cells,
        HEAD_DIM=D,
        BLOCK_D=block_d,
        BLOCK_L=LANDMARKS_AT_ONCE,
        BLOCK_M=block_m,
        HAS_MASK=allowed is not None,
        **dot_types(q.dtype),
        num_warps=8 if block_m * max(block_m, block_d) > 64 * 64 else 4,
        num_stages=1,
    )
    return cells, log_count


@triton.jit(do_not_specialize=PLAIN_NUMBERS)
def solve(
    q,  # [B, H, N, D]
    index,  # [B, H, L]
    allowed,  # [B, N] bool, read where HAS_MASK
    sums,  # [3, S, B, H, L, D] and
    counts,  # [3, S, B, H, L], as landmark_pass leaves them
    cells,  # [3, B, H, L, D], written
    log_count,  # [B, H, L] fp32, written
    q_stride_b,
    q_stride_h,
    q_stride_n,
    q_stride_d,
    index_stride_b,
    index_stride_h,
    index_stride_l,
    allowed_stride_b,
    allowed_stride_n,
    scale,  # times log2(e)
    ridge,
    largest,  # finite number of the type of q
    num_heads,
    num_splits,
    num_landmarks,
    num_cells,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program takes a head: it adds the splits up, forms A' some rows at a time and solves for V'."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // num_heads, head % num_heads
    cell, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    is_cell, is_channel = cell < num_cells, d < HEAD_DIM
    cell_elements = cell[:, None] * HEAD_DIM + d[None, :]
    in_cells = is_cell[:, None] & is_channel[None, :]

    batch_heads = tl.num_programs(0).to(tl.int64)
    part = num_splits * batch_heads * num_landmarks  # elements of one of the three in counts
    keys = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    members = tl.zeros([BLOCK_M], tl.float32)
    for split in range(num_splits):
        first = (split * batch_heads + head) * num_landmarks
        of_cells = sums + first * HEAD_DIM + cell_elements
        keys += tl.load(of_cells + part * HEAD_DIM, mask=in_cells, other=0.0)
        values += tl.load(of_cells + 2 * part * HEAD_DIM, mask=in_cells, other=0.0)
        members += tl.load(counts + 2 * part + first + cell, mask=is_cell, other=0.0)
    size = tl.maximum(members, 1.0)
    keys = (keys / size[:, None]).to(cells.dtype.element_ty)
    values = values / size[:, None]
    log_size = tl.where(members > 0, tl.log2(size), float("-inf"))
    written = cells + head * num_landmarks * HEAD_DIM
    in_one = batch_heads * num_landmarks * HEAD_DIM  # elements of one of the three in cells
    tl.store(written + in_one + cell_elements, keys, mask=in_cells)
    tl.store(log_count + head * num_landmarks + cell, log_size, mask=is_cell)

    gram = tl.where(cell[:, None] == cell[None, :], ridge, tl.zeros([BLOCK_M, BLOCK_M], tl.float32))
    right = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, num_landmarks, BLOCK_L):
        row = start + tl.arange(0, BLOCK_L)
        is_row = row < num_landmarks
        in_rows = is_row[:, None] & is_channel[None, :]
        row_elements = row[:, None] * HEAD_DIM + d[None, :]
        maximum = tl.full([BLOCK_L], float("-inf"), tl.float32)
        numerators = tl.zeros([BLOCK_L], tl.float32)
        outputs = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
        for split in range(num_splits):
            first = (split * batch_heads + head) * num_landmarks
            split_maximum = tl.load(counts + first + row, mask=is_row, other=float("-inf"))
            new_maximum = tl.maximum(maximum, split_maximum)
            reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            shrink, weight = tl.exp2(maximum - reference), tl.exp2(split_maximum - reference)
            maximum = new_maximum
            split_numerators = tl.load(counts + part + first + row, mask=is_row, other=0.0)
            numerators = numerators * shrink + split_numerators * weight
            split_outputs = tl.load(sums + first * HEAD_DIM + row_elements, mask=in_rows, other=0.0)
            outputs = outputs * shrink[:, None] + split_outputs * weight[:, None]
        outputs = outputs / tl.where(numerators > 0, numerators, 1.0)[:, None]  # no allowed token: zeros
        tl.store(written + row_elements, outputs.to(cells.dtype.element_ty), mask=in_rows)

        token = tl.load(index + b * index_stride_b + h * index_stride_h + row * index_stride_l, mask=is_row, other=0)
        landmarks = tl.load(
            q + b * q_stride_b + h * q_stride_h + token[:, None] * q_stride_n + d[None, :] * q_stride_d,
            mask=in_rows,
            other=0.0,
        )
        counted = is_row
        if HAS_MASK:
            counted &= tl.load(allowed + b * allowed_stride_b + token * allowed_stride_n, mask=is_row, other=0) != 0
        logits = tl.dot(landmarks.to(OPERAND), tl.trans(keys).to(OPERAND), input_precision=PRECISION) * scale
        logits += log_size[None, :]
        highest = tl.max(logits, axis=1)
        a = tl.exp2(logits - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
        total = tl.sum(a, axis=1)
        a = tl.where(counted[:, None], a / tl.where(total > 0, total, 1.0)[:, None], 0.0)
        # From here on all products are fp32 ones: the Gram matrix squares the condition of A'.
        residual = outputs - tl.dot(a, values, input_precision=PRECISION)
        gram = tl.dot(tl.trans(a), a, gram, input_precision=PRECISION)
        right = tl.dot(tl.trans(a), residual, right, input_precision=PRECISION)

    values += solve_positive(gram, right, ridge, BLOCK_M, BLOCK_D, PRECISION)
    values = tl.minimum(tl.maximum(values, -largest), largest)
    tl.store(written + 2 * in_one + cell_elements, values.to(cells.dtype.element_ty), mask=in_cells)


@triton.jit
def solve_positive(
    matrix, right, least, SIZE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr
):  # [SIZE, SIZE], [SIZE, WIDTH]
    """X with matrix X = right, for a symmetric matrix whose eigenvalues are at least `least`.

    Elimination in blocks of 16: a block's rows are divided by its pivot, which is a Schur complement and so positive
    definite again, and then taken from all other rows by matrix products. Needs no pivoting, as Cholesky.
    """
    BLOCKS: tl.constexpr = SIZE // 16
    number = tl.arange(0, BLOCKS)
    block_of = tl.arange(0, SIZE) // 16
    for block in range(BLOCKS):
        here = (number == block)[:, None, None]
        row = tl.sum(tl.where(here, tl.reshape(matrix, (BLOCKS, 16, SIZE)), 0.0), axis=0)  # [16, SIZE]
        right_row = tl.sum(tl.where(here, tl.reshape(right, (BLOCKS, 16, WIDTH)), 0.0), axis=0)
        there = (number == block)[None, :, None]
        pivot = tl.sum(tl.where(there, tl.reshape(row, (16, BLOCKS, 16)), 0.0), axis=1)  # [16, 16]
        column = tl.sum(tl.where(there, tl.reshape(matrix, (SIZE, BLOCKS, 16)), 0.0), axis=1)  # [SIZE, 16]
        column = tl.where((block_of == block)[:, None], 0.0, column)
        inverse = invert_positive(pivot, least)
        row = tl.dot(inverse, row, input_precision=PRECISION)
        right_row = tl.dot(inverse, right_row, input_precision=PRECISION)
        matrix -= tl.dot(column, row, input_precision=PRECISION)
        right -= tl.dot(column, right_row, input_precision=PRECISION)
        matrix = tl.where(
            (block_of == block)[:, None],
            tl.reshape(tl.broadcast_to(row[None, :, :], (BLOCKS, 16, SIZE)), (SIZE, SIZE)),
            matrix,
        )
        right = tl.where(
            (block_of == block)[:, None],
            tl.reshape(tl.broadcast_to(right_row[None, :, :], (BLOCKS, 16, WIDTH)), (SIZE, WIDTH)),
            right,
        )
    return right


@triton.jit
def invert_positive(matrix, least):  # [16, 16]
    """The inverse of a symmetric matrix whose eigenvalues are at least `least`, by the sweep operator.

    The pivots are Cholesky's squared, which are no smaller than the least eigenvalue: a smaller one is rounding.
    """
    i = tl.arange(0, 16)
    for k in range(16):
        in_row, in_column = (i == k)[:, None], (i == k)[None, :]
        row = tl.sum(tl.where(in_row, matrix, 0.0), axis=0)
        column = tl.sum(tl.where(in_column, matrix, 0.0), axis=1)
        pivot = tl.maximum(tl.sum(tl.where(i == k, row, 0.0), axis=0), least)
        row /= pivot
        swept = tl.where(in_column, (column / pivot)[:, None], matrix - column[:, None] * row[None, :])
        matrix = tl.where(in_row, tl.where(in_column, -1.0 / pivot, row[None, :]), swept)
    return -matrix
