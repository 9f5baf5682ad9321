"""Sliding windows: boxes that cover an image, and what was found in each put together."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Box(NamedTuple):
    """A part of an image in pixels, bottom and right excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Index of the box in an array [height, width]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def cover(size: tuple[int, int], proportions: tuple[int, int], window: float, stride: float) -> list[Box]:
    """Boxes of one size that cover an image [height, width], row by row.

    A window of 1 is the largest box of these proportions (height to width) inside the image; what sticks out of the
    image is cut off. The stride is in windows; the last box of a row or column is moved back to the image's edge.
    """
    scale = window * min(size[0] / proportions[0], size[1] / proportions[1])
    height, width = (min(edge, max(1, round(scale * part))) for edge, part in zip(size, proportions, strict=True))
    return [
        Box(top, left, top + height, left + width)
        for top in _starts(size[0], height, stride)
        for left in _starts(size[1], width, stride)
    ]


def stitch(maps: Float[Tensor, "n K h w"], boxes: Sequence[Box], size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    """One map of the size of the image: each is upsampled (bilinear) to its box, overlaps are averaged."""
    total, counts = maps.new_zeros(maps.shape[1], *size), maps.new_zeros(size)
    for each, box in zip(maps, boxes, strict=True):
        edges = box.bottom - box.top, box.right - box.left
        total[:, *box.pixels] += interpolate(each[None], size=edges, mode="bilinear", align_corners=False)[0]
        counts[box.pixels] += 1
    return torch.div(total, counts, out=total)


def _starts(edge: int, length: int, stride: float) -> list[int]:
    step = max(1, round(stride * length))
    return [min(number * step, edge - length) for number in range(ceil((edge - length) / step) + 1)]
