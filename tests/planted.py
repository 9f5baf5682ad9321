"""A transformer of weights set by hand, in which one token becomes massive and another takes over once it is masked.

Channels: 0 CLS, 1 drive, 2 size, 3 suppressor, 4 patch. A patch's red is its drive, its green its suppressor.
Block 1 alone does something. Its first head sends every query to the key of most drive and size, and takes from the
query's drive what that key has of suppressor; its MLP adds GROWTH times whatever drive is above 0.5 to the size.
The second head of every block gives CLS 90 % of the attention.
With MASSIVE (drive 2, suppressor 1) in sight all drives fall by 1: it grows by 0.5 GROWTH, ARTIFACT (drive 1.2) not at
all. Once it is masked nothing falls: ARTIFACT grows by 0.7 GROWTH and takes over.
"""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fnabench.models.timm_vit import TimmBackbone

GROWTH = 40.0
GROWTH_BLOCK = 1
DETECT_BLOCK = 2
NUM_TOKENS = 10
"""CLS and 3 x 3 patches."""
MASSIVE, ARTIFACT = 5, 8
"""Their tokens in planted_images."""
_SHARPNESS = 40.0
_CLS, _DRIVE, _SIZE, _SUPPRESSOR, _PATCH = range(5)


def planted_vit(depth: int = 4) -> VisionTransformer:
    """The transformer: 2 heads of 4 channels, no normalisation, ReLU."""
    module = VisionTransformer(
        img_size=6, patch_size=2, embed_dim=8, depth=depth, num_heads=2, mlp_ratio=1, num_classes=0,
        norm_layer=_NoNorm, act_layer=nn.ReLU,
    )  # fmt: skip
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    state = module.state_dict()
    state["cls_token"][0, 0, _CLS] = 1
    state["patch_embed.proj.weight"][_DRIVE, 0] = 1 / 4  # the mean over 2 x 2 pixels
    state["patch_embed.proj.weight"][_SUPPRESSOR, 1] = 1 / 4
    state["patch_embed.proj.bias"][_PATCH] = 1
    for block in range(depth):
        query, key, value = state[f"blocks.{block}.attn.qkv.weight"].view(3, 2, 4, 8)
        bias = state[f"blocks.{block}.attn.qkv.bias"].view(3, 2, 4)
        bias[0, :, 0] = 1 / 0.5  # q is the same for all; the scale is 1/sqrt(4)
        key[0, 0, [_DRIVE, _SIZE]] = _SHARPNESS / 2
        key[1, 0, _CLS] = math.log(9 * (NUM_TOKENS - 1))
        value[0, 0, _SUPPRESSOR] = 1
        assert not query.any()
    state[f"blocks.{GROWTH_BLOCK}.attn.proj.weight"][_DRIVE, 0] = -1
    state[f"blocks.{GROWTH_BLOCK}.mlp.fc1.weight"][0, _DRIVE] = 1
    state[f"blocks.{GROWTH_BLOCK}.mlp.fc1.bias"][0] = -0.5
    state[f"blocks.{GROWTH_BLOCK}.mlp.fc2.weight"][_SIZE, 0] = GROWTH
    return module.eval().requires_grad_(False)


def planted_images() -> Tensor:
    """Two images: the first with a massive token and an artifact, the second with neither."""
    images = torch.zeros(2, 3, 6, 6)
    _patch(images[0], MASSIVE)[0], _patch(images[0], MASSIVE)[1] = 2.0, 1.0
    _patch(images[0], ARTIFACT)[0] = 1.2
    return images


def planted_backbone() -> TimmBackbone:
    """The transformer for images that need no preprocessing."""
    return TimmBackbone(planted_vit(), lambda image: image)


def tokens(*chosen: int) -> Tensor:
    """A mask [2, NUM_TOKENS] of tokens of the first image."""
    mask = torch.zeros(2, NUM_TOKENS, dtype=torch.bool)
    mask[0, list(chosen)] = True
    return mask


def _patch(image: Tensor, token: int) -> Tensor:
    row, column = divmod(token - 1, 3)
    return image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]


class _NoNorm(nn.Identity):
    def __init__(self, _: int, **options: object) -> None:
        super().__init__()
