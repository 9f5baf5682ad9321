"""Whole forwards of a random Vision Transformer, half of its layers replaced, beside attention that costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import timm
from torch import Tensor

from fnabench.attention.base import Attention
from fnabench.attention.exact import Exact
from fnabench.attention.free import Free
from fnabench.bench.inputs import to_tensor
from fnabench.bench.report import Row, compare_arms
from fnabench.cost import capture_inputs, forward_arms
from fnabench.loader import Batch
from fnabench.models.timm_vit import TimmBackbone
from fnabench.sdpa import fastest_backend
from fnabench.timing import interleave


def compare_forwards(
    what: str,
    architecture: str,
    images: Tensor,
    variants: Mapping[str, Attention],
    num_rounds: int,
    goal: str,
) -> Iterator[Row]:
    """Each variant and free attention beside exact attention, and free beside each variant: its share of the ceiling.

    The images [B, 3, S, S] give the model its size, device and dtype; all take the backend that is fastest for exact.
    """
    module = timm.create_model(architecture, img_size=images.shape[-1]).eval().to(images.device, images.dtype)
    made = TimmBackbone(module, to_tensor)
    layers = made.layers.select("half")
    captured = capture_inputs(
        made, layers[:1], lambda model, batch: model.classify(batch.images), Batch(images=images, samples=())
    )
    backend = fastest_backend(captured[0], images.device)
    cores = {"exact": Exact(), **variants, "free": Free()}
    arms = forward_arms(made, layers, cores, partial(made.classify, images), backend)
    timings = interleave(arms, num_rounds, images.device)
    for arm in (*variants, "free"):
        yield compare_arms(what, timings, "exact", arm)
    for arm in variants:
        yield compare_arms(f"{what}: share of the ceiling", timings, "free", arm, goal)
