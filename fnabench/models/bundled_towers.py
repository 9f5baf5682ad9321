"""The architecture of the bundled CLIP: a timm image tower, a small text tower and its word tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

PAD, START, UNKNOWN = 0, 1, 2
SPECIAL_WORDS = ("[pad]", "[start]", "[unknown]")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Everything needed to build the bundled CLIP, apart from its vocabulary."""

    image_size: int = 128
    patch_size: int = 8
    width: int = 160
    depth: int = 8
    num_heads: int = 5
    mlp_ratio: float = 3.0
    embed_width: int = 128
    text_width: int = 128
    text_depth: int = 3
    text_num_heads: int = 4
    context: int = 32
    """The longest text, in tokens with the start token; longer ones are cut."""


class Tokenizer:
    """Lower-case words and numbers from a fixed list; punctuation is dropped, any other word is [unknown]."""

    def __init__(self, vocabulary: Sequence[str], *, context: int) -> None:
        if tuple(vocabulary[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
            raise ValueError(f"a vocabulary begins with {', '.join(SPECIAL_WORDS)}, not {vocabulary[:3]}")
        self.vocabulary = tuple(vocabulary)
        self.context = context
        self._ids = {word: number for number, word in enumerate(vocabulary)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids [texts, longest], each row a start token, the words and padding."""
        rows = [self.encode(text) for text in texts]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    def encode(self, text: str) -> list[int]:
        """The ids of one text without padding."""
        ids = [START, *(self._ids.get(word, UNKNOWN) for word in split_words(text))]
        return ids[: self.context]


def split_words(text: str) -> list[str]:
    """The words and numbers of a text in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def build_image_tower(config: ClipConfig) -> VisionTransformer:
    """A timm ViT shaped like CLIP's: class token, norm before the blocks, no bias in the patch layer."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=True,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        num_classes=0,
    )


class TextTower(nn.Module):
    """A bidirectional transformer over words; the start token's output is the text's embedding."""

    def __init__(self, config: ClipConfig, *, num_words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, config.text_width)
        self.positions = nn.Parameter(torch.randn(config.context, config.text_width) * 0.02)
        self.blocks = nn.ModuleList(
            TextBlock(config.text_width, config.text_num_heads) for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(config.text_width)
        self.projection = nn.Linear(config.text_width, config.embed_width, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit embeddings [B, embed_width] of token ids [B, N]; padding does not count."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        visible = (tokens != PAD)[:, None, None, :]  # [B, 1, 1, N]
        for block in self.blocks:
            x = block(x, visible)
        return functional.normalize(self.projection(self.norm(x[:, 0])), dim=-1)


class TextBlock(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]; visible [B, 1, 1, N] says which keys count."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # [B, H, N, D]
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return cast("Tensor", x + self.mlp(self.norm2(x)))


class Clip(nn.Module):
    """Image tower, text tower and what joins them; `segmentation` is the linear head on patch tokens."""

    def __init__(self, config: ClipConfig, *, num_words: int, num_mask_classes: int) -> None:
        super().__init__()
        self.config = config
        self.image_tower = build_image_tower(config)
        self.image_projection = nn.Linear(config.width, config.embed_width, bias=False)
        self.text_tower = TextTower(config, num_words=num_words)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        """Logarithm of the factor between cosines and logits."""
        self.segmentation = nn.Linear(config.width, num_mask_classes)

    def encode_tokens(self, images: Tensor) -> Tensor:
        """Normed class and patch tokens [B, 1 + N, C] of normalised images [B, 3, H, W]."""
        return cast("Tensor", self.image_tower.forward_features(images))

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Unit embeddings [B, embed_width] from the tower's tokens."""
        return functional.normalize(self.image_projection(tokens[:, 0]), dim=-1)
