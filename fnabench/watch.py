"""Looking into the blocks of a model while it runs, and taking tokens out of their attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.detectors import DETECTORS as DETECTORS
from fnabench.attention.detectors import above_cls, above_gap, cls_attention, cls_logits, taking_over
from fnabench.attention.exact import Exact
from fnabench.attention.masks import PATTERNS as PATTERNS
from fnabench.attention.masks import attend_masked, attend_sunk, attention_matrix, refuse_mask, without_keys
from fnabench.errors import ImpossibleError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from fnabench.attention.layers import AttentionLayer

OPERATORS = ("mask", "sink", "zero")
"""mask and sink as in attention.masks; zero: attention adds nothing to the residual stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """What is done to attention in all blocks from one on."""

    tokens: Bool[Tensor, "B N"]
    """T, which prefix tokens are never part of; zero does without."""
    start_block: int
    operator: str = "mask"
    pattern: str = "type1"
    keep_bias: bool = True
    """Of zero: whether the bias of the output projection is still added."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupView:
    """What one block does with groups of tokens; NaN where a group is empty. An intervention is not looked at."""

    received: Float[Tensor, "B G"]
    """What one token of the group is given, mean over the group, all queries and heads."""
    suppression: Float[Tensor, "B H G G"]
    """<x_i / |x_i|, W_O v_j>, mean over the tokens i of the row's group and j of the column's: below 0 attending to j
    shrinks i."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockView:
    """What one block was given in one forward."""

    num_prefix: int
    has_cls: bool
    norms: Float[Tensor, "B N"]
    """L2 norms of the block's input, the residual stream."""
    logits: Float[Tensor, "B H N"] | None
    """The CLS row of the attention logits; None where there is no CLS token."""
    attention: Float[Tensor, "B N"] | None
    """What CLS gives each token under the intervention, mean over heads."""
    groups: GroupView | None
    output_norms: Float[Tensor, "B N"] | None = None
    """L2 norms of the block's output, of the last block; None of the others, whose output is the next one's input."""

    def massive(self, detector: str, ratio: float, min_gap: float) -> Bool[Tensor, "B N"]:
        """The massive tokens by what CLS attends to ("cls") or by the norms ("norm")."""
        if detector == "norm":
            return above_gap(self.norms, self.num_prefix, min_gap)
        return above_cls(_required(self.attention), self.num_prefix, ratio)

    def artifacts(self, massive: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """The artifacts by one pass over this block's CLS row."""
        return taking_over(_required(self.logits), massive, self.num_prefix)

    def strongest(self, masked: Bool[Tensor, "B N"], min_gap: float) -> Bool[Tensor, "B N"]:
        """At most one more token of each image: the patch that CLS attends to most, if it is more than to itself.

        Without CLS the patch of the largest norm, if it is massive among those not masked yet.
        """
        if self.attention is None:
            strength = self.norms.masked_fill(masked, float(self.norms.min()))
            passing = above_gap(strength, self.num_prefix, min_gap)
        else:
            strength = self.attention
            passing = above_cls(strength, self.num_prefix, 1.0)
        passing = passing & ~masked
        best = torch.where(passing, strength, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(masked).scatter(1, best, passing.gather(1, best))


def residual_norms(views: Mapping[int, BlockView]) -> Float[Tensor, "B L+1 N"]:
    """L2 norms of the residual stream before each block and after the last."""
    blocks = [views[block] for block in sorted(views)]
    norms = [*(view.norms for view in blocks), blocks[-1].output_norms]
    return torch.stack([each for each in norms if each is not None], 1)


def mean_over(groups: Bool[Tensor, "B G N"], values: Float[Tensor, "B L N"]) -> Float[Tensor, "B L G"]:
    """The mean over the tokens of each group; NaN where it is empty."""
    mean: Tensor = (values @ groups.float().mT) / groups.sum(-1)[:, None]
    return mean


@contextmanager
def watch(
    layers: Iterable[AttentionLayer],
    intervention: Intervention | None = None,
    groups: Bool[Tensor, "B G N"] | None = None,
) -> Iterator[dict[int, BlockView]]:
    """Fill a view of each block in each forward; afterwards the layers have what was attached to them before."""
    views: dict[int, BlockView] = {}
    silenced = intervention is not None and intervention.operator == "zero" and not intervention.keep_bias
    watched = tuple(layers)
    with ExitStack() as undo:
        for layer in watched:
            core = layer.core
            undo.callback(_restore, layer, core)
            if silenced and intervention is not None and layer.index >= intervention.start_block:
                undo.callback(layer.output_projection.register_forward_hook(_nothing).remove)
            inner = core or Exact()
            layer.attach(_Watched(inner=inner, layer=layer, views=views, intervention=intervention, groups=groups))
        keep = _KeepOutput(watched[-1].index, views)
        undo.callback(watched[-1].block.register_forward_hook(keep, prepend=True).remove)
        yield views


def _restore(layer: AttentionLayer, core: Attention | None) -> None:
    if core is None:
        layer.detach()
    else:
        layer.attach(core)


def _nothing(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Watched(Attention):
    inner: Attention
    layer: AttentionLayer
    views: dict[int, BlockView]
    intervention: Intervention | None
    groups: Bool[Tensor, "B G N"] | None

    def __call__(self, inputs: AttentionInputs) -> Float[Tensor, "B H N D"]:
        refuse_mask(inputs)
        active = self.intervention if self.intervention and inputs.layer >= self.intervention.start_block else None
        self.views[inputs.layer] = self._view(inputs, active)
        return self.inner(inputs) if active is None else _intervene(self.inner, inputs, active)

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return self.inner.macs(shape, num_layers)

    def _view(self, inputs: AttentionInputs, active: Intervention | None) -> BlockView:
        logits = cls_logits(inputs.q, inputs.k, inputs.scale) if inputs.has_cls else None
        attention = None if logits is None else cls_attention(logits)
        if logits is not None and active and active.operator == "mask":
            attention = cls_attention(logits, active.tokens)
        elif attention is not None and active and active.operator == "sink":
            attention = attention.masked_fill(active.tokens, 0)
        return BlockView(
            num_prefix=inputs.num_prefix,
            has_cls=bool(inputs.has_cls),
            norms=inputs.x.float().norm(dim=-1),
            logits=logits,
            attention=attention,
            groups=None
            if self.groups is None
            else _view_groups(inputs, self.groups.float(), self.layer.output_projection.weight),
        )


@dataclass(frozen=True, eq=False)
class _KeepOutput:
    last: int
    views: dict[int, BlockView]

    def __call__(self, _: nn.Module, __: object, output: Float[Tensor, "B N C"]) -> None:
        self.views[self.last] = replace(self.views[self.last], output_norms=output.float().norm(dim=-1))


def _intervene(inner: Attention, inputs: AttentionInputs, active: Intervention) -> Float[Tensor, "B H N D"]:
    if active.operator == "zero":
        return torch.zeros_like(inputs.v)
    if not active.tokens.any():
        return inner(inputs)
    if (active.operator, active.pattern) == ("mask", "type1"):
        return inner(without_keys(inputs, active.tokens))
    if not inner.is_exact:
        raise ImpossibleError(
            f"operator={active.operator} with pattern={active.pattern} needs softmax attention, which this variant "
            "does not form; use attention=exact, or operator=mask with pattern=type1"
        )
    attend: Callable[..., Tensor] = attend_masked if active.operator == "mask" else attend_sunk
    return attend(inputs, active.tokens, active.pattern)


def _view_groups(inputs: AttentionInputs, groups: Float[Tensor, "B G N"], weight: Float[Tensor, "C HD"]) -> GroupView:
    """The mean of a bilinear form is the form of the means, so that suppression needs no N x N matrix."""
    x, v = inputs.x.float(), inputs.v.float()
    norms = x.norm(dim=-1, keepdim=True)  # [B, N, 1]
    of_group = groups / groups.sum(-1, keepdim=True)  # 0/0 = NaN where it is empty
    values = of_group[:, None] @ v  # [B, H, G, D]
    by_head = weight.float().reshape(-1, v.shape[1], v.shape[3])  # [C, H, D]
    written = torch.einsum("bhgd,chd->bhgc", values, by_head)
    return GroupView(
        received=(of_group @ _received(inputs)[..., None])[..., 0],
        suppression=torch.einsum("bac,bhgc->bhag", of_group @ (x / norms), written),
    )


def _received(inputs: AttentionInputs) -> Float[Tensor, "B N"]:
    """The attention that each token is given; image by image, so that one attention matrix is in memory at a time."""
    images = range(len(inputs.q))
    parts = [replace(inputs, q=inputs.q[image : image + 1], k=inputs.k[image : image + 1]) for image in images]
    return torch.stack([attention_matrix(one).mean((0, 1, 2)) for one in parts])


def _required(row: Tensor | None) -> Tensor:
    if row is None:
        raise ImpossibleError("this model has no CLS token, so nothing is known of what it attends to; use the norms")
    return row
