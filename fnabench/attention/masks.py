"""Taking tokens T out of attention as keys: masking before the softmax, sinking after it, and who may see whom.

mask: logits -inf, so that rows renormalise. sink: probabilities 0 after the softmax, so that their mass is lost.
type1: no query sees T. type2: the same, but each token of T keeps its own diagonal entry.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import AttentionInputs
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

PATTERNS = ("type1", "type2")


def without_keys(inputs: AttentionInputs, tokens: Bool[Tensor, "B N"]) -> AttentionInputs:
    """The same inputs with these tokens masked as keys, for any variant that honours a key mask."""
    allowed = inputs.key_mask()
    visible = ~tokens if allowed is None else allowed & ~tokens
    return replace(inputs, mask=visible[:, None, None, :])


def refuse_mask(inputs: AttentionInputs) -> None:
    """The detectors take every token for one that may be attended to."""
    if inputs.mask is not None or inputs.is_causal:
        raise ImpossibleError("no tokens are looked for under an attention mask; use attention=exact")


def attend_masked(inputs: AttentionInputs, tokens: Bool[Tensor, "B N"], pattern: str) -> Float[Tensor, "B H N D"]:
    """Softmax attention with the tokens masked."""
    inputs.refuse_causal()
    visible, allowed = ~tokens[:, None, None, :], inputs.key_mask()
    if pattern == "type2":
        visible = visible | torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    if allowed is not None:
        visible = visible & allowed[:, None, None, :]
    return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, attn_mask=visible, scale=inputs.scale)


def attend_sunk(inputs: AttentionInputs, tokens: Bool[Tensor, "B N"], pattern: str) -> Float[Tensor, "B H N D"]:
    """Softmax attention with the tokens sunk: mass that is lost is mass on values of zero."""
    inputs.refuse_causal()
    allowed = inputs.key_mask()
    visible = None if allowed is None else allowed[:, None, None, :]
    kept = inputs.v.masked_fill(tokens[:, None, :, None], 0)
    output = scaled_dot_product_attention(inputs.q, inputs.k, kept, attn_mask=visible, scale=inputs.scale)
    if pattern == "type1":
        return output
    own = attention_matrix(inputs).diagonal(dim1=-2, dim2=-1)[..., None]  # [B, H, N, 1]
    return output + (own * (inputs.v - kept)).to(output.dtype)


def attention_matrix(inputs: AttentionInputs) -> Float[Tensor, "B H N N"]:
    """The probabilities written out, fp32; needs N^2 memory a head."""
    inputs.refuse_causal()
    allowed = inputs.key_mask()
    logits: Tensor = inputs.scale * inputs.q.float() @ inputs.k.float().mT
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None, None, :], -torch.inf)
    return logits.softmax(-1)
