"""What the attention benchmarks run on."""

from __future__ import annotations

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


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """The least that a model's transform can do."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
