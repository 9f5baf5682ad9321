"""What the kernels compute, in plain PyTorch, fp32 or, given that, float64: their specification.

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
    logits = scale * _wide(landmarks) @ _wide(k).mT
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None, None], -torch.inf)
    return _softmax(logits) @ _wide(v)


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
    k, v = _wide(k), _wide(v)
    count = members.sum(-1).to(k.dtype)
    weights = members / count.clamp_min(1)[..., None]
    return Cells(keys=weights @ k, values=weights @ v, count=count)


def cell_softmax(q: Float[Tensor, "B H N D"], cells: Cells, scale: float) -> Float[Tensor, "B H N M"]:
    """F': each cell counts as often as it has members."""
    return _softmax(scale * _wide(q) @ cells.keys.mT + cells.count.log()[:, :, None])


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


def sampling_shortfall(
    features: Float[Tensor, "B N F"],
    index: Int[Tensor, "B L"],
    cell_of: Int[Tensor, "B N"],
    allowed: Bool[Tensor, "B N"] | None,
    guaranteed: Int[Tensor, "B S"] | None,
    num_prefix: int,
    num_cells: int,
) -> Float[Tensor, ""]:
    """By which share of the right distance farthest points, and cells of the nearest of them, miss it at worst.

    Infinite where they are not what sample_farthest_points promises: distinct tokens, prefix and guaranteed ones first,
    each in a cell of its own; all other allowed tokens in cells of allowed ones. Memory for the N x L distances.
    """
    N = features.shape[1]
    prefix = torch.arange(num_prefix, device=index.device).expand(len(index), -1)
    start = prefix if guaranteed is None else torch.cat([prefix, guaranteed], 1)
    num_alone = start.shape[1]
    at, of = index.clamp(0, N - 1), cell_of.clamp(0, num_cells - 1)  # a kernel that fails may write anything
    seen = torch.ones_like(cell_of, dtype=torch.bool) if allowed is None else allowed
    valid = seen.gather(1, at)
    own = at[:, :num_cells]
    is_own = torch.zeros_like(seen).scatter(1, own, True)

    x = features.double()
    landmarks = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
    mean = (seen.double() / seen.sum(1, keepdim=True).clamp_min(1))[:, None] @ x  # the start where nothing else is
    chosen = torch.cat([mean, landmarks], 1)
    distance = torch.cdist(x, chosen, compute_mode="donot_use_mm_for_euclid_dist")  # by differences: equal ones are 0
    if num_alone:
        distance[..., 0] = torch.inf
    before = distance[..., :-1].cummin(-1).values[..., num_alone:]  # to what was chosen before each choice
    taken = before.gather(1, at[:, None, num_alone:])[:, 0] * valid[:, num_alone:]
    farthest = before.masked_fill(~seen[..., None], 0).amax(1)

    shared = distance[..., 1 : num_cells + 1].masked_fill(~valid[:, None, :num_cells], torch.inf)
    shared[..., :num_alone] = torch.inf
    nearest = shared.amin(-1)
    assigned = shared.gather(-1, of[..., None])[..., 0]
    counted = seen & ~is_own

    in_order = torch.arange(num_cells, device=index.device).expand_as(own)
    is_sound = (
        torch.equal(at, index)
        and bool((at.sort(1).values.diff() > 0).all())
        and torch.equal(at[:, :num_alone], start)
        and torch.equal(cell_of.gather(1, own), in_order)
        and torch.equal(of[counted], cell_of[counted])
    )
    short = [_share(farthest - taken, farthest), _share(assigned - nearest, nearest).masked_fill(~counted, 0)]
    worst = torch.cat([each.flatten() for each in short]).max()
    return worst if is_sound else torch.full_like(worst, torch.inf)


def _share(of: Tensor, whole: Tensor) -> Tensor:
    return of / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def _wide(tokens: Tensor) -> Tensor:
    """At least fp32."""
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def _softmax(logits: Float[Tensor, "*rows M"]) -> Float[Tensor, "*rows M"]:
    """Softmax that gives zeros where every logit is -inf."""
    return logits.softmax(-1).masked_fill(logits.isneginf().all(-1, keepdim=True), 0)


def _per_head(tokens: Tensor, num_heads: int) -> Tensor:
    """[B, X] or [B, H, X] as [B, H, X]."""
    return tokens if tokens.dim() == 3 else tokens[:, None].expand(-1, num_heads, -1)
