"""Refined Fast Nystrom Attention in three launches."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from fnabench.errors import ImpossibleError
from fnabench.kernels.limits import require_attention, require_tensors, require_triton

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def refined_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    landmark_index: Int[Tensor, "B *H L"],
    cell_of: Int[Tensor, "B *H N"],
    scale: float,
    ridge: float,
    allowed: Bool[Tensor, "B N"] | None = None,
    num_cells: int | None = None,
) -> Float[Tensor, "B H N D"]:
    """kernels.reference.refined_attention on a GPU.

    q, k, v: one type of fp32, bf16 and fp16, any strides; D <= 128. Products of 16-bit tensors are 16-bit with fp32
        sums, as in flash attention; A' and the solve are fp32.
    landmark_index: L distinct tokens, one set an image or one a head. Their outputs are exact.
    cell_of: the cell of each token, 0..num_cells-1, likewise. Cells may be empty.
    scale: factor on the logits; ridge: r > 0.
    allowed: tokens that are False are no keys and in no cell, and a landmark among them is left out of the solve. As
        queries all tokens count. An image without any allowed token gives zeros.
    num_cells: M <= 128 (64 for fp32 heads of more than 64 channels, fewer on devices of little shared memory) and
        M <= L; L where None.

    Returns q's type, laid out as [B, N, H, D], so that joining the heads copies nothing. The rest of the batch changes
    an image's result by rounding alone. No call waits for the device, so indices out of range are not looked for.
    ImpossibleError where the kernels do not apply. There is no backward.
    """
    num_landmarks = landmark_index.shape[-1]
    num_cells = num_landmarks if num_cells is None else num_cells
    require_attention(q.dtype, q.shape[-1], num_landmarks, num_cells, q.device)
    require_tensors(q, k, v)
    if ridge <= 0:
        raise ImpossibleError(f"the fused kernels need a positive ridge, not {ridge}; use the plain form")
    output: Tensor = _attend(q, k, v, landmark_index, cell_of, scale, ridge, allowed, num_cells)
    return output


@torch.library.custom_op(
    "fnabench::refined_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor landmark_index, Tensor cell_of, float scale, float ridge, "
    "Tensor? allowed, int num_cells) -> Tensor",
)
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmark_index: Tensor,
    cell_of: Tensor,
    scale: float,
    ridge: float,
    allowed: Tensor | None,
    num_cells: int,
) -> Tensor:
    require_triton(q.device)
    from fnabench.kernels.programs import landmark_pass, solve, token_pass

    B, H, N, _ = q.shape
    index, cell_of = (
        each if each.dim() == 3 else each[:, None].expand(-1, H, -1) for each in (landmark_index, cell_of)
    )
    num_splits = landmark_pass.count_splits(N, B * H, _num_multiprocessors(q.device))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        sums, counts = landmark_pass.launch(q, k, v, index, cell_of, allowed, scale, num_cells, num_splits)
        cells, log_count = solve.launch(q, index, allowed, sums, counts, scale, ridge, num_cells)
        return token_pass.launch(q, index, cells, log_count, scale, num_cells)


@_attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    landmark_index: Tensor,
    cell_of: Tensor,
    scale: float,
    ridge: float,
    allowed: Tensor | None,
    num_cells: int,
) -> Tensor:
    B, H, N, D = q.shape
    return q.new_empty(B, N, H, D).transpose(1, 2)


@cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
