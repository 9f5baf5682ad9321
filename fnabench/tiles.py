"""Images that a model reads as several square tiles each, as many as their shape asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """A batch of images in tiles; it does what a loader, a probe and a task do with a batch in one tensor."""

    pixels: Float[Tensor, "tiles 3 height width"]
    """Every image's tiles, image after image."""
    counts: tuple[int, ...]
    """Number of tiles of each image."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each image in pixels, before it was cut."""

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, chosen: slice) -> Tiles:
        return self.take(range(len(self))[chosen])

    def take(self, chosen: Sequence[int]) -> Tiles:
        """These images, by their places."""
        ends = [0, *accumulate(self.counts)]
        return Tiles(
            pixels=torch.cat([self.pixels[:0], *(self.pixels[ends[image] : ends[image + 1]] for image in chosen)]),
            counts=tuple(self.counts[image] for image in chosen),
            sizes=tuple(self.sizes[image] for image in chosen),
        )

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def to(self, *options: Any, **named: Any) -> Tiles:
        """On another device or in another dtype, as Tensor.to."""
        return replace(self, pixels=self.pixels.to(*options, **named))

    def pin_memory(self) -> Tiles:
        """In memory that a GPU reads without waiting."""
        return replace(self, pixels=self.pixels.pin_memory())


Images = Tensor | Tiles
"""A batch: one tensor [B, 3, height, width], or tiles."""


def stack(images: Sequence[Images]) -> Images:
    """One batch of images that a transform gave: tensors [3, height, width], or tiles of one image each."""
    if isinstance(images[0], Tensor):
        return torch.stack(images)  # type: ignore[arg-type]
    tiles = [each for each in images if isinstance(each, Tiles)]
    return Tiles(
        pixels=torch.cat([each.pixels for each in tiles]),
        counts=tuple(count for each in tiles for count in each.counts),
        sizes=tuple(size for each in tiles for size in each.sizes),
    )


def split_by_size(images: Images) -> list[tuple[Images, list[int]]]:
    """The images of a batch and their places, in as many parts as there are sizes of tiled images.

    A model reads a part without padding, so that what it makes of an image does not depend on the others.
    """
    if isinstance(images, Tensor):
        return [(images, list(range(len(images))))]
    places: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(images.sizes):
        places.setdefault(size, []).append(place)
    return [(images.take(chosen), chosen) for chosen in places.values()]


def blank(images: Images) -> Images:
    """The same batch with every pixel zero, the mean colour of normalised images."""
    if isinstance(images, Tensor):
        return torch.zeros_like(images)
    return replace(images, pixels=torch.zeros_like(images.pixels))


def per_image(values: Float[Tensor, " rows"], images: Images) -> Float[Tensor, " B"]:
    """Values of images, or of their tiles, as one value an image: the mean of its tiles'."""
    if isinstance(images, Tensor) or len(values) == len(images):
        return values
    return torch.stack([each.mean() for each in torch.split(values, list(images.counts))])
