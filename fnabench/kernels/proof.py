"""Kernels prove themselves before they are believed: once a process, device and kind of input, against the plain form.

A wrong number is worse than a slow one, and a kernel may be compiled wrongly for a device that nobody tried it on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from fnabench.device import is_out_of_memory
from fnabench.errors import ImpossibleError, reason_of

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

BOUND = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""On the relative error: what rounding the operands to the type costs, several times over."""

_PROVEN: set[Hashable] = set()


class Finding(NamedTuple):
    """How far a result is from the plain form, and how far it may be: two numbers."""

    difference: Tensor
    limit: Tensor


def proven(kind: Hashable, run: Callable[[], Result], compare: Callable[[Result], Finding]) -> Result:
    """What `run` gives; the first result of its kind only if the comparison with the plain form lets it pass.

    Later ones cost a look-up and do not wait for the device. ImpossibleError where the kernels fail or disagree, and
    where the first would fall into a graph that is being compiled or captured, in which nothing can be compared.
    """
    if kind in _PROVEN:
        return run()
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        raise ImpossibleError(
            "the fused kernels have yet to prove themselves on inputs of this shape, which no graph can hold; call the "
            "model once before it is compiled or captured, or choose attention.fused=true or attention.fused=false"
        )
    try:
        result = run()
        difference, limit = map(float, compare(result))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ImpossibleError(
            f"the fused kernels fail on this device ({type(error).__name__}: {reason_of(error)}); "
            "attention.fused=false runs the plain form"
        ) from error
    if not difference <= limit:  # nor is NaN
        raise ImpossibleError(
            f"the fused kernels differ from the plain form by {difference:.1e} on this device, where rounding explains "
            f"at most {limit:.1e}; attention.fused=false runs the plain form"
        )
    _PROVEN.add(kind)
    return result
