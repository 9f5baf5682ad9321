"""Small models of open_clip's classes with their weights and tokenizer, loaded by the real code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from seam import CPU, lively
from torch import nn

from fnabench.models.base import Model
from fnabench.models.open_clip_vit import OpenClipBackbone, OpenClipVit

CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SIGLIP_CONFIG = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224, "timm_model_name": "vit_test_siglip", "timm_model_pretrained": False, "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 64, "hf_tokenizer_name": "not/asked", "width": 192, "heads": 2, "layers": 2,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip


@timm.models.register_model
def vit_test_siglip(pretrained: bool = False, **options: Any) -> nn.Module:
    """SigLIP's image tower with three narrow blocks."""
    narrow = {"embed_dim": 192, "depth": 3, "num_heads": 3}
    return timm.create_model("vit_base_patch16_siglip_224", pretrained=False, **(narrow | options))


def save_open_clip(folder: Path, architecture: str, **options: Any) -> OpenClipVit:
    """A small model with its weights and tokenizer in the folder."""
    from safetensors.torch import save_file

    is_clip = architecture == "small-CLIP"
    settings: dict[str, Any] = {
        "architecture": architecture, "checkpoint": str(folder / "open_clip_model.safetensors"), "quick_gelu": is_clip,
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "squash": not is_clip,
    }  # fmt: skip
    model = OpenClipVit(**(settings | options))
    torch.manual_seed(0)
    module = OpenClipVit(**settings)._build()
    lively(module.visual)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, model.checkpoint)
    if not is_clip:
        write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A word tokenizer in the three files of a hub repository."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "square", "small", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text("{}")


def load(model: Model, dtype: torch.dtype = torch.float32) -> OpenClipBackbone:
    model.check()
    backbone = model.load(CPU, dtype)
    assert isinstance(backbone, OpenClipBackbone)
    return backbone


def size_of(model: OpenClipVit) -> int:
    return model.blueprint().image_size[0]
