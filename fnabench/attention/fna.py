"""Fast Nystrom Attention (arXiv 2507.16018): a training-free, linear-time replacement of self-attention.

Deviations from the authors' public code, each on purpose: masks are honoured or refused instead of ignored; prefix
tokens are always landmarks and never cut off; no landmark repeats; similarities for the selection and the solve are
fp32; the scaling of the iteration is taken per matrix, so that an image's result does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.causal import attend_causally, macs_of_causal
from fnabench.attention.inverse import check_inverse, effective_values, macs_of_inverse, round_values
from fnabench.attention.landmarks import Landmarks
from fnabench.attention.selection import Selection, one_head_each

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fna(Attention):
    """The paper's form. Per image M landmark tokens L, shared by all heads; per head

        A  = softmax(s Q_L K_L^T)      U = softmax(s Q_L K^T) V
        V' = A^+ U                     O = softmax(s Q K_L^T) V'

    Cost a head: 4 N M D MACs for the two fused products, 24 M^3 for six iterations, and once a forward N M F for the
    selection. Below a few hundred tokens that is more than exact attention. Under a causal mask, where A^+ would show
    a token the future, it is `causal_attention` with M cells instead, and no inverse.
    """

    num_landmarks: int = 64
    features: str = "q"
    sketch: int = 0
    method: str = "fps"
    num_refinements: int = 2
    resample: str = "forward"
    num_sinks: int = 0
    sinks_by: str = "mass"
    per_head: bool = False
    seed: int = 0
    """From `features` to here: how the landmarks are chosen, see Selection."""
    inverse: str = "newton_schulz"
    num_iterations: int = 6
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        Selection.of(self, self.num_landmarks)  # which refuses what it does not know
        check_inverse(self.inverse, self.num_iterations, self.ridge, self.num_landmarks)

    def check(self, shape: AttentionShape) -> None:
        Selection.of(self, self.num_landmarks).check(shape)

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        if self.per_head:
            return replace(self, per_head=False)(one_head_each(inputs)).view(inputs.q.shape)
        if inputs.is_causal:
            return attend_causally(inputs, Selection.of(self, self.num_landmarks))
        allowed = inputs.key_mask()
        landmarks = inputs.memo.get("landmarks")
        if landmarks is None or self.resample == "layer":
            selection = Selection.of(self, self.num_landmarks)
            landmarks = selection.choose(inputs, selection.points(inputs), allowed)
            inputs.memo["landmarks"] = landmarks
        else:  # this layer's mask need not be the one that the landmarks were chosen under
            landmarks = landmarks.under(allowed)
        return nystrom_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            landmarks,
            inputs.scale,
            self.inverse,
            self.num_iterations,
            self.ridge,
            allowed,
        )

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        if self.per_head:
            return shape.num_heads * replace(self, per_head=False).macs(replace(shape, num_heads=1), num_layers)
        n, m, d = shape.num_tokens, self.num_landmarks, shape.head_dim
        if shape.is_causal:
            return macs_of_causal(shape, Selection.of(self, m), num_layers)
        head = 4 * n * m * d + m * m * d + macs_of_inverse(self.inverse, m, d, self.num_iterations)
        num_selections = 1 if self.resample == "forward" else num_layers
        return num_layers * shape.num_heads * head + num_selections * Selection.of(self, m).macs(shape)


def nystrom_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    landmarks: Landmarks,
    scale: float,
    inverse: str = "newton_schulz",
    num_iterations: int = 6,
    ridge: float = 1e-3,
    allowed: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H N D"]:
    """The Nystrom form of attention; tokens that are not `allowed` are keys of neither product."""
    q_l, k_l = landmarks.gather(q), landmarks.gather(k)  # [B, H, M, D]
    logits = scale * q_l.float() @ k_l.float().mT
    if landmarks.valid is None:
        a = logits.softmax(-1)
    else:  # an invalid landmark is a unit row and column, so it solves for itself and reaches no other
        pair = landmarks.valid[:, None, :, None] & landmarks.valid[:, None, None, :]
        identity = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        a = logits.masked_fill(~(pair | identity), -torch.inf).softmax(-1)
    keys = None if allowed is None else allowed[:, None, None, :]
    landmark_keys = None if landmarks.valid is None else landmarks.valid[:, None, None, :]
    u = scaled_dot_product_attention(q_l, k, v, attn_mask=keys, scale=scale)
    values = round_values(effective_values(a, u, inverse, num_iterations, ridge), v.dtype)
    return scaled_dot_product_attention(q, k_l, values, attn_mask=landmark_keys, scale=scale)
