"""Multiply-accumulates of a model: its own layers by a counter, its attention cores by each variant's formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fnabench.attention.base import Attention, AttentionShape


def count_macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of all products in a call, fused attention included: it runs unfused while counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def attention_macs(attention: Attention, shapes: Sequence[AttentionShape]) -> int:
    """Multiply-accumulates of an attention variant on these layers for one image."""
    return sum(attention.macs(shape, num_layers) for shape, num_layers in Counter(shapes).items())


def crossover_tokens(attention: Attention, exact: Attention, shapes: Sequence[AttentionShape]) -> int | None:
    """The smallest number of tokens from which the variant needs fewer multiply-accumulates; None below 2^20."""

    def is_cheaper(num_tokens: int) -> bool:
        resized = [replace(shape, num_tokens=num_tokens) for shape in shapes]
        return attention_macs(attention, resized) < attention_macs(exact, resized)

    low, high = 0, 2**20
    if not is_cheaper(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_cheaper(middle) else (middle, high)
    return high
