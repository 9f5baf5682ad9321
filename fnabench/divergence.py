"""How far two outputs of a model are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import kl_div

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def kl_divergence(exact: Float[Tensor, "n classes"], variant: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """KL(exact || variant) in nats of the class probabilities of two rows of logits."""
    p, q = exact.log_softmax(-1), variant.log_softmax(-1)
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)
