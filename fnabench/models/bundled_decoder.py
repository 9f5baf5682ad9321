"""The architecture of the bundled LLaVA: stock transformers classes around the bundled CLIP's image tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fnabench.models.bundled_towers import PAD, SPECIAL_WORDS, START, ClipConfig

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from tokenizers import Tokenizer as WordTokenizer
    from transformers import LlavaForConditionalGeneration

CHAT_WORDS = (*SPECIAL_WORDS, "[image]", "[answer]", "[end]")
IMAGE, ANSWER, END = 3, 4, 5
"""A prompt is [start], an [image] for every patch, the question, [answer]; the answer ends in [end]."""


@dataclass(frozen=True, kw_only=True)
class LlavaConfig:
    """Everything needed to build the bundled LLaVA around the bundled CLIP's image tower."""

    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int = 384
    context: int = 1024
    vision_layer: int = -2
    """Whose output the projector reads, as hidden_states counts: -2, the last but one block, as LLaVA."""


def build_llava(clip: ClipConfig, config: LlavaConfig, *, num_words: int) -> LlavaForConditionalGeneration:
    """A stock transformers LLaVA: CLIP vision model, two-layer projector, Llama decoder; random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
    from transformers import LlavaConfig as StockConfig

    vision = CLIPVisionConfig(
        image_size=clip.image_size,
        patch_size=clip.patch_size,
        hidden_size=clip.width,
        intermediate_size=int(clip.width * clip.mlp_ratio),
        num_hidden_layers=clip.depth,
        num_attention_heads=clip.num_heads,
        projection_dim=clip.embed_width,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    text = LlamaConfig(
        vocab_size=num_words,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.context,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    stock = StockConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=(clip.image_size // clip.patch_size) ** 2,
        vision_feature_layer=config.vision_layer,
    )
    return LlavaForConditionalGeneration(stock)


def vision_weights(image_tower: VisionTransformer) -> dict[str, Tensor]:
    """The timm tower's weights under the names of transformers' CLIPVisionModel."""
    weights = image_tower.state_dict()
    renamed = {
        "embeddings.class_embedding": weights["cls_token"].flatten(),
        "embeddings.patch_embedding.weight": weights["patch_embed.proj.weight"],
        "embeddings.position_embedding.weight": weights["pos_embed"][0],
    }
    for part, name in (("norm_pre", "pre_layrnorm"), ("norm", "post_layernorm")):
        renamed |= {f"{name}.{kind}": weights[f"{part}.{kind}"] for kind in ("weight", "bias")}
    for layer in range(len(image_tower.blocks)):
        ours, theirs = f"blocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            q, k, v = weights[f"{ours}.attn.qkv.{kind}"].chunk(3)
            renamed |= {
                f"{theirs}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", (q, k, v), strict=True)
            }
            renamed[f"{theirs}.self_attn.out_proj.{kind}"] = weights[f"{ours}.attn.proj.{kind}"]
            for part, name in (
                ("norm1", "layer_norm1"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                renamed[f"{theirs}.{name}.{kind}"] = weights[f"{ours}.{part}.{kind}"]
    return renamed


def build_word_tokenizer(vocabulary: Sequence[str]) -> WordTokenizer:
    """The decoder's tokenizer: lower-case words, punctuation dropped, the rest [unknown]."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="[unknown]"))
    words.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(list(CHAT_WORDS))
    return words
