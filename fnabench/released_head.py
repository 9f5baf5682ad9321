"""Linear segmentation heads as DINOv2 released them: batch normalisation and a 1x1 convolution on the patch tokens."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from fnabench.errors import BadInputError, MissingError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "decode_head."
NORM = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
CONVOLUTION = ("conv_seg.weight", "conv_seg.bias")
COUNTER = "bn.num_batches_tracked"
ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_ade20k_linear_head.pth or its kin"
"""One of the files; the others are named for their model and data set."""
EPS = 1e-5
"""Of torch's batch normalisation, which the heads were trained with."""


def read_released_head(path: Path) -> dict[str, Tensor]:
    """Weight [K, C] and bias [K] for raw patch tokens: the normalisation is folded into the convolution."""
    parts = _read_parts(path)
    kernel, mean = parts["conv_seg.weight"], parts["bn.running_mean"]
    num_classes, num_channels = kernel.shape[:2] if kernel.dim() == 4 else (0, 0)
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(NORM, (num_channels,))
    expected |= {"conv_seg.weight": (num_classes, num_channels, 1, 1), "conv_seg.bias": (num_classes,)}
    for name, shape in expected.items():
        if tuple(parts[name].shape) != shape or not num_classes:
            raise BadInputError(
                f"{path}: {PREFIX}{name} has the shape {tuple(parts[name].shape)}, which is no part of a 1x1 "
                "convolution after batch normalisation"
            )
    scale = parts["bn.weight"] / (parts["bn.running_var"] + EPS).sqrt()
    weight = kernel.flatten(1)
    head = {"weight": weight * scale, "bias": parts["conv_seg.bias"] + weight @ (parts["bn.bias"] - scale * mean)}
    if not all(part.isfinite().all() for part in head.values()):
        raise BadInputError(f"{path} gives weights that are not finite; download it again")
    return head


def _read_parts(path: Path) -> dict[str, Tensor]:
    """The head's tensors in float32 by their names without the prefix."""
    if not path.is_file():
        raise MissingError(
            f"task.head={path} is not a file; download it from {ADDRESS} and put it there, or fit a head here with "
            "task.head=null"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise BadInputError(f"{path} cannot be read as weights: {reason}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = state.items() if isinstance(state, dict) else ()
    parts = {str(name).removeprefix(PREFIX): value for name, value in named if str(name).startswith(PREFIX)}
    parts.pop(COUNTER, None)
    if lacking := [name for name in (*NORM, *CONVOLUTION) if not isinstance(parts.get(name), torch.Tensor)]:
        raise BadInputError(f"{path} is no linear head of DINOv2: it lacks {PREFIX}{lacking[0]}")
    if others := sorted(parts.keys() - {*NORM, *CONVOLUTION}):
        raise BadInputError(f"{path} is no linear head of DINOv2: it also holds {PREFIX}{others[0]}")
    return {name: value.float() for name, value in parts.items()}
