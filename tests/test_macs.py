"""Counting multiply-accumulates: fused attention is seen, and formula and counter agree on whole models."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from builders import random_images, timm_model
from torch.nn.functional import linear, scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionShape
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.free import Free
from fnabench.attention.masked import Masked
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
def test_causal_attention_counts_the_pairs_that_it_allows(mode: type) -> None:
    q, k, v = torch.ones(2, 6, 5, 8), torch.ones(2, 3, 7, 8), torch.ones(2, 3, 7, 4)
    with mode():
        counted = count_macs(lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        square = count_macs(lambda: scaled_dot_product_attention(q, q, q, None, 0.0, True))
    assert counted == 2 * 6 * (1 + 2 + 3 + 4 + 5) * (8 + 4)
    shape = replace(SHAPE, num_tokens=5, num_heads=6, head_dim=8, is_causal=True)
    assert square == 2 * Exact().macs(shape, 1)


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


CAUSAL = [
    *(form(num_landmarks=number) for form in (Fna, FnaRefined) for number in (3, 16, 64)),
    Fna(num_landmarks=16, method="kmeans", resample="layer"),
    Fna(num_landmarks=16, method="rpcholesky"),
    FnaRefined(num_landmarks=16, per_head=True, features="q", num_sinks=0),
    Masked(inner=Fna(num_landmarks=8)),
]


@pytest.mark.parametrize("attention", CAUSAL)
def test_under_a_causal_mask_the_crossover_is_where_the_variant_is_cheaper_for_good(attention: Attention) -> None:
    """Its blocks make the multiply-accumulates rise in steps, so that it may be cheaper for a while before."""
    causal = replace(SHAPE, num_prefix=0, is_causal=True)
    resized = [replace(causal, num_tokens=number) for number in range(1, 1200)]
    dear = [each.num_tokens for each in resized if attention.macs(each, 4) >= Exact().macs(each, 4)]
    assert 1 < crossover_tokens(attention, Exact(), [causal] * 4) == dear[-1] + 1 < 1000


def test_the_crossover_is_found_fast_where_a_variant_always_saves_half() -> None:
    causal, begin = replace(SHAPE, num_prefix=0, is_causal=True), time.monotonic()
    assert crossover_tokens(Fna(num_landmarks=2), Exact(), [causal]) == 22
    assert time.monotonic() - begin < 5


def test_nothing_is_cheaper_than_itself() -> None:
    assert crossover_tokens(Exact(), Exact(), [SHAPE]) is None
    assert crossover_tokens(Free(), Exact(), [SHAPE]) == 1
