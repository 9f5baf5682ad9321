"""Exact softmax attention through the seam: the control that every variant is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Exact(Attention):
    """softmax(s Q K^T) V by the library's fused kernel; 2 N^2 D MACs a head, O(N) memory where it is fused."""

    is_exact: ClassVar[bool] = True

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        mask, is_causal = inputs.mask, inputs.is_causal
        allowed = inputs.key_mask() if is_causal else None
        if allowed is not None:  # the kernels take one or the other
            N = inputs.q.shape[2]
            causal = torch.ones(N, N, dtype=torch.bool, device=allowed.device).tril()
            mask, is_causal = causal & allowed[:, None, None], False
        return scaled_dot_product_attention(
            inputs.q, inputs.k, inputs.v, attn_mask=mask, is_causal=is_causal, scale=inputs.scale
        )

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return num_layers * 2 * shape.num_heads * shape.num_pairs * shape.head_dim
