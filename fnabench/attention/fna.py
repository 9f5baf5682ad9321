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
from fnabench.attention.inverse import INVERSES, effective_values, macs_of_inverse
from fnabench.attention.landmarks import FEATURES, Landmarks, farthest_points, features_of, num_features
from fnabench.errors import BadInputError, ImpossibleError, one_of

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
    a token the future, it is `causal_attention` with M cells instead.
    """

    num_landmarks: int = 64
    features: str = "q"
    """What the selection measures distances in: one of FEATURES; the paper's are "input" and "q"."""
    resample: str = "forward"
    """New landmarks once a "forward" (the first replaced layer's serve all later ones) or at each "layer"."""
    inverse: str = "newton_schulz"
    num_iterations: int = 6
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.num_landmarks < 1:
            raise BadInputError(f"num_landmarks={self.num_landmarks} must be at least 1")
        if self.features not in FEATURES:
            raise one_of("features", self.features, FEATURES)
        if self.resample not in ("forward", "layer"):
            raise one_of("resample", self.resample, ("forward", "layer"))
        if self.inverse not in INVERSES:
            raise one_of("inverse", self.inverse, INVERSES)

    def check(self, shape: AttentionShape) -> None:
        if not shape.num_prefix < self.num_landmarks <= shape.num_tokens:
            raise ImpossibleError(
                f"attention.num_landmarks={self.num_landmarks} does not fit {shape.num_tokens} tokens of which "
                f"{shape.num_prefix} are prefix tokens; choose {shape.num_prefix + 1}..{shape.num_tokens}"
            )

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        if inputs.is_causal:
            return attend_causally(inputs, self.num_landmarks, self.features, self.resample)
        allowed = inputs.key_mask()
        landmarks = inputs.memo.get("landmarks")
        if landmarks is None or self.resample == "layer":
            features = features_of(inputs, self.features)
            landmarks = farthest_points(features, self.num_landmarks, inputs.num_prefix, allowed)
            inputs.memo["landmarks"] = landmarks
        elif allowed is not None:  # this layer's mask need not be the one that the landmarks were chosen under
            landmarks = replace(landmarks, valid=allowed.gather(1, landmarks.index))
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
        n, m, d = shape.num_tokens, self.num_landmarks, shape.head_dim
        if shape.is_causal:
            return macs_of_causal(shape, m, self.features, self.resample, num_layers)
        head = 4 * n * m * d + m * m * d + macs_of_inverse(self.inverse, m, d, self.num_iterations)
        num_selections = 1 if self.resample == "forward" else num_layers
        return num_layers * shape.num_heads * head + num_selections * n * m * num_features(shape, self.features)


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
    values = effective_values(a, u, inverse, num_iterations, ridge).to(v.dtype)
    return scaled_dot_product_attention(q, k_l, values, attn_mask=landmark_keys, scale=scale)
