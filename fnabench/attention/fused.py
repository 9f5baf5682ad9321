"""Refined FNA by kernels that first prove themselves against the plain form, on the inputs that they are given."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fnabench.attention.cells import gather_cells
from fnabench.attention.landmarks import Landmarks
from fnabench.attention.refined import refined_attention
from fnabench.kernels import reference
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.proof import BOUND, Finding, proven
from fnabench.kernels.refined_attention import refined_attention as fused_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

SHORTFALL = 1e-3
"""Of a distance: two tokens that are as far as that from each other's distance are equally far."""
OWN_ERROR = 10
"""How many times as far from exact arithmetic as the plain form in the same type the kernels may be: with sharp
attention BOUND is too strict for either."""


def sample_proven(
    features: Float[Tensor, "B N F"],
    num_landmarks: int,
    num_prefix: int,
    allowed: Bool[Tensor, "B N"] | None,
    num_cells: int,
    guaranteed: Int[Tensor, "B S"] | None,
) -> Sampled:
    """kernels.sample_farthest_points. Which of two equally far tokens is taken is rounding, so it is the distances that
    are compared, not the tokens."""
    arguments = (features, num_landmarks, num_prefix, allowed, num_cells, guaranteed)
    num_guaranteed = 0 if guaranteed is None else guaranteed.shape[1]
    kind = (
        "farthest points", features.device, features.dtype, *features.shape[1:],
        num_landmarks, num_prefix, allowed is None, num_cells, num_guaranteed,
    )  # fmt: skip

    def compare(sampled: Sampled) -> Finding:
        images = []
        for b in range(len(features)):
            x, at, of, seen, first = _image(b, features, sampled.index, sampled.cell_of, allowed, guaranteed)
            images.append(reference.sampling_shortfall(x, at, of, seen, first, num_prefix, num_cells))
        worst = torch.stack(images).max()
        return Finding(difference=worst, limit=torch.full_like(worst, SHORTFALL))

    return proven(kind, partial(sample_farthest_points, *arguments), compare)


def attend_proven(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    index: Int[Tensor, "B L"],
    cell_of: Int[Tensor, "B N"],
    scale: float,
    ridge: float,
    allowed: Bool[Tensor, "B N"] | None,
    num_cells: int,
) -> Float[Tensor, "B H N D"]:
    """kernels.refined_attention. It is compared image by image, which needs little memory, with the plain form in
    float64, to which neither autocast nor TF32 applies."""
    strides = q.stride(), k.stride(), v.stride()  # of which Triton compiles some in
    kind = ("attention", q.device, q.dtype, *q.shape[2:], *strides, index.shape[1], allowed is None, num_cells)

    def compare(output: Tensor) -> Finding:
        ours, limits = [], []
        for b in range(len(q)):
            own_q, own_k, own_v, at, of, seen, given = _image(b, q, k, v, index, cell_of, allowed, output)
            wide = own_q.double(), own_k.double(), own_v.double()
            exact = reference.refined_attention(*wide, at, of, scale, ridge, seen, num_cells)
            landmarks = Landmarks(index=at, valid=None if seen is None else seen.gather(1, at))
            cells = gather_cells(of, num_cells, seen)
            plain = refined_attention(own_q, own_k, own_v, landmarks, cells, scale, ridge=ridge, allowed=seen)
            size = exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)
            ours.append((given - exact).norm() / size)
            own = ((plain - exact).norm() / size).nan_to_num(nan=0, posinf=0)  # which excuses nothing
            limits.append((OWN_ERROR * own).clamp_min(BOUND[q.dtype]))
        differences, most = torch.stack(ours), torch.stack(limits)
        worst = (differences / most).argmax()  # or the first NaN
        return Finding(difference=differences[worst], limit=most[worst])

    run = partial(fused_attention, q, k, v, index, cell_of, scale, ridge, allowed, num_cells)
    return proven(kind, run, compare)


def _image(b: int, *tensors: Tensor | None) -> list[Any]:
    """One image of each, as a batch of its own."""
    return [None if each is None else each[b : b + 1] for each in tensors]
