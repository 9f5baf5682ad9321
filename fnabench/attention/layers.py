"""The layers of a pretrained model whose attention can be replaced, and how some of them are chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from fnabench.attention.base import FUSED, Attention, AttentionInputs, AttentionShape
from fnabench.errors import BadInputError, ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass
class ForwardState:
    """What the attached layers of one model share while a forward runs."""

    has_cls: bool = True
    """Whether the model's prefix, where it has one, begins with a class token."""

    attached: set[int] = field(default_factory=set)
    """Indices of the layers that a variant is attached to."""
    memo: dict[str, Any] = field(default_factory=dict)
    """Emptied before the first attached layer of a forward, after the last, and when one raises."""
    block_input: Tensor | None = None
    ids: Sequence[str] = ()
    """Which images the forward runs on, where that has been told."""
    tower: list[AttentionLayer] = field(default_factory=list)
    """All layers of the model, attached or not, in order of depth."""
    num_registers: int = 0
    """Tokens that a variant has put after the model's own prefix."""
    handles: list[Any] = field(default_factory=list)
    """Of the hooks by which a variant acts on the model beside its layers."""
    fused: set[int] = field(default_factory=set)
    """Indices of the layers that fused kernels have computed since the variant was attached."""

    paused: bool = False
    """Whether those hooks let the model run as it is."""

    def release(self) -> None:
        """Let go of all that a variant does beside its layers, and forget how it ran."""
        while self.handles:
            self.handles.pop().remove()
        self.num_registers = 0
        self.fused.clear()


