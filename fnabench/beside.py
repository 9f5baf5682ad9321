"""Exact attention with a variant at its side: how far the variant is off on the same inputs, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from fnabench.attention.layers import AttentionLayer

LayerErrors = dict[int, "Float[Tensor, ' B']"]
"""By layer, ||variant - exact|| / ||exact|| of each image's attention output, heads and tokens together."""


@contextmanager
def exact_beside(layers: Iterable[AttentionLayer]) -> Iterator[LayerErrors]:
    """Run exact attention wherever a variant is attached, without what variants do beside their layers; gives the
    variant's errors in the last forward.

    Afterwards the layers have their variants back.
    """
    errors: LayerErrors = {}
    watched = tuple(layers)
    attached = {layer: layer.core for layer in watched if layer.core is not None and not layer.core.is_exact}
    try:
        for layer in watched:
            layer.state.paused = True
        for layer, core in attached.items():
            layer.attach(_Beside(variant=core, errors=errors))
        yield errors
    finally:
        for layer in watched:
            layer.state.paused = False
        for layer, core in attached.items():
            layer.attach(core)


@dataclass(frozen=True, kw_only=True)
class _Beside(Exact):
    variant: Attention
    errors: LayerErrors

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        exact = super().__call__(inputs)
        off = (self.variant(inputs).float() - exact.float()).flatten(1).norm(dim=1)
        relative = off / exact.float().flatten(1).norm(dim=1)
        self.errors[inputs.layer] = relative.where(off != 0, 0)  # of an output that is all zero too
        return exact
