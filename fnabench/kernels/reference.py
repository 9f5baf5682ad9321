"""What the kernels of refined attention compute, in plain fp32 PyTorch: their specification.

Landmarks L are query tokens, cells a partition of the tokens into M groups of n_j members with means Kbar, Vbar:

    U  = softmax(s Q_L K^T) V                       exact outputs of the landmarks
    A' = softmax_j(s Q_L Kbar^T + log n_j)          the landmark rows of F'
    V' = Vbar + (A'^T A' + r I)^-1 A'^T (U - A' Vbar)
    O  = softmax_j(s Q Kbar^T + log n_j) V',  then O_L := U
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The means of the keys and values of each cell, and how many allowed tokens it has."""

    keys: Float[Tensor, "B H M D"]
    values: Float[Tensor, "B H M D"]
    count: Float[Tensor, "B H M"]


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
    """As kernels.refined_attention, whose contract this meets; memory for the N x M matrix of each head."""
    index, cell_of = (_per_head(each, q.shape[1]) for each in (landmark_index, cell_of))
    rows = index[..., None].expand(-1, -1, -1, q.shape[-1])
    landmarks = q.gather(2, rows)
    outputs = landmark_outputs(landmarks, k, v, scale, allowed)
    cells = cell_means(k, v, cell_of, num_cells or index.shape[-1], allowed)
    valid = None if allowed is None else _per_head(allowed, q.shape[1]).gather(2, index)
    values = effective_values(landmarks, outputs, cells, scale, ridge, valid)
    return (cell_softmax(q, cells, scale) @ values).scatter(2, rows, outputs).to(q.dtype)


def landmark_outputs(
    landmarks: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    scale: float,
    allowed: Bool[Tensor, "B N"] | None,
) -> Float[Tensor, "B H L D"]:
    """U: what exact attention gives the landmarks; zeros where no token is allowed."""
    logits = scale * landmarks.float() @ k.float().mT
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None, None], -torch.inf)
    return _softmax(logits) @ v.float()


def cell_means(
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    cell_of: Int[Tensor, "B H N"],
    num_cells: int,
    allowed: Bool[Tensor, "B N"] | None,
) -> Cells:
    """Tokens that are not allowed belong to no cell; the means of an empty cell are zero."""
    members = torch.arange(num_cells, device=k.device)[:, None] == cell_of[:, :, None]  # [B, H, M, N]
    if allowed is not None:
        members = members & allowed[:, None, None]
    count = members.sum(-1).float()
    weights = members / count.clamp_min(1)[..., None]
    return Cells(keys=weights @ k.float(), values=weights @ v.float(), count=count)


def cell_softmax(q: Float[Tensor, "B H N D"], cells: Cells, scale: float) -> Float[Tensor, "B H N M"]:
    """F': each cell counts as often as it has members."""
    return _softmax(scale * q.float() @ cells.keys.mT + cells.count.log()[:, :, None])


def effective_values(
    landmarks: Float[Tensor, "B H L D"],
    outputs: Float[Tensor, "B H L D"],
    cells: Cells,
    scale: float,
    ridge: float,
    valid: Bool[Tensor, "B H L"] | None = None,
) -> Float[Tensor, "B H M D"]:
    """V': ridge regression of U on A' with the cell means as prior; landmarks that are not valid are left out."""
    a = cell_softmax(landmarks, cells, scale)
    if valid is not None:
        a = a * valid[..., None]
        outputs = outputs * valid[..., None]
    gram = a.mT @ a
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    correction = torch.cholesky_solve(a.mT @ (outputs - a @ cells.values), torch.linalg.cholesky_ex(gram).L)
    return cells.values + correction


def _softmax(logits: Float[Tensor, "*rows M"]) -> Float[Tensor, "*rows M"]:
    """Softmax that gives zeros where every logit is -inf."""
    return logits.softmax(-1).masked_fill(logits.isneginf().all(-1, keepdim=True), 0)


def _per_head(tokens: Tensor, num_heads: int) -> Tensor:
    """[B, X] or [B, H, X] as [B, H, X]."""
    return tokens if tokens.dim() == 3 else tokens[:, None].expand(-1, num_heads, -1)
