"""Performer (Choromanski et al., ICLR 2021, arXiv 2009.14794) without training: softmax as a product of features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.errors import BadInputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Performer(Attention):
    """FAVOR+, positive orthogonal random features. With F random directions w_f and x scaled by sqrt(s), per head

        phi(x)_f = exp(w_f x - |x|^2 / 2)      O_i = phi(q_i) (phi(K)^T V) / (phi(q_i) phi(K)^T 1)

    of which numerator and denominator are unbiased for those of softmax attention. Their variance grows as
    exp(|q + k|^2), which is why a model that was trained with softmax needs either small norms or very many features.
    Cost a head: about 4 N F D MACs, fp32. A key mask is honoured, a causal one refused.
    """

    num_features: int = 256
    """F."""
    seed: int = 0
    """Of the directions, which all layers and heads share."""

    def __post_init__(self) -> None:
        if self.num_features < 1:
            raise BadInputError(f"num_features={self.num_features} must be at least 1")

    def check(self, shape: AttentionShape) -> None:
        shape.refuse_causal()

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        inputs.refuse_causal()
        allowed = inputs.key_mask()
        directions = _directions(self.num_features, inputs.q.shape[-1], self.seed, inputs.q.device)
        queries, keys = (_exponents(each, inputs.scale, directions) for each in (inputs.q, inputs.k))
        if allowed is not None:
            keys = keys.masked_fill(~allowed[:, None, :, None], -torch.inf)
        # What a feature of the keys loses, that of the queries is given; what these lose cancels in the quotient.
        largest = keys.amax(-2, keepdim=True).clamp_min(torch.finfo(keys.dtype).min)  # -inf where no key is allowed
        keys = (keys - largest).exp()
        queries = queries + largest
        queries = (queries - queries.amax(-1, keepdim=True)).exp()
        sums = queries @ (keys.mT @ pad(inputs.v.float(), (0, 1), value=1.0))  # [B, H, N, D + 1]
        mass = sums[..., -1:].clamp_min(1)  # it is at least 1, but 0 where no key is allowed
        return (sums[..., :-1] / mass).to(inputs.v.dtype)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        head = 2 * shape.num_tokens * self.num_features * (2 * shape.head_dim + 1)
        return num_layers * shape.num_heads * head


def _exponents(
    tokens: Float[Tensor, "B H N D"], scale: float, directions: Float[Tensor, "F D"]
) -> Float[Tensor, "B H N F"]:
    """log phi, fp32."""
    scaled = scale**0.5 * tokens.float()
    exponents: Tensor = scaled @ directions.mT - 0.5 * scaled.square().sum(-1, keepdim=True)
    return exponents


@cache
def _directions(num_features: int, head_dim: int, seed: int, device: torch.device) -> Float[Tensor, "F D"]:
    """Vectors as long as normal ones, of which every D are orthogonal to one another; the same ones for a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):  # kept for callers in and out of it
        blocks = torch.randn(-(-num_features // head_dim), head_dim, head_dim, generator=generator)
        lengths = torch.randn(num_features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
        q, r = torch.linalg.qr(blocks)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # else not all rotations are equally likely
        directions: Tensor = lengths * q.mT.flatten(0, 1)[:num_features]
        return directions.to(device)
