"""What the attention benchmarks run on."""

from __future__ import annotations

from dataclasses import replace
from math import log10
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fnabench.attention.base import AttentionInputs

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

CPU = torch.device("cpu")


def random_inputs(num_tokens: int, num_layers: int) -> list[AttentionInputs]:
    """Random projections of one image in layers of one forward: 12 heads of width 64, as timm's fused qkv lays them
    out."""
    memo: dict[str, Any] = {}
    inputs = []
    for layer in range(num_layers):
        generator = torch.Generator().manual_seed(layer)
        qkv = torch.randn(1, num_tokens, 3, 12, 64, generator=generator).permute(2, 0, 3, 1, 4)
        x = torch.randn(1, num_tokens, 768, generator=generator)
        inputs.append(
            AttentionInputs(q=qkv[0], k=qkv[1], v=qkv[2], x=x, layer=layer, scale=0.125, num_prefix=1, memo=memo)
        )
    return inputs


def grouped_inputs(seed: int = 0, tokens: int = 97) -> AttentionInputs:
    """Tokens in groups of different sizes, as the patches of an image are: two images, 3 heads of width 8."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(2, 12, 24, generator=generator)
    group = (12 * torch.rand(tokens, generator=generator) ** 2).long()
    x = centres[:, group] + 0.7 * torch.randn(2, tokens, 24, generator=generator)
    weights = torch.randn(3, 24, 24, generator=generator) / 5
    q, k, v = ((x @ weight).unflatten(2, (3, 8)).transpose(1, 2) for weight in weights)
    return AttentionInputs(q=q, k=k, v=v, x=x, layer=0, scale=8**-0.5, num_prefix=1)


def noise_inputs(seed: int, tokens: int, sharpness: float = 1.0) -> AttentionInputs:
    """As many tokens without groups, whose keys resemble their own queries; `sharpness` multiplies the logits."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, tokens, 8, generator=generator)
    x = torch.randn(2, tokens, 24, generator=generator)
    return AttentionInputs(q=sharpness * q, k=k + 2 * q, v=v, x=x, layer=0, scale=8**-0.5, num_prefix=1)


def with_fading_directions(inputs: AttentionInputs, condition: float) -> AttentionInputs:
    """Queries and keys whose directions fade over this factor, so that the landmark matrix is as badly conditioned."""
    fading = torch.logspace(0, -log10(condition), inputs.q.shape[-1])
    return replace(inputs, q=inputs.q * fading, k=inputs.k * fading)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """The least that a model's transform can do."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
