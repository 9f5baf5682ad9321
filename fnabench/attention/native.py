"""The untouched model: the control that shows that the seam itself costs nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from fnabench.attention.layers import AttentionLayer


@dataclass(frozen=True, kw_only=True)
class Native(Attention):
    """Nothing is attached: the library's own attention runs in the library's own module."""

    is_exact: ClassVar[bool] = True

    def attach(self, layers: Iterable[AttentionLayer]) -> None:
        for layer in layers:
            layer.detach()

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        raise RuntimeError("native attention is never attached, so it has no core to call")

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return num_layers * 2 * shape.num_heads * shape.num_pairs * shape.head_dim
