"""How far two outputs of a model are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def kl_divergence(exact: Float[Tensor, "n classes"], variant: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """KL(exact || variant) in nats of the class probabilities of two rows of logits."""
    p, q = exact.log_softmax(-1), variant.log_softmax(-1)
    return (p.exp() * (p - q)).where(p != -torch.inf, 0).sum(-1)  # 0 log 0 = 0, of a class that cannot be
