"""Finding the tokens that attention is poured into: massive ones, and artifacts that take over where those are masked.

Everything is decided per image, prefix tokens are never found, and "none" is a valid finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

DETECTORS = ("norm", "cls")
RATIO = 0.3
"""A token is massive where CLS gives it more than this times what CLS gives itself."""
MIN_GAP = 0.7
"""In nats: the least massive token's norm is at least twice that of the next token."""


def cls_logits(q: Float[Tensor, "B H N D"], k: Float[Tensor, "B H N D"], scale: float) -> Float[Tensor, "B H N"]:
    """The CLS row of the attention logits in fp32; H N D MACs."""
    row: Tensor = scale * (q[:, :, :1].float() @ k.float().mT)[:, :, 0]
    return row


def cls_attention(logits: Float[Tensor, "B H N"], masked: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N"]:
    """What CLS gives each token, mean over heads; masked tokens get nothing."""
    if masked is not None:
        logits = logits.masked_fill(masked[:, None], -torch.inf)
    return logits.softmax(-1).mean(1)


def above_cls(attention: Float[Tensor, "B N"], num_prefix: int, ratio: float) -> Bool[Tensor, "B N"]:
    """The patches that CLS gives more than `ratio` times what it gives itself."""
    found = attention > ratio * attention[:, :1]
    found[:, :num_prefix] = False
    return found


def above_gap(norms: Float[Tensor, "B N"], num_prefix: int, min_gap: float) -> Bool[Tensor, "B N"]:
    """The patches above the largest gap of their sorted log norms, where it is at least `min_gap`.

    Massive tokens are few: only gaps with at most half of the patches above them count.
    """
    logs = norms[:, num_prefix:].float().clamp_min(torch.finfo(torch.float32).tiny).log()
    ordered = logs.sort(1, descending=True).values[:, : logs.shape[1] // 2 + 1]
    gap, position = (ordered[:, :-1] - ordered[:, 1:]).max(1, keepdim=True)
    found = torch.zeros_like(norms, dtype=torch.bool)
    found[:, num_prefix:] = (logs >= ordered.gather(1, position)) & (gap >= min_gap)
    return found


def taking_over(
    logits: Float[Tensor, "B H N"], massive: Bool[Tensor, "B N"], num_prefix: int, rounds: int = 4
) -> Bool[Tensor, "B N"]:
    """Artifacts in one pass: the patches that CLS gives more than itself once the massive ones are masked.

    What is found is masked too, and so on for some rounds. All rounds look at one block's CLS row, so no block runs
    again; that masking changes the blocks before is what it cannot see. O(H N) a round, no device sync.
    """
    masked = massive
    for _ in range(rounds):
        masked = masked | above_cls(cls_attention(logits, masked), num_prefix, 1.0)
    return masked & ~massive
