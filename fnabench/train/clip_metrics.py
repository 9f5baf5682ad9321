"""The bundled CLIP's scores during training, with exact attention; the benchmark's tasks measure anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fnabench.data.scenes import Scenes
from fnabench.models.bundled_towers import Clip, Tokenizer
from fnabench.train.batches import normalize
from fnabench.train.clip_loss import PROMPTS
from fnabench.train.segmentation_head import count_pixels, mean_iou


@torch.no_grad()
def measure_clip(model: Clip, tokenizer: Tokenizer, source: Scenes) -> dict[str, float]:
    """Zero-shot top-1, recall at 1 in both directions, and mIoU of the segmentation head as it is, in percent."""
    embeddings = []
    confusion = torch.zeros(len(source.mask_names), len(source.mask_names), dtype=torch.long)
    for pixels, masks in _pictures(source):
        tokens = model.encode_tokens(normalize(pixels))
        embeddings.append(model.embed_image(tokens))
        confusion += count_pixels(model.segmentation(tokens[:, 1:]), masks)
    images = torch.cat(embeddings)
    labels = [source.class_names.index(source.scene(index).main.name) for index in range(len(source))]
    right = classify(model, tokenizer, images, source) == torch.tensor(labels)
    captions = [source.captions(index) for index in range(len(source))]
    texts = model.text_tower(tokenizer([text for five in captions for text in five]))
    owner = torch.arange(len(source)).repeat_interleave(5)
    similarity = texts @ images.T  # [captions, images]
    found_image = similarity.argmax(dim=1) == owner
    found_text = owner[similarity.argmax(dim=0)] == torch.arange(len(source))
    return {
        "top1": _percent(right),
        "text_to_image_r1": _percent(found_image),
        "image_to_text_r1": _percent(found_text),
        "miou": round(100 * mean_iou(confusion), 2),
    }


def classify(model: Clip, tokenizer: Tokenizer, images: Tensor, source: Scenes) -> Tensor:
    """The class whose prompts, averaged, are most similar to each image embedding [B]."""
    prompts = torch.stack(
        [model.text_tower(tokenizer([prompt.format(name) for name in source.class_names])) for prompt in PROMPTS]
    )
    return (images @ functional.normalize(prompts.mean(dim=0), dim=-1).T).argmax(dim=1)


def _pictures(source: Scenes) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels [B, H, W, 3] and masks [B, H, W] of 25 scenes at a time."""
    for start in range(0, len(source), 25):
        pictures = [source.picture(index) for index in range(start, min(len(source), start + 25))]
        pixels = np.stack([picture.pixels for picture in pictures])
        masks = np.stack([picture.mask for picture in pictures])
        yield torch.from_numpy(pixels), torch.from_numpy(masks)


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.float().mean()), 2)
