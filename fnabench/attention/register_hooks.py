"""Hooks of test-time registers: added tokens go through a model's blocks, and hidden neurons are read or moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fnabench.attention.layers import AttentionLayer, ForwardState
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def surround(state: ForwardState, num_registers: int, neurons: Iterable[tuple[int, int]]) -> None:
    """Put registers into a model, until its layers are detached."""
    first, last = state.tower[0], state.tower[-1]
    place = slice(first.num_prefix, first.num_prefix + num_registers)
    state.num_registers = num_registers
    state.handles += [
        first.block.register_forward_pre_hook(_Insert(state, place), prepend=True, with_kwargs=True),
        last.block.register_forward_hook(_Remove(state, place)),
    ]
    by_block: dict[int, list[int]] = {}
    for block, neuron in neurons:
        by_block.setdefault(block, []).append(neuron)
    device = next(first.block.parameters()).device
    for block, chosen in by_block.items():
        shift = _Shift(state, place, torch.tensor(chosen, device=device))
        state.handles.append(state.tower[block].hidden_activation.register_forward_hook(shift))


@dataclass(frozen=True, eq=False)
class _Insert:
    state: ForwardState
    place: slice

    def __call__(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.state.paused:
            return args, options
        x, *rest = args
        if any(each is not None for each in (*rest, options.get("attn_mask"))):
            raise ImpossibleError("a mask given to the model cannot be honoured with test-time registers")
        registers = x.new_zeros(len(x), self.place.stop - self.place.start, x.shape[-1])
        return (torch.cat([x[:, : self.place.start], registers, x[:, self.place.start :]], 1), *rest), options


@dataclass(frozen=True, eq=False)
class _Remove:
    state: ForwardState
    place: slice

    def __call__(self, _: nn.Module, __: object, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return x if self.state.paused else torch.cat([x[:, : self.place.start], x[:, self.place.stop :]], 1)


@dataclass(frozen=True, eq=False)
class _Shift:
    state: ForwardState
    place: slice
    neurons: Tensor

    def __call__(self, _: nn.Module, __: object, hidden: Float[Tensor, "B N F"]) -> Float[Tensor, "B N F"]:
        if self.state.paused:
            return hidden
        shifted = hidden.clone()
        shifted[:, self.place, self.neurons] = hidden[:, self.place.stop :, self.neurons].amax(1, keepdim=True)
        shifted[:, self.place.stop :, self.neurons] = 0
        return shifted


class Recording:
    """The hidden neurons of some layers and the norms of another's input in the last forward."""

    def __init__(self, layers: Sequence[AttentionLayer], detect: AttentionLayer) -> None:
        self.layers, self.detect = layers, detect
        self.hidden: dict[int, Float[Tensor, "B N F"]] = {}
        self.norms: Float[Tensor, "B N"]
        self._handles: list[Any] = []

    def __enter__(self) -> Recording:
        self._handles.append(self.detect.block.register_forward_pre_hook(self._keep_norms))
        for layer in self.layers:

            def keep(_: nn.Module, __: object, hidden: Tensor, index: int = layer.index) -> None:
                self.hidden[index] = hidden

            self._handles.append(layer.hidden_activation.register_forward_hook(keep))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_norms(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.norms = torch.linalg.vector_norm(args[0], dim=-1, dtype=torch.float32)
