"""What the bundled CLIP learns from: captions, class prompts, and what each patch shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from fnabench.data.scenes import Scenes
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES
from fnabench.models.bundled_towers import Clip, Tokenizer
from fnabench.train.batches import Batch

PROMPTS = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a {}.",
    "a large {}.",
    "there is a {}.",
)
"""Prompts of the classes, for zero-shot classification too; training draws one a step."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Means over a batch, and how often the right text or image was the most similar one of the batch."""

    contrast: Tensor
    classes: Tensor
    shapes: Tensor
    colours: Tensor
    centres: Tensor
    names: Tensor
    hits: Tensor

    def total(self) -> Tensor:
        """What is minimised."""
        return self.contrast + 0.5 * (self.classes + self.names) + self.shapes + self.colours + self.centres


class TrainingHeads(nn.Module):
    """Linear heads that only training needs: three on patch tokens, one that both embeddings share."""

    def __init__(self, width: int, embed_width: int) -> None:
        super().__init__()
        self.shapes = nn.Linear(width, 1 + len(SHAPES))
        self.colours = nn.Linear(width, 1 + len(COLOURS))
        self.centres = nn.Linear(width, 1 + len(RADII))
        self.names = nn.Linear(embed_width, len(Scenes.class_names))


def compute_losses(
    model: Clip,
    head: TrainingHeads,
    tokenizer: Tokenizer,
    batch: Batch,
    *,
    num_kept: int,
    generator: torch.Generator,
) -> Losses:
    """The losses on a batch of which each image shows the tower only num_kept of its patches."""
    kept = choose_patches(batch, num_kept, generator)
    tokens = encode_kept(model, batch.images, kept)
    images = model.embed_image(tokens)
    first, second = torch.randperm(5, generator=generator)[:2].tolist()
    chosen = [texts[number] for number in (first, second) for texts in batch.captions]
    texts = model.text_tower(_forget(tokenizer(chosen), generator)).unflatten(0, (2, -1))  # [2, B, E]
    prompt = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))]
    classes = model.text_tower(tokenizer([prompt.format(name) for name in Scenes.class_names]))
    scale = model.logit_scale.clamp(max=4.6052).exp()
    similarity = scale * images @ texts.mT  # [2, B, B]
    own = torch.arange(len(images), device=images.device).expand(2, -1)
    contrast = functional.cross_entropy(similarity.mT, own) + functional.cross_entropy(similarity, own)
    return Losses(
        contrast=contrast / 2,
        classes=functional.cross_entropy(scale * images @ classes.T, batch.labels),
        shapes=_patch_loss(head.shapes(tokens[:, 1:]), batch.shapes, kept),
        colours=_patch_loss(head.colours(tokens[:, 1:]), batch.colours, kept),
        centres=_centre_loss(head.centres(tokens[:, 1:]), batch, kept),
        names=_name_loss(head.names(images), [", ".join(names) for names in batch.names], batch)
        + _name_loss(head.names(texts.flatten(0, 1)), chosen, batch),
        hits=(similarity.argmax(dim=-1) == own).float().mean(),
    )


def choose_patches(batch: Batch, num_kept: int, generator: torch.Generator) -> Tensor:
    """Which patches of each image are kept [B, num_kept]: those that show a thing more often than others."""
    interest = (batch.shapes[:, 0] < 0.95).flatten(1).float()
    if num_kept == interest.shape[1]:
        return torch.arange(num_kept).expand(len(interest), -1)
    return (interest + 1.25 * torch.rand(interest.shape, generator=generator)).topk(num_kept).indices


def encode_kept(model: Clip, images: Tensor, kept: Tensor) -> Tensor:
    """Normed class and kept patch tokens [B, 1 + num_kept, C]; with all patches the tower's own forward."""
    tower = model.image_tower
    patches = tower.patch_embed.proj(images)  # [B, C, P, P]
    assert tower.pos_embed is not None
    assert tower.cls_token is not None
    positions = resample_abs_pos_embed(tower.pos_embed, list(patches.shape[2:]), num_prefix_tokens=1)
    x = patches.flatten(2).mT + positions[:, 1:]
    x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
    prefix = (tower.cls_token + positions[:, :1]).expand(len(x), -1, -1)
    x = tower.norm_pre(torch.cat((prefix, x), dim=1))
    normed: Tensor = tower.norm(tower.blocks(x))
    return normed


def _forget(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """One word in fifty replaced by [unknown], so that words outside the vocabulary do little harm."""
    forgotten = (torch.rand(tokens.shape, generator=generator) < 0.02) & (tokens > 2)
    return tokens.masked_fill(forgotten, 2)


def _patch_loss(logits: Tensor, shares: Tensor, kept: Tensor) -> Tensor:
    """Cross entropy of logits [B, kept, classes] with the shares [B, classes, P, P] of the kept patches."""
    wanted = shares.flatten(2).mT.gather(1, kept[..., None].expand(-1, -1, shares.shape[1]))
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))


def _centre_loss(logits: Tensor, batch: Batch, kept: Tensor) -> Tensor:
    """Cross entropy of logits [B, kept, 1 + sizes]: whose centre a patch holds; none counts a tenth."""
    wanted = batch.centre_sizes().flatten(1).gather(1, kept)
    weight = torch.tensor([0.1] + [1.0] * len(RADII))
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight=weight)


def _name_loss(logits: Tensor, texts: list[str], batch: Batch) -> Tensor:
    """Binary cross entropy of the logits [texts, classes]: which things of the scene the text names."""
    wanted = torch.zeros_like(logits)
    for row, text in enumerate(texts):
        named = [name for name in batch.names[row % len(batch.names)] if name in text]
        wanted[row, [Scenes.class_names.index(name) for name in named]] = 1
    return 10 * functional.binary_cross_entropy_with_logits(10 * logits, wanted, pos_weight=torch.tensor(4.0))
