"""Inputs that break naive solves: finite, repeatable, and no worse than the plain mean of the landmarks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import attention_inputs, key_mask, shape_of, softmax_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fnabench.attention.base import AttentionInputs
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.inverse import effective_values
from fnabench.attention.landmarks import Landmarks
from fnabench.bench.inputs import grouped_inputs, with_fading_directions
from fnabench.errors import ImpossibleError

VARIANTS = (
    FnaRefined(num_landmarks=12),
    FnaRefined(num_landmarks=12, over=2),
    FnaRefined(num_landmarks=12, scatter=False),
    FnaRefined(num_landmarks=12, features="qk_concat"),
    FnaRefined(num_landmarks=12, method="kmeans"),
    FnaRefined(num_landmarks=12, method="rpcholesky"),
    FnaRefined(num_landmarks=12, shrink=True),
)


def error(output: Tensor, exact: Tensor) -> float:
    return float((output.double() - exact).norm() / exact.norm())


def plain_mean(inputs: AttentionInputs, landmarks: Landmarks) -> Tensor:
    """Every query gets the mean of the landmarks' values."""
    return landmarks.gather(inputs.v).double().mean(2, keepdim=True).expand(inputs.v.shape)


def assert_sound(variant: FnaRefined, inputs: AttentionInputs, factor: float = 1.0) -> None:
    """Finite, the same twice, and no worse than the plain mean of the landmarks (or than `factor` times it)."""
    first, second = (variant(replace(inputs, memo=memo)) for memo in ({}, inputs.memo))
    assert first.isfinite().all()
    assert torch.equal(first, second)
    exact = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
    bound = error(plain_mean(inputs, inputs.memo["landmarks"]), exact)
    assert error(first, exact) <= factor * bound + 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@given(exponent=st.floats(0, 8), tokens=st.integers(48, 120), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_condition_number(variant: FnaRefined, exponent: float, tokens: int, seed: int) -> None:
    assert_sound(variant, with_fading_directions(grouped_inputs(seed, tokens), 10**exponent))


@pytest.mark.parametrize("variant", VARIANTS)
@given(exponent=st.floats(0, 8), tokens=st.integers(24, 90), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_noise_that_no_landmarks_can_stand_for_does_not_blow_up(
    variant: FnaRefined, exponent: float, tokens: int, seed: int
) -> None:
    noise = with_fading_directions(attention_inputs(tokens=tokens, seed=seed), 10**exponent)
    assert_sound(variant, noise, factor=2.5)
    assert_sound(replace(variant, shrink=True), replace(noise, memo={}), factor=1.5)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_the_ridge_solves_a_system_of_any_condition_as_well_as_float64_does(condition: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=generator)).Q for _ in range(2))
    a = u * torch.logspace(0, -float(torch.tensor(condition).log10()), 24, dtype=torch.float64) @ v
    right = torch.randn(24, 5, dtype=torch.float64, generator=generator)
    solved = effective_values(a.float(), right.float(), "ridge", ridge=1e-3)
    expected = torch.linalg.solve(a.mT @ a + 1e-3 * torch.eye(24, dtype=torch.float64), a.mT @ right)
    assert error(solved, expected) < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("copies", [2, 5, 40])
def test_duplicated_tokens(variant: FnaRefined, copies: int) -> None:
    few = grouped_inputs(tokens=80 // copies)
    q, k, v = (each.repeat(1, 1, copies, 1) for each in (few.q, few.k, few.v))
    assert_sound(variant, replace(few, q=q, k=k, v=v, x=few.x.repeat(1, copies, 1)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 1.0, -300.0])
def test_a_constant_image(variant: FnaRefined, value: float) -> None:
    inputs = attention_inputs(tokens=40, num_prefix=0)
    q, k, v = (torch.full_like(each, value) for each in (inputs.q, inputs.k, inputs.v))
    output = variant(replace(inputs, q=q, k=k, v=v, x=torch.full_like(inputs.x, value)))
    torch.testing.assert_close(output, v)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_vectors_among_others(variant: FnaRefined) -> None:
    inputs = grouped_inputs(tokens=60)
    for each in (inputs.q, inputs.k, inputs.v):
        each[:, :, 5:30] = 0
    inputs.x[:, 5:30] = 0
    assert_sound(variant, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("strength", [5.0, 20.0, 80.0])
def test_a_sink(variant: FnaRefined, strength: float) -> None:
    inputs = grouped_inputs(tokens=60)
    direction = inputs.q.mean(2, keepdim=True)
    q = inputs.q + 3 * direction / direction.norm(dim=-1, keepdim=True)
    inputs.k[:, :, 33] = strength * direction[:, :, 0] / direction[:, :, 0].norm(dim=-1, keepdim=True)
    assert_sound(variant, replace(inputs, q=q))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [250.0, 3000.0])
def test_massive_tokens_in_half_precision_stay_finite(variant: FnaRefined, dtype: torch.dtype, norm: float) -> None:
    inputs = grouped_inputs(tokens=60)
    for each in (inputs.q, inputs.k, inputs.v):
        each[:, :, [7, 40]] *= norm / each[:, :, [7, 40]].norm(dim=-1, keepdim=True)
    inputs.x[:, [7, 40]] *= norm
    q, k, v, x = (each.to(dtype) for each in (inputs.q, inputs.k, inputs.v, inputs.x))
    assert_sound(variant, replace(inputs, q=q, k=k, v=v, x=x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_at_the_edge_of_half_precision_do_not_become_infinite(dtype: torch.dtype) -> None:
    inputs = attention_inputs(tokens=60)
    v = (6e4 * inputs.v.sign()).to(dtype)
    q, k = (each.to(dtype) for each in (inputs.q, inputs.k))
    for variant in VARIANTS:
        assert variant(replace(inputs, q=q, k=k, v=v, memo={})).isfinite().all()


def test_fewer_tokens_than_landmarks_are_refused_and_as_many_are_exact() -> None:
    inputs = attention_inputs(tokens=12)
    variant = FnaRefined(num_landmarks=12)
    variant.check(shape_of(inputs))
    with pytest.raises(ImpossibleError, match=r"num_landmarks=12 does not fit 11 tokens .* choose 4\.\.11"):
        variant.check(shape_of(attention_inputs(tokens=11)))
    exact = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
    torch.testing.assert_close(variant(inputs).double(), exact, atol=1e-5, rtol=1e-5)


def test_images_of_which_only_a_few_tokens_are_allowed_are_finite() -> None:
    inputs = attention_inputs(tokens=40, mask=key_mask([0], [0, 39], tokens=40))
    for variant in VARIANTS:
        assert variant(replace(inputs, memo={})).isfinite().all()