class AttentionLayer(ABC):
    """One self-attention module of a library's model; a family's subclass says how its forward is taken apart.

    Attaching overrides `forward` on the module instance: modules, parameters and state_dict keys stay as they are, and
    detaching restores the untouched module. The block is watched only for its input.
    """

    def __init__(self, native: nn.Module, block: nn.Module, index: int, num_prefix: int, state: ForwardState) -> None:
        self.native = native
        self.block = block
        self.index = index
        self.num_prefix = num_prefix
        self.state = state
        state.tower.append(self)
        self.core: Attention | None = None
        self._hook: Any = None

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is a class token."""
        return self.state.has_cls and self.num_prefix > 0

    @abstractmethod
    def forward(self, x: Float[Tensor, "B N C"], *args: Any, **kwargs: Any) -> Float[Tensor, "B N C"]:
        """The native forward with `self.attend` in place of its attention core."""

    @abstractmethod
    def shape(self, num_tokens: int) -> AttentionShape:
        """The sizes of this layer for inputs of `num_tokens` tokens."""

    @property
    def output_projection(self) -> nn.Linear:
        """The linear layer whose input is the core's output, heads side by side."""
        raise ImpossibleError(f"{type(self.native).__name__} has no plain linear layer after its attention core")

    @property
    def hidden_activation(self) -> nn.Module:
        """The module whose output is the hidden neurons of the block's MLP, [B, N, F]."""
        raise ImpossibleError(f"the MLP of {type(self.block).__name__} has no hidden layer that is understood")

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, is_causal: bool
    ) -> Float[Tensor, "B H N D"]:
        """Hand the projected tokens to the attached variant."""
        if self.core is None or self.state.block_input is None:
            raise RuntimeError(f"layer {self.index} was called through the seam with nothing attached")
        num_registers = 0 if self.state.paused else self.state.num_registers
        inputs = AttentionInputs(
            q=q, k=k, v=v, x=self.state.block_input, layer=self.index, scale=scale,
            num_prefix=self.num_prefix + num_registers, has_cls=self.has_cls, mask=mask, is_causal=is_causal,
            ids=self.state.ids, memo=self.state.memo,
        )  # fmt: skip
        self.state.block_input = None
        try:
            output = self.core(inputs)
        except BaseException:
            self.state.memo.clear()
            raise
        if self.state.memo.pop(FUSED, False):
            self.state.fused.add(self.index)
        if self.index == max(self.state.attached):
            self.state.memo.clear()
        return output

    def attach(self, core: Attention) -> None:
        """Send this layer's attention through `core`, until detached or attached to another."""
        if attached_layer(self.native) is self:
            self.core = core
            return
        self.detach()
        self.core = core
        self.state.attached.add(self.index)
        self.native.forward = self.forward
        self._hook = self.block.register_forward_pre_hook(self._before_block)

    def detach(self) -> None:
        """Give the module back as the library made it, whichever layer object had attached to it."""
        if (holder := attached_layer(self.native)) is not None:
            holder._hook.remove()
            holder.state.attached.discard(holder.index)
            del holder.native.__dict__["forward"]
            holder.core = holder._hook = None
            if not holder.state.attached:
                holder.state.release()

    def _before_block(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self.index == min(self.state.attached):
            self.state.memo.clear()
        self.state.block_input = args[0]


def attached_layer(module: nn.Module) -> AttentionLayer | None:
    """The layer object whose forward runs in place of the module's own, if one is attached."""
    holder = getattr(module.__dict__.get("forward"), "__self__", None)
    return holder if isinstance(holder, AttentionLayer) else None


class LayerStack(Sequence[AttentionLayer]):
    """The replaceable layers of one model, in order of depth; they share one ForwardState."""

    def __init__(self, layers: Sequence[AttentionLayer]) -> None:
        if not layers:
            raise ImpossibleError("the model has no attention layer that can be replaced")
        self._layers = tuple(layers)

    @overload
    def __getitem__(self, index: int) -> AttentionLayer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AttentionLayer, ...]: ...
    def __getitem__(self, index: int | slice) -> AttentionLayer | tuple[AttentionLayer, ...]:
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[AttentionLayer]:
        return iter(self._layers)

    def select(self, selection: LayerSelection) -> tuple[AttentionLayer, ...]:
        """The layers that a selection such as "half" or "13:" names."""
        return tuple(self[index] for index in select_layers(selection, *self.depths))

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of layers of each tower: layers that share a forward share their state."""
        return tuple(Counter(id(layer.state) for layer in self).values())

    @property
    def fused(self) -> tuple[int, ...]:
        """The blocks that fused kernels have computed since a variant was attached."""
        return tuple(layer.index for layer in self if layer.index in layer.state.fused)

    def tell(self, ids: Sequence[str]) -> None:
        """Say which images the next forwards run on."""
        for layer in self:
            layer.state.ids = ids

    @property
    def ids(self) -> Sequence[str]:
        """Which images the latest forward ran on, where that has been told."""
        return self[0].state.ids

    def detach(self) -> None:
        """Detach every layer."""
        for layer in self:
            layer.detach()


LayerSelection = str | int | Sequence[int]


def select_layers(selection: LayerSelection, *depths: int) -> list[int]:
    """The block indices that a selection names, ascending and without repeats, for towers of these depths.

    Blocks are counted through all towers. "half" is the last half of each tower's blocks (the paper's choice), "all"
    every block, "13:" or "3:9" a Python slice, an int or a list of ints those blocks; negative ones count from the end.
    """
    text = str(selection).strip()
    num_layers = sum(depths)
    if text == "half":
        ends = accumulate(depths)
        return [index for end, depth in zip(ends, depths, strict=True) for index in range(end - (depth + 1) // 2, end)]
    if text == "all":
        return list(range(num_layers))
    if isinstance(selection, str) and ":" in text:
        try:
            chosen = list(range(num_layers))[slice(*(int(part) if part.strip() else None for part in text.split(":")))]
        except (ValueError, TypeError):
            raise _bad_selection(selection, num_layers) from None
    else:
        try:
            items = [text] if isinstance(selection, str | int) else list(selection)
            blocks = [int(str(item)) for item in items]  # through str, so that 1.5 is no block
            chosen = [block + num_layers if block < 0 else block for block in blocks]
        except (ValueError, TypeError):
            raise _bad_selection(selection, num_layers) from None
    if not chosen or not all(0 <= index < num_layers for index in chosen):
        raise _bad_selection(selection, num_layers)
    return sorted(set(chosen))


def _bad_selection(selection: object, num_layers: int) -> BadInputError:
    return BadInputError(
        f"layers={selection} names no block of this model; allowed: half, all, a slice such as '{num_layers // 2}:', "
        f"or a list of blocks such as [0,{num_layers - 1}] (0..{num_layers - 1})"
    )
