"""Nystromformer (Xiong et al., AAAI 2021, arXiv 2102.03902) without training: landmarks are means of segments.

Its depth-wise convolution of the values is trained and therefore left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.cells import Cells, gather_cells
from fnabench.attention.inverse import check_inverse, effective_values, macs_of_inverse, round_values
from fnabench.attention.landmarks import check_landmarks
from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Nystromformer(Attention):
    """The patches, in the order in which they come, are cut into segments of equal length, the prefix tokens are
    segments of their own. With Qbar and Kbar the means of q and k over M segments, per head

        O = softmax(s Q Kbar^T) A^+ softmax(s Qbar K^T) V      A = softmax(s Qbar Kbar^T)

    A^+ by `num_iterations` Newton-Schulz steps. Cost a head: 4 N M D MACs and 24 M^3 for six steps. A segment is a
    part of a row of patches, or some rows, so it can lie across the border of an object. Masks are refused.
    """

    num_landmarks: int = 64
    """M, the number of segments, prefix tokens included."""
    num_iterations: int = 6

    def __post_init__(self) -> None:
        if self.num_landmarks < 1:
            raise BadInputError(f"num_landmarks={self.num_landmarks} must be at least 1")
        check_inverse("newton_schulz", self.num_iterations, 0.0, self.num_landmarks)

    def check(self, shape: AttentionShape) -> None:
        shape.refuse_causal()
        check_landmarks(self.num_landmarks, shape.num_tokens, shape.num_prefix)

    @property
    def honours_key_mask(self) -> bool:
        return False

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        inputs.refuse_any_mask()
        q, k, v = inputs.q, inputs.k, inputs.v
        if "segments" not in inputs.memo:
            inputs.memo["segments"] = self.segments(inputs)
        segments: Cells = inputs.memo["segments"]
        q_l, k_l = segments.mean(q), segments.mean(k)  # [B, H, M, D], fp32
        a = (inputs.scale * q_l @ k_l.mT).softmax(-1)
        u = scaled_dot_product_attention(q_l.to(q.dtype), k, v, scale=inputs.scale)
        values = round_values(effective_values(a, u, "newton_schulz", self.num_iterations), v.dtype)
        return scaled_dot_product_attention(q, k_l.to(k.dtype), values, scale=inputs.scale)

    def segments(self, inputs: AttentionInputs) -> Cells:
        """Which tokens belong together, the same for every image; ImpossibleError if the segments do not fit."""
        B, _, N, _ = inputs.q.shape
        check_landmarks(self.num_landmarks, N, inputs.num_prefix)
        prefix = inputs.num_prefix
        patch = torch.arange(N - prefix, device=inputs.q.device)
        number = prefix + patch * (self.num_landmarks - prefix) // (N - prefix)
        number = torch.cat([torch.arange(prefix, device=patch.device), number])
        return gather_cells(number.expand(B, -1), self.num_landmarks)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        n, m, d = shape.num_tokens, self.num_landmarks, shape.head_dim
        head = 4 * n * m * d + m * m * d + macs_of_inverse("newton_schulz", m, d, self.num_iterations)
        return num_layers * shape.num_heads * head
