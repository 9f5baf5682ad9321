"""The refined form against its formula in float64, its switches, its masks, its cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import attention_inputs, key_mask, on_meta, row_softmax, shape_of, softmax_attention
from torch import Tensor

from fnabench.attention.base import AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.inverse import INVERSES
from fnabench.attention.landmarks import farthest_points
from fnabench.attention.selection import FEATURES, features_of
from fnabench.bench.inputs import grouped_inputs
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.macs import count_macs, crossover_tokens

OFF = {"scatter": False, "inverse": "newton_schulz", "cells": False, "features": "q", "num_sinks": 0}
"""Every ingredient switched off."""
LADDER = (
    OFF,
    OFF | {"scatter": True},
    OFF | {"scatter": True, "inverse": "ridge"},
    {"features": "q", "num_sinks": 0},
    {"features": "q", "num_sinks": 0, "over": 2},
)


def naive_refined(
    inputs: AttentionInputs,
    num_landmarks: int,
    features: str,
    over: int = 1,
    allowed: np.ndarray | None = None,
    shrink: bool = False,
) -> np.ndarray:
    """Cells, masses, ridge and scatter in float64, image by image and head by head, every matrix written out."""
    q, k, v = (each.double().numpy() for each in (inputs.q, inputs.k, inputs.v))
    points = features_of(inputs, features).double()
    given = None if allowed is None else torch.from_numpy(allowed)
    chosen = farthest_points(points, over * num_landmarks, inputs.num_prefix, given)
    output = np.zeros_like(q)
    for b in range(len(q)):
        keys = np.flatnonzero(allowed[b]) if allowed is not None else np.arange(q.shape[2])
        rows = [token for token in chosen.index[b].tolist() if token in keys]
        own = [token for token in chosen.index[b, :num_landmarks].tolist() if token in keys]
        patches = [j for j, token in enumerate(own) if token >= inputs.num_prefix]
        cell_of = {}
        for token in keys:
            distances = [float((points[b, token] - points[b, own[j]]).square().sum()) for j in patches]
            cell_of[token] = own.index(token) if token in own else patches[int(np.argmin(distances))]
        members = [[token for token in keys if cell_of[token] == j] for j in range(len(own))]
        log_size = np.log([len(each) for each in members])
        for h in range(q.shape[1]):
            k_bar, v_bar = (np.stack([each[b, h, cell].mean(0) for cell in members]) for each in (k, v))
            f = row_softmax(inputs.scale * q[b, h] @ k_bar.T + log_size)
            u = row_softmax(inputs.scale * q[b, h, rows] @ k[b, h, keys].T) @ v[b, h, keys]
            a = f[rows]
            missed, share = u - a @ v_bar, 1.0
            if shrink:  # each landmark is predicted by a system without it
                others = [solve_ridge(np.delete(a, i, 0), np.delete(missed, i, 0)) for i in range(len(a))]
                predicted = np.stack([row @ values for row, values in zip(a, others, strict=True)])
                stands_for = np.array([len(members[own.index(each)]) if each in own else 1 for each in rows])[:, None]
                best = (stands_for * missed * predicted).sum() / (stands_for * predicted**2).sum()
                share = np.clip(2 * best, 0, 1)
            output[b, h] = f @ (v_bar + share * solve_ridge(a, missed))
            output[b, h, rows] = u
    return output


def solve_ridge(a: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.linalg.solve(a.T @ a + 1e-3 * np.eye(a.shape[1]), a.T @ right)


def refined(m: int = 7, **options: object) -> FnaRefined:
    return FnaRefined(num_landmarks=m, **({"num_sinks": 0} | options))  # type: ignore[arg-type]


def only(inputs: AttentionInputs, tokens: list[int] | Tensor) -> AttentionInputs:
    """The inputs with these tokens alone, in this order, and no mask."""
    q, k, v = (each[:, :, tokens] for each in (inputs.q, inputs.k, inputs.v))
    return replace(inputs, q=q, k=k, v=v, x=inputs.x[:, tokens], mask=None, memo={})


# The formula and its switches


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "num_landmarks", "over"), [(17, 7, 1), (40, 13, 1), (40, 8, 3)])
def test_refined_is_its_formula(features: str, num_prefix: int, tokens: int, num_landmarks: int, over: int) -> None:
    inputs = attention_inputs(tokens=tokens, num_prefix=num_prefix)
    expected = naive_refined(inputs, num_landmarks, features, over)
    np.testing.assert_allclose(refined(num_landmarks, features=features, over=over)(inputs), expected, atol=2e-4)


@pytest.mark.parametrize("kept", [None, [*range(0, 40, 4), 39], [*range(30)]])
@pytest.mark.parametrize("over", [1, 3])
def test_shrunken_it_leaves_out_each_landmark_in_turn(over: int, kept: list[int] | None) -> None:
    mask = None if kept is None else key_mask(kept, kept, tokens=40)
    inputs = attention_inputs(tokens=40, mask=mask)
    allowed, seen = (None, slice(None)) if mask is None else (mask[:, 0, 0].numpy(), kept)
    plain, expected = (naive_refined(inputs, 8, "q", over, allowed, shrink)[:, :, seen] for shrink in (False, True))
    output = refined(8, features="q", over=over, shrink=True)(inputs)[:, :, seen]
    np.testing.assert_allclose(output, expected, atol=1e-3)
    assert kept is not None or np.abs(expected - plain).max() > 0.02


def test_with_a_large_ridge_it_is_the_softmax_over_cell_means() -> None:
    inputs = attention_inputs(tokens=40)
    output = refined(8, ridge=1e7, scatter=False)(inputs)
    cells = inputs.memo["cells"]
    bias = cells.size.log()[:, None, None]
    weights = (inputs.scale * inputs.q @ cells.mean(inputs.k).mT + bias).softmax(-1)
    torch.testing.assert_close(output, weights @ cells.mean(inputs.v), atol=1e-5, rtol=0)


def test_at_the_landmarks_the_ridge_is_never_worse_than_the_cell_means() -> None:
    for seed in range(20):
        inputs = attention_inputs(tokens=60, seed=seed)
        errors = []
        for ridge in (1e-4, 1e-3, 1e-2, 1.0, 1e7):
            given = replace(inputs, memo={})
            off = refined(12, ridge=ridge, scatter=False)(given) - Exact()(inputs)
            errors.append(given.memo["landmarks"].gather(off).square().sum((-2, -1)))
        for smaller, larger in pairwise(errors):
            assert (smaller <= larger + 1e-4).all()


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_with_every_ingredient_off_it_is_fna(num_prefix: int) -> None:
    inputs = attention_inputs(num_prefix=num_prefix)
    masked = attention_inputs(num_prefix=num_prefix, mask=key_mask(list(range(14)), [*range(8), 15]))
    for given in (inputs, masked):
        off, fna = refined(**OFF)(given), Fna(num_landmarks=7)(replace(given, memo={}))
        torch.testing.assert_close(off, fna, atol=1e-6, rtol=0)
    assert refined(**OFF).macs(shape_of(inputs), 3) == Fna(num_landmarks=7).macs(shape_of(inputs), 3)


@pytest.mark.parametrize("options", LADDER[1:], ids=["scatter", "ridge", "cells", "over"])
def test_each_ingredient_changes_the_output(options: dict[str, object]) -> None:
    before = LADDER[LADDER.index(options) - 1]
    inputs = grouped_inputs(0)
    first, second = (refined(**each)(replace(inputs, memo={})) for each in (before, options))
    assert (first - second).abs().max() > 1e-3


def test_cells_and_more_queries_come_nearer_to_exact_attention() -> None:
    errors = []
    for options in LADDER[2:]:
        steps = []
        for seed in range(10):
            inputs = grouped_inputs(seed)
            exact = Exact()(inputs)
            steps.append(float((refined(12, **options)(inputs) - exact).norm() / exact.norm()))
        errors.append(np.mean(steps))
    assert errors[2] < 0.8 * errors[1] < 0.6 * errors[0]


def test_all_tokens_as_landmarks_is_exact_attention() -> None:
    inputs = attention_inputs()
    for scatter in (True, False):
        torch.testing.assert_close(refined(17, scatter=scatter)(replace(inputs, memo={})), Exact()(inputs))


def test_the_rows_of_the_landmarks_are_exact() -> None:
    inputs = attention_inputs(tokens=41)
    for options in LADDER[1:]:
        given = replace(inputs, memo={})
        output = refined(**options)(given)
        landmarks = given.memo["landmarks"]
        assert landmarks.index.shape == (2, 7 * options.get("over", 1))
        torch.testing.assert_close(landmarks.gather(output), landmarks.gather(Exact()(inputs)))


@pytest.mark.parametrize("inverse", INVERSES)
def test_values_of_one_give_outputs_of_one(inverse: str) -> None:
    inputs = attention_inputs()
    output = refined(inverse=inverse)(replace(inputs, v=torch.ones_like(inputs.v)))
    torch.testing.assert_close(output, torch.ones_like(output))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_permuting_the_patches_permutes_the_output(features: str, num_prefix: int) -> None:
    inputs = attention_inputs(num_prefix=num_prefix)
    patches = num_prefix + torch.randperm(17 - num_prefix, generator=torch.Generator().manual_seed(3))
    order = torch.cat([torch.arange(num_prefix), patches])
    variant = refined(8, features=features)
    expected = variant(inputs)[:, :, order]
    torch.testing.assert_close(variant(only(inputs, order)), expected, atol=1e-4, rtol=1e-4)


def test_heads_do_not_mix() -> None:
    inputs = attention_inputs()
    changed = inputs.v.clone()
    changed[:, 1] += 5
    before, after = refined()(inputs), refined()(replace(inputs, v=changed, memo={}))
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.isclose(before[:, 1], after[:, 1]).any()


@pytest.mark.parametrize("features", FEATURES)
def test_the_output_of_an_image_does_not_depend_on_its_batch(features: str) -> None:
    inputs = attention_inputs(batch=4)
    inputs.k[1] *= 6  # a neighbour with very sharp attention
    together = refined(features=features)(inputs)
    for image in range(4):
        q, k, v, x = (each[image : image + 1] for each in (inputs.q, inputs.k, inputs.v, inputs.x))
        alone = refined(features=features)(replace(inputs, q=q, k=k, v=v, x=x, memo={}))
        torch.testing.assert_close(together[image], alone[0], atol=1e-4, rtol=1e-3)


# Precision and layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", LADDER)
def test_the_output_has_the_dtype_and_shape_of_v_and_is_finite(options: dict[str, object], dtype: torch.dtype) -> None:
    output = refined(**options)(attention_inputs(dtype=dtype))
    assert output.dtype == dtype
    assert output.shape == (2, 3, 17, 8)
    assert output.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_is_near_full_precision(dtype: torch.dtype, tolerance: float) -> None:
    half = attention_inputs(dtype=dtype)
    q, k, v, x = (each.float() for each in (half.q, half.k, half.v, half.x))
    full = replace(half, q=q, k=k, v=v, x=x, memo={})
    torch.testing.assert_close(refined()(half).float(), refined()(full), atol=tolerance, rtol=tolerance)


def test_strided_tokens_as_timm_gives_them_change_nothing() -> None:
    inputs = attention_inputs()
    fused = torch.stack([inputs.q, inputs.k, inputs.v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, D]
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    assert not q.is_contiguous()
    strided = refined()(replace(inputs, q=q, k=k, v=v, memo={}))
    torch.testing.assert_close(strided, refined()(inputs), atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_it() -> None:
    inputs = attention_inputs()
    v = inputs.v.clone().requires_grad_()
    refined()(replace(inputs, v=v)).square().sum().backward()
    assert v.grad is not None
    assert v.grad.abs().sum() > 0


# Masks


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("options", [*LADDER, {"features": "input"}])
def test_a_masked_token_might_as_well_not_be_there(options: dict[str, object], num_prefix: int) -> None:
    kept = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 15]
    inputs = attention_inputs(num_prefix=num_prefix, mask=key_mask(kept, kept))
    variant = refined(6, **options)
    torch.testing.assert_close(variant(inputs)[:, :, kept], variant(only(inputs, kept)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("masked", [[3, 7, 13, 14, 16], [0]], ids=["patches", "prefix"])
def test_the_keys_and_values_of_masked_tokens_reach_no_output(masked: list[int]) -> None:
    kept = [token for token in range(17) if token not in masked]
    inputs = attention_inputs(mask=key_mask(kept, kept))
    k, v = inputs.k.clone(), inputs.v.clone()
    k[:, :, masked] = 9
    v[:, :, masked] = 1e4
    for options in LADDER:
        variant = refined(6, **options)
        memos = replace(inputs, memo={}), replace(inputs, k=k, v=v, memo={})
        assert torch.equal(*(variant(given) for given in memos))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("over", [1, 2])
def test_an_image_with_fewer_tokens_than_landmarks_uses_those_it_has(features: str, over: int) -> None:
    mask = key_mask(list(range(17)), [0, 2, 5, 11])
    inputs = attention_inputs(mask=mask)
    expected = naive_refined(inputs, 8, features, over, mask[:, 0, 0].numpy())
    np.testing.assert_allclose(refined(8, features=features, over=over)(inputs), expected, atol=2e-4)


@pytest.mark.parametrize("options", LADDER)
def test_a_later_layer_honours_a_mask_of_its_own(options: dict[str, object]) -> None:
    first = attention_inputs(mask=key_mask(list(range(17)), list(range(17))))
    kept = [0, *range(4, 17)]
    later = attention_inputs(seed=1, mask=key_mask(kept, kept))
    v = later.v.clone()
    v[:, :, 1:4] = 1e4
    outputs = []
    for values in (later.v, v):
        given = replace(first, memo={})
        refined(8, **options)(given)
        outputs.append(refined(8, **options)(replace(later, v=values, memo=given.memo)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("variant", [Fna(num_landmarks=8), *(refined(8, **options) for options in LADDER)])
def test_a_later_layer_without_a_mask_sees_all_tokens(variant: Fna | FnaRefined) -> None:
    """An image whose neighbours alone have masked tokens there is given a mask that lets all pass."""
    kept, later = [1, *range(4, 17)], attention_inputs(seed=1)
    outputs = []
    for mask in (None, key_mask(list(range(17)), list(range(17)))):
        first = attention_inputs(mask=key_mask(kept, kept))
        variant(first)
        outputs.append(variant(replace(later, mask=mask, memo=first.memo)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("variant", [Fna(num_landmarks=8), *(refined(8, **options) for options in LADDER)])
@pytest.mark.parametrize("options", [{}, {"method": "kmeans"}, {"method": "rpcholesky"}, {"num_sinks": 2}])
def test_an_image_without_any_allowed_token_gives_zeros(
    variant: Fna | FnaRefined, options: dict[str, object], num_prefix: int
) -> None:
    inputs = attention_inputs(num_prefix=num_prefix, mask=key_mask(list(range(17)), []))
    output = replace(variant, **options)(inputs)  # type: ignore[arg-type]
    assert output.isfinite().all()
    assert not output[1].any()
    assert all(len(set(row)) == len(row) for row in inputs.memo["landmarks"].index.tolist())


def test_what_it_cannot_honour_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="use attention=exact"):
        refined()(attention_inputs(mask=torch.ones(17, 17, dtype=torch.bool)))


# Landmarks over a forward


def test_cells_of_the_first_layer_serve_the_later_ones() -> None:
    first, second = attention_inputs(seed=0), attention_inputs(seed=1)
    refined()(first)
    cells = first.memo["cells"]
    shared = refined()(replace(second, memo=first.memo))
    assert first.memo["cells"] is cells
    alone = refined()(second)
    assert not torch.allclose(shared, alone)
    assert torch.equal(refined(resample="layer")(replace(second, memo=first.memo)), alone)


# Settings and cost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"over": 0}, "over=0"),
        ({"features": "v"}, "features=v is not known; allowed: input, q, k, qk_concat"),
        ({"resample": "never"}, "resample=never"),
        ({"inverse": "lu"}, "inverse=lu"),
        ({"ridge": -1e-3}, r"ridge=-0\.001 is less than"),
        ({"ridge": 1e-5, "over": 2}, "of 128 landmarks in fp32; choose at least 1.5e-05"),
        ({"inverse": "newton_schulz", "over": 2}, "needs a square system, not over=2; use inverse=ridge"),
        ({"shrink": True, "cells": False}, "shrink=true needs cells=true and inverse=ridge"),
        ({"shrink": True, "inverse": "pinv"}, "shrink=true needs cells=true and inverse=ridge"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        FnaRefined(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_landmarks", "over", "message"),
    [
        (5, 1, r"choose 6\.\.17"),
        (6, 1, ""),
        (17, 1, ""),
        (18, 1, r"choose 6\.\.17"),
        (8, 2, ""),
        (9, 2, "choose num_landmarks up to 8"),
    ],
)
def test_the_landmarks_must_outnumber_the_prefix_and_not_the_tokens(
    num_landmarks: int, over: int, message: str
) -> None:
    inputs = attention_inputs(num_prefix=5)
    variant = refined(num_landmarks, over=over)
    if not message:
        variant.check(shape_of(inputs))
    else:
        for refused in (lambda: variant.check(shape_of(inputs)), lambda: variant(inputs)):
            with pytest.raises(ImpossibleError, match=message):
                refused()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("options", [*LADDER, LADDER[-2] | {"shrink": True}, LADDER[-1] | {"shrink": True}])
@pytest.mark.parametrize("resample", ["forward", "layer"])
def test_its_macs_are_those_that_a_counter_sees(options: dict[str, object], features: str, resample: str) -> None:
    inputs = attention_inputs(tokens=41)
    variant, memo = refined(**(options | {"features": features, "resample": resample})), {}  # type: ignore[arg-type]
    counted = count_macs(lambda: [variant(replace(on_meta(inputs), memo=memo)) for _ in range(3)])
    size = 7 * variant.over if variant.shrink else 7
    cholesky = 0 if variant.inverse == "newton_schulz" else 3 * 3 * (size**3 // 2)  # no counter sees it
    assert variant.macs(shape_of(inputs), 3) == counted + cholesky


def test_it_needs_fewer_macs_than_exact_from_a_few_hundred_tokens_on() -> None:
    shape = replace(shape_of(attention_inputs()), num_heads=12, head_dim=64, num_channels=768)
    tokens = crossover_tokens(FnaRefined(), Exact(), [shape] * 6)
    assert tokens is not None
    assert tokens < 300


def test_it_is_nearer_to_softmax_attention_than_fna_on_grouped_tokens() -> None:
    inputs = grouped_inputs(3)
    exact = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
    ours, theirs = (each(replace(inputs, memo={})).double() - exact for each in (refined(24), Fna(num_landmarks=24)))
    assert ours.norm() < 0.5 * theirs.norm()
