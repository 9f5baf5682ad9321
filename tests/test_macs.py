"""Counting multiply-accumulates: fused attention is seen, and formula and counter agree on whole models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import random_images, timm_model
from torch.nn.functional import linear, scaled_dot_product_attention

from fnabench.attention.base import AttentionShape
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.free import Free
from fnabench.macs import attention_macs, count_macs, crossover_tokens
from fnabench.models.timm_layers import timm_layers

SHAPE = AttentionShape(num_tokens=197, num_heads=12, head_dim=64, num_channels=768, num_prefix=1)


def test_a_matrix_product_counts_its_multiplications() -> None:
    assert count_macs(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 3 * 5 * 7
    assert count_macs(lambda: linear(torch.ones(2, 4, 5), torch.ones(6, 5))) == 2 * 4 * 5 * 6
    assert count_macs(lambda: torch.ones(9) + 1) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fused_attention_is_counted(mode: type) -> None:
    q = torch.ones(2, 3, 17, 8)
    with mode():
        assert count_macs(lambda: scaled_dot_product_attention(q, q, q)) == 2 * 3 * 2 * 17 * 17 * 8


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_models_own_layers_and_its_attention_add_up(mode: type) -> None:
    module = timm_model()
    stack = timm_layers(module)
    images = random_images(1)
    with mode():
        untouched = count_macs(lambda: module(images))
        Free().attach(stack)
        without = count_macs(lambda: module(images))
    assert untouched == without + attention_macs(Exact(), [layer.shape(17) for layer in stack])


def test_layers_of_different_sizes_are_summed() -> None:
    small = replace(SHAPE, num_tokens=50)
    expected = 2 * 12 * 64 * (3 * 197**2 + 2 * 50**2)
    assert attention_macs(Exact(), [SHAPE, small, SHAPE, small, SHAPE]) == expected


def test_landmarks_shared_by_all_layers_are_counted_once() -> None:
    once, each = (Fna(num_landmarks=64, resample=resample) for resample in ("forward", "layer"))
    selection = 197 * 64 * 64
    assert attention_macs(each, [SHAPE] * 6) - attention_macs(once, [SHAPE] * 6) == 5 * selection


def test_the_inverse_is_over_half_of_fna_at_224_pixels() -> None:
    """257 tokens and 64 landmarks: FNA needs more than exact attention, and 24 M^3 of it are the iterations."""
    shape = replace(SHAPE, num_tokens=257)
    macs = attention_macs(Fna(num_landmarks=64, resample="forward"), [shape] * 12)
    assert macs > attention_macs(Exact(), [shape] * 12)
    assert macs < 2 * 12 * 12 * 24 * 64**3


def test_nothing_is_cheaper_than_itself() -> None:
    assert crossover_tokens(Exact(), Exact(), [SHAPE]) is None
    assert crossover_tokens(Free(), Exact(), [SHAPE]) == 1
