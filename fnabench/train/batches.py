"""Training batches: pictures from the pool, their captions, and what each patch shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fnabench.data.scenes import Scenes
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES, SIDE, Scene
from fnabench.train.pool import CHUNK, MAX_THINGS, NONE, PATCH, Chunk, load_chunk

IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive training samples; B samples, P patches a side."""

    images: Tensor
    """Normalised [B, 3, height, width]."""
    shapes: Tensor
    """Share of each patch that shows the ground or each shape [B, 1 + shapes, P, P]."""
    colours: Tensor
    """The same for the ground and the colours [B, 1 + colours, P, P]."""
    centres: Tensor
    """Column and row of each thing's centre as a share of the side, -1 for no thing [B, things, 2]."""
    sizes: Tensor
    """1 + the index of each thing's size [B, things]."""
    labels: Tensor
    """Class of the main thing [B]."""
    captions: list[tuple[str, ...]]
    """The captions of each sample."""
    names: list[list[str]]
    """The names of the things of each sample."""

    def resized(self, size: int) -> Batch:
        """The same samples, enlarged to size x size pixels."""
        if size == self.images.shape[-1]:
            return self
        patches = (size // PATCH, size // PATCH)
        return replace(
            self,
            images=functional.interpolate(self.images, (size, size), mode="bicubic", align_corners=False),
            shapes=functional.interpolate(self.shapes, patches, mode="bilinear", align_corners=False),
            colours=functional.interpolate(self.colours, patches, mode="bilinear", align_corners=False),
        )

    def centre_sizes(self) -> Tensor:
        """1 + the index of the size of the thing whose centre a patch holds, 0 for no centre [B, P, P]."""
        patches = self.shapes.shape[-1]
        found = torch.zeros(len(self.shapes), patches, patches, dtype=torch.long)
        rows, things = (self.centres[:, :, 0] >= 0).nonzero(as_tuple=True)
        column, row = (self.centres[rows, things] * patches).long().clamp(max=patches - 1).unbind(-1)
        found[rows, row, column] = self.sizes[rows, things]
        return found


class Batches:
    """Any run of training samples; runs past the end start again at the beginning."""

    def __init__(self, source: Scenes, folder: Path) -> None:
        if len(source) % CHUNK:
            raise ValueError(f"the number of training samples is {len(source)}, not a multiple of {CHUNK}")
        self.source = source
        self.folder = folder
        self._chunks: dict[int, Chunk] = {}

    def take(self, first: int, count: int) -> Batch:
        """Samples first, first + 1, ... as one batch."""
        indices = [index % len(self.source) for index in range(first, first + count)]
        pixels, shares, things = (
            torch.from_numpy(np.stack([getattr(self._chunk(index), part)[index % CHUNK] for index in indices]))
            for part in ("pixels", "shares", "things")
        )
        shape, colour = things[:, :, 0].long(), things[:, :, 1].long()
        scenes = [self.source.scene(index) for index in indices]
        return Batch(
            images=normalize(pixels),
            shapes=_spread(shares, shape, len(SHAPES)),
            colours=_spread(shares, colour, len(COLOURS)),
            **_locate(scenes),
            labels=colour[:, 0] * len(SHAPES) + shape[:, 0],
            captions=[self.source.captions(index) for index in indices],
            names=[[thing.name for thing in scene.things] for scene in scenes],
        )

    def _chunk(self, index: int) -> Chunk:
        number = index // CHUNK
        if number not in self._chunks:
            self._chunks[number] = load_chunk(self.folder, self.source, number)
        return self._chunks[number]


def normalize(pixels: Tensor) -> Tensor:
    """Model input [B, 3, height, width] from uint8 RGB [B, height, width, 3]."""
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _locate(scenes: list[Scene]) -> dict[str, Tensor]:
    """The centres and sizes of the things of each scene."""
    centres = torch.full((len(scenes), MAX_THINGS, 2), -1.0)
    sizes = torch.zeros(len(scenes), MAX_THINGS, dtype=torch.long)
    for number, scene in enumerate(scenes):
        things = scene.things
        centres[number, : len(things)] = torch.tensor([(thing.x / SIDE, thing.y / SIDE) for thing in things])
        sizes[number, : len(things)] = torch.tensor([1 + list(RADII).index(thing.size) for thing in things])
    return {"centres": centres, "sizes": sizes}


def _spread(shares: Tensor, kinds: Tensor, num_kinds: int) -> Tensor:
    """Shares of ground and kinds [B, 1 + num_kinds, P, P] from pixels per thing [B, P, P, things]."""
    part = shares.permute(0, 3, 1, 2).float() / (PATCH * PATCH)  # [B, things, P, P]
    spread = part.new_zeros(part.shape[0], 1 + num_kinds, *part.shape[2:])
    rows = torch.arange(part.shape[0])
    for thing in range(MAX_THINGS):
        there = kinds[:, thing] != NONE
        spread[rows[there], 1 + kinds[there, thing]] += part[there, thing]
    spread[:, 0] = 1 - part.sum(dim=1)
    return spread
