"""Attention that costs nothing: with it in place, what is left of the latency is the ceiling of any replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Free(Attention):
    """Every token keeps its own value. A measuring device, not a variant: its outputs mean nothing."""

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        return inputs.v

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return 0
