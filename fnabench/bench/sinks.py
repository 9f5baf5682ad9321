"""Attention inputs in which one patch takes a given share of the attention, and what that does to both FNA forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.report import Table


def planted_sinks(captured: Sequence[AttentionInputs]) -> Table:
    """The error of the attention output on a real model's inputs, where one patch takes a share of every head's
    attention."""
    forms = {"fna": Fna(), "refined": FnaRefined(), "refined, no guarantee": FnaRefined(num_sinks=0)}
    lines: list[tuple[object, ...]] = []
    for mass in (0.0, 0.3, 0.6, 0.9):
        inputs = [plant(each, mass) for each in captured] if mass else captured
        errors = {name: np.mean([_error(core, each) for each in inputs]) for name, core in forms.items()}
        lines.append((mass, *map(float, errors.values()), float(errors["refined"] / errors["fna"])))
    title = "Attention-output error with a planted sink: ViT-Ti, 384 px, M=64, 8 images, blocks 6..11"
    return Table(title=title, columns=("share of the mass", *forms, "refined / fna"), lines=lines)


def plant(inputs: AttentionInputs, mass: float) -> AttentionInputs:
    """One patch, another in each image, whose key lies along each head's mean query, as long as the share needs."""
    B, H, N, _ = inputs.q.shape
    sink = inputs.num_prefix + torch.randperm(N - inputs.num_prefix, generator=torch.Generator().manual_seed(0))[:B]
    direction = inputs.q.mean(2)  # [B, H, D]
    pull = inputs.scale * (inputs.q @ direction[..., None])[..., 0]  # [B, H, N], the logit of a key of length 1
    is_sink = torch.arange(N) == sink[:, None]
    logits = (inputs.scale * inputs.q @ inputs.k.mT).masked_fill(is_sink[:, None, None], -torch.inf)
    rest = logits.logsumexp(-1)  # [B, H, N]
    low, high = torch.zeros(B, H, 1), torch.full((B, H, 1), 1e4)
    for _ in range(60):  # the share grows with the length
        length = (low + high) / 2
        is_short = (length * pull - rest).sigmoid().mean(-1, keepdim=True) < mass
        low, high = torch.where(is_short, length, low), torch.where(is_short, high, length)
    k = inputs.k.clone()
    k[torch.arange(B), :, sink] = high * direction
    return replace(inputs, k=k, memo={})


def _error(core: Attention, inputs: AttentionInputs) -> float:
    exact = scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, scale=inputs.scale)
    off = core(replace(inputs, memo={})) - exact
    return float((off.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean())
