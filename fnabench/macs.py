"""Multiply-accumulates of a model: its own layers by a counter, its attention cores by each variant's formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fnabench.attention.base import Attention, AttentionShape

if TYPE_CHECKING:
    from torch import Tensor

MOST_TOKENS = 2**20
"""Up to so many a crossover is looked for."""
LARGEST_FALL = 1.5
"""Factor by which more tokens may cost less under a causal mask, where blocks share landmarks in whole numbers: 1.2 in
the products of `attend_causally`, more in the choice of landmarks. Without such a mask more tokens never cost less."""


def count_macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of all products in a call, fused attention included: it runs unfused while counted, and
    where it is causal only the pairs that its mask allows count, as in every formula."""
    causal = _CausalAttention()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, causal:
        call()
    return int(counter.get_total_flops()) // 2 - causal.forbidden_macs


def attention_macs(attention: Attention, shapes: Sequence[AttentionShape]) -> int:
    """Multiply-accumulates of an attention variant on these layers for one image."""
    return sum(attention.macs(shape, num_layers) for shape, num_layers in Counter(shapes).items())


class _CausalAttention(TorchFunctionMode):
    """Adds up the products with pairs that fused causal attention forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden_macs = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.forbidden_macs += _forbidden_macs(*args, **kwargs)
        return func(*args, **kwargs)


def _forbidden_macs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> int:
    """Multiply-accumulates with keys behind their query, by the arguments of scaled_dot_product_attention."""
    num_keys = key.shape[-2]
    forbidden = sum(max(0, num_keys - 1 - number) for number in range(query.shape[-2])) if is_causal else 0
    num_heads: int = query.shape[:-2].numel()
    return num_heads * forbidden * (query.shape[-1] + value.shape[-1])


def crossover_tokens(attention: Attention, exact: Attention, shapes: Sequence[AttentionShape]) -> int | None:
    """The smallest number of tokens such that from it up to MOST_TOKENS the variant always needs fewer
    multiply-accumulates; None where it does not need fewer with so many."""
    layers = Counter(replace(shape, num_tokens=1) for shape in shapes)
    fall = LARGEST_FALL if any(shape.is_causal for shape in shapes) else 1

    def macs(core: Attention, num_tokens: int) -> int:
        return sum(core.macs(replace(shape, num_tokens=num_tokens), number) for shape, number in layers.items())

    def last_dear(low: int, high: int) -> int:
        """The largest number of tokens from `low` to `high` with which the variant needs no fewer; 0 for none."""
        if macs(exact, low) > macs(attention, high) * (fall if low < high else 1):
            return 0
        middle = (low + high) // 2
        return low if low == high else last_dear(middle + 1, high) or last_dear(low, middle)

    dear = last_dear(1, MOST_TOKENS)
    return dear + 1 if dear < MOST_TOKENS else None
