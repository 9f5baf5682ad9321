"""From an image to the square, normalised tensor that a CLIP-like tower was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torchvision.transforms import v2 as transforms

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    Transform = Callable[[Image.Image], Tensor]

_BICUBIC = transforms.InterpolationMode.BICUBIC


def square_transforms(size: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Transform, Transform]:
    """Short side to `size` and a centre crop; and the whole image squeezed to `size` x `size`. Both bicubic."""
    to_tensor = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(mean, std)]
    crop = transforms.Compose([transforms.Resize(size, _BICUBIC), transforms.CenterCrop(size), *to_tensor])
    return crop, transforms.Compose([transforms.Resize((size, size), _BICUBIC), *to_tensor])
