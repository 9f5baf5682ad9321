"""Farthest point sampling of a whole batch in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fnabench.kernels.limits import require_sampling, require_triton

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """L distinct tokens per image, prefix and then guaranteed ones first, and to which of the first M each belongs."""

    index: Int[Tensor, "B L"]
    cell_of: Int[Tensor, "B N"]
    """Position in `index`: of itself for one of the first M; for others that of the nearest of them that is allowed and
    neither a prefix token nor guaranteed."""


def sample_farthest_points(
    features: Float[Tensor, "B N F"],
    num_landmarks: int,
    num_prefix: int,
    allowed: Bool[Tensor, "B N"] | None = None,
    num_cells: int | None = None,
    guaranteed: Int[Tensor, "B S"] | None = None,
) -> Sampled:
    """attention.landmarks.farthest_points with the cells of attention.cells.nearest_landmark, which cost nothing more.

    The first `num_cells` landmarks own the cells, all of them where it is None. Distances are fp32 sums of squared
    differences of the features as they are: 16-bit features are read as such. Where an image has fewer allowed tokens
    than landmarks, its last landmarks are tokens that are not allowed. One landmark after the other: O(N L F) on one
    multiprocessor an image; a copy of the features into another layout is the second launch. ImpossibleError where
    the kernel does not apply; no device sync.
    """
    num_cells = num_landmarks if num_cells is None else num_cells
    num_alone = num_prefix + (0 if guaranteed is None else guaranteed.shape[1])
    require_sampling(features.shape[1], num_landmarks, num_cells, num_prefix, num_alone)
    index, cell_of = _sample(features.detach(), num_landmarks, num_cells, num_prefix, allowed, guaranteed)
    return Sampled(index=index, cell_of=cell_of)


@torch.library.custom_op(
    "fnabench::farthest_points",
    mutates_args=(),
    schema="(Tensor features, int num_landmarks, int num_cells, int num_prefix, Tensor? allowed, Tensor? guaranteed) "
    "-> (Tensor, Tensor)",
)
def _sample(
    features: Tensor,
    num_landmarks: int,
    num_cells: int,
    num_prefix: int,
    allowed: Tensor | None,
    guaranteed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    require_triton(features.device)
    from fnabench.kernels.programs.farthest_points import launch

    with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
        return launch(features, num_landmarks, num_cells, num_prefix, allowed, guaranteed)


@_sample.register_fake
def _(
    features: Tensor,
    num_landmarks: int,
    num_cells: int,
    num_prefix: int,
    allowed: Tensor | None,
    guaranteed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    B, N, _ = features.shape
    return features.new_empty(B, num_landmarks, dtype=torch.long), features.new_empty(B, N, dtype=torch.long)
