"""What the projector reads of each training picture, computed once because the image tower stays frozen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fnabench.data.scenes import Scenes
from fnabench.data.scenes.world import Scene
from fnabench.train.alignment import NOTHING, PatchWords, find_centres
from fnabench.train.batches import normalize
from fnabench.train.pool import CHUNK, PATCH, load_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import LlavaForConditionalGeneration


class Features:
    """Patch features of the training samples, in float16, stored chunk by chunk in a folder."""

    def __init__(self, model: LlavaForConditionalGeneration, source: Scenes, folder: Path, pool: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.num_patches = (source.image_size // PATCH) ** 2
        chunks = [load_chunk(pool, source, number) for number in range(len(source) // CHUNK)]
        self._features = [_load(model, chunk.pixels, folder / f"{n:04d}.npy") for n, chunk in enumerate(chunks)]
        self._shares = [chunk.shares for chunk in chunks]
        self._things = [chunk.things for chunk in chunks]

    def take(self, indices: list[int], *, num_kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features [B, num_kept, C] of the kept patches and their numbers [B, num_kept], in reading order.

        Patches that show a thing are kept more often than the others.
        """
        features = np.stack([self._features[index // CHUNK][index % CHUNK] for index in indices])
        shares = np.stack([self._shares[index // CHUNK][index % CHUNK] for index in indices])
        interest = torch.from_numpy(shares.sum(axis=-1) > 0).flatten(1).float()
        score = interest + 1.2 * torch.rand(interest.shape, generator=generator)
        kept = score.topk(num_kept).indices.sort(dim=1).values
        chosen = torch.from_numpy(features).gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
        return chosen.float(), kept

    def name(self, indices: list[int], kept: Tensor, scenes: list[Scene]) -> PatchWords:
        """What the kept patches [B, V] of the samples show."""
        shares = torch.from_numpy(np.stack([self._shares[index // CHUNK][index % CHUNK] for index in indices]))
        owned = torch.from_numpy(np.stack([self._things[index // CHUNK][index % CHUNK] for index in indices])).long()
        most = shares.flatten(1, 2).gather(1, kept[..., None].expand(-1, -1, shares.shape[-1])).max(dim=-1)
        kinds = owned.gather(1, most.indices[..., None].expand(-1, -1, 2))  # [B, V, 2]
        little = most.values < PATCH * PATCH // 2
        kinds = kinds.masked_fill(little[..., None], NOTHING)
        things = most.indices.masked_fill(little, NOTHING)
        centres = find_centres(scenes, kept, side=round(self.num_patches**0.5))
        return PatchWords(shapes=kinds[..., 0], colours=kinds[..., 1], things=things, centres=centres)


@torch.no_grad()
def _load(model: LlavaForConditionalGeneration, pixels: NDArray[np.uint8], path: Path) -> NDArray[np.float16]:
    if not path.exists():
        parts = []
        for start in range(0, len(pixels), 50):
            images = normalize(torch.from_numpy(pixels[start : start + 50].copy()))
            hidden = model.model.vision_tower(images, output_hidden_states=True).hidden_states
            parts.append(hidden[model.config.vision_feature_layer][:, 1:].half().numpy())
        unfinished = path.with_suffix(f".{os.getpid()}")
        with unfinished.open("wb") as file:
            np.save(file, np.concatenate(parts))
        unfinished.rename(path)
    loaded: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return loaded
