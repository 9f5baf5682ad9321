"""Tiny real objects for the tests: attention inputs, random timm models of every supported kind, image folders."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.data.folder import ImageFolder
from fnabench.models.timm_vit import TimmVit


def attention_inputs(
    *,
    batch: int = 2,
    heads: int = 3,
    tokens: int = 17,
    head_dim: int = 8,
    num_prefix: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> AttentionInputs:
    """Random inputs of one layer, whose q and k are alike enough for a softmax that is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, tokens, head_dim, generator=generator) for _ in range(3))
    x = torch.randn(batch, tokens, heads * head_dim, generator=generator)
    return AttentionInputs(
        q=q.to(dtype), k=(k + 2 * q).to(dtype), v=v.to(dtype), x=x.to(dtype), layer=0, scale=head_dim**-0.5,
        num_prefix=num_prefix, mask=mask, is_causal=is_causal,
    )  # fmt: skip


def shape_of(inputs: AttentionInputs) -> AttentionShape:
    """The sizes of the layer that would give these inputs."""
    _, heads, tokens, head_dim = inputs.q.shape
    return AttentionShape(
        num_tokens=tokens, num_heads=heads, head_dim=head_dim, num_channels=inputs.x.shape[-1],
        num_prefix=inputs.num_prefix, is_causal=inputs.is_causal,
    )  # fmt: skip


def key_mask(*allowed: list[int], tokens: int = 17) -> Tensor:
    """A boolean key mask [B, 1, 1, N]: one list of allowed tokens for each image."""
    mask = torch.zeros(len(allowed), 1, 1, tokens, dtype=torch.bool)
    for image, positions in enumerate(allowed):
        mask[image, 0, 0, positions] = True
    return mask


def on_meta(inputs: AttentionInputs) -> AttentionInputs:
    """Without data, where the selection takes the products that counters see."""
    q, k, v, x = (each[:1].to("meta") for each in (inputs.q, inputs.k, inputs.v, inputs.x))
    return replace(inputs, q=q, k=k, v=v, x=x, memo={})


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """softmax(s Q K^T) V in float64 with the matrix materialised; `allowed` is a boolean [..., queries, keys]."""
    logits = scale * q.double() @ k.double().mT
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1) @ v.double()


def row_softmax(logits: np.ndarray) -> np.ndarray:
    """Each row's softmax, as it is written down."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Kind:
    """A small model of one of timm's families of Vision Transformers, and what the seam should find in it."""

    architecture: str
    num_prefix: int
    image_size: int = 64
    options: tuple[tuple[str, object], ...] = ()


_NARROW = (("embed_dim", 96), ("num_heads", 3))
_HEAD = ("head_init_scale", 1.0)
DEPTH = 4
KINDS = {
    "class token": Kind("vit_tiny_patch16_224", 1),
    "DINOv2 with registers": Kind("vit_small_patch14_reg4_dinov2", 5, image_size=56, options=_NARROW),
    "SigLIP with attention pool": Kind("vit_base_patch16_siglip_224", 0, options=_NARROW),
    "CLIP with pre-norm": Kind("vit_base_patch16_clip_224", 1, options=_NARROW),
    "DeiT distilled": Kind("deit_tiny_distilled_patch16_224", 2),
    "no prefix": Kind("vit_base_patch16_gap_224", 0, options=_NARROW),
    "qk-norm": Kind("vit_tiny_patch16_224", 1, options=(("qk_norm", True),)),
    "layer scale": Kind("vit_tiny_patch16_224", 1, options=(("init_values", 0.1),)),
    "EVA-02 with rotary attention": Kind(
        "eva02_tiny_patch14_224", 1, image_size=56, options=(("embed_dim", 96), _HEAD)
    ),
    "DINOv3 with rotary attention": Kind("vit_small_patch16_dinov3", 5, options=(*_NARROW, _HEAD)),
    "rotary attention with biases": Kind(
        "vit_small_patch16_dinov3_qkvb", 5, options=(*_NARROW, _HEAD, ("qk_norm", True))
    ),
    "norm of the output": Kind("vit_tiny_patch16_224", 1, options=(("scale_attn_norm", True),)),
}


def timm_model(kind: str = "class token", *, depth: int = DEPTH, seed: int = 0, num_classes: int = 10) -> nn.Module:
    """A model with random weights, in eval mode, whose attention is far from uniform."""
    chosen = KINDS[kind]
    torch.manual_seed(seed)
    module = timm.create_model(
        chosen.architecture, img_size=chosen.image_size, depth=depth, num_classes=num_classes, **dict(chosen.options)
    )
    for name, parameter in module.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.startswith("blocks.") and parameter.dim() == 2:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
        elif parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return module.eval().requires_grad_(False)


def random_images(batch: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    """Noise in the shape of normalised images."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def saved_timm_vit(folder: Path, **options: object) -> TimmVit:
    """A small Vision Transformer with its checkpoint in the folder, for images of 64 pixels and 10 classes."""
    path = folder / "weights.safetensors"
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    save_file(module.state_dict(), path)
    settings = {"architecture": "vit_tiny_patch16_224", "image_size": 64, "num_classes": 10} | options
    return TimmVit(checkpoint=str(path), **settings)  # type: ignore[arg-type]


def image_folder(
    folder: Path, labels: Sequence[int] = (0, 1, 2, 3, 4), size: int = 72, **options: object
) -> ImageFolder:
    """A folder of small noisy PNG images with its table."""
    folder.mkdir(parents=True, exist_ok=True)
    for position in range(len(labels)):
        pixels = np.random.default_rng(position).integers(256, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{position}.png")
    write_table(folder, ["file", "label"], [(f"{position}.png", label) for position, label in enumerate(labels)])
    return ImageFolder(root=str(folder), **options)  # type: ignore[arg-type]


def write_table(folder: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """labels.csv with these columns and rows."""
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


@dataclass(frozen=True, kw_only=True)
class Watched(Attention):
    """Any variant, and a list of what its layers were given: a variant of the user's own, as the README shows."""

    inner: Attention
    seen: list[AttentionInputs]
    landmarks: list[object]
    """What lay in the memo under that name after each call."""

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        self.seen.append(inputs)
        output = self.inner(inputs)
        self.landmarks.append(inputs.memo.get("landmarks"))
        return output

    def macs(self, shape: AttentionShape, num_layers: int) -> int:
        return self.inner.macs(shape, num_layers)


def watch(inner: Attention) -> Watched:
    """The variant under observation."""
    return Watched(inner=inner, seen=[], landmarks=[])
