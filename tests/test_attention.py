"""The variants against their mathematics: exact, native and FNA on one layer's inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import attention_inputs, key_mask, on_meta, row_softmax, shape_of, softmax_attention
from torch import Tensor

from fnabench.attention.base import AttentionInputs, AttentionShape
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.free import Free
from fnabench.attention.inverse import INVERSES
from fnabench.attention.native import Native
from fnabench.errors import BadInputError, FnabenchError, ImpossibleError
from fnabench.macs import attention_macs, count_macs, crossover_tokens

CONVERGED = {"newton_schulz": 30, "ridge": 6, "pinv": 6}
"""Iterations with which each inverse is (with a tiny ridge) the exact one."""


def solved(inverse: str, m: int, **options: object) -> Fna:
    return Fna(num_landmarks=m, inverse=inverse, num_iterations=CONVERGED[inverse], ridge=2.5e-6, **options)  # type: ignore[arg-type]


def naive_fna(
    inputs: AttentionInputs, num_landmarks: int, features: str, allowed: np.ndarray | None = None
) -> np.ndarray:
    """The whole of FNA with six iterations in float64, image by image and head by head, every matrix written out."""
    q, k, v, x = (each.double().numpy() for each in (inputs.q, inputs.k, inputs.v, inputs.x))
    output = np.zeros_like(q)
    for b in range(len(q)):
        keys = np.flatnonzero(allowed[b]) if allowed is not None else np.arange(q.shape[2])
        points = x[b] if features == "input" else q[b].mean(0)
        chosen: list[int] = list(range(inputs.num_prefix))
        while len(chosen) < min(num_landmarks, len(keys)):
            mean = points[keys].mean(0, keepdims=True)
            start = points[chosen] if inputs.num_prefix else np.concatenate([mean, points[chosen]])
            distances = np.square(points[:, None] - start[None]).sum(-1).min(1)
            distances[chosen] = -1
            chosen.append(int(keys[distances[keys].argmax()]))
        for h in range(q.shape[1]):
            q_l, k_l = q[b, h, chosen], k[b, h, chosen]
            a = row_softmax(inputs.scale * q_l @ k_l.T)
            u = row_softmax(inputs.scale * q_l @ k[b, h, keys].T) @ v[b, h, keys]
            one, z = np.eye(len(chosen)), a.T / a.sum(0).max()
            for _ in range(6):
                az = a @ z
                z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
            output[b, h] = row_softmax(inputs.scale * q[b, h] @ k_l.T) @ (z @ u)
    return output


# The invariants of the method


@pytest.mark.parametrize("features", ["input", "q"])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "num_landmarks"), [(17, 7), (40, 13)])
def test_fna_is_its_formula(features: str, num_prefix: int, tokens: int, num_landmarks: int) -> None:
    inputs = attention_inputs(tokens=tokens, num_prefix=num_prefix)
    expected = naive_fna(inputs, num_landmarks, features)
    np.testing.assert_allclose(Fna(num_landmarks=num_landmarks, features=features)(inputs), expected, atol=2e-5)


@pytest.mark.parametrize("inverse", INVERSES)
def test_all_tokens_as_landmarks_with_the_exact_inverse_is_exact_attention(inverse: str) -> None:
    inputs = attention_inputs()
    torch.testing.assert_close(solved(inverse, 17)(inputs), Exact()(inputs), atol=2e-3, rtol=0)


@pytest.mark.parametrize("inverse", INVERSES)
def test_values_of_one_give_outputs_of_one(inverse: str) -> None:
    inputs = attention_inputs()
    output = solved(inverse, 7)(replace(inputs, v=torch.ones_like(inputs.v)))
    torch.testing.assert_close(output, torch.ones_like(output), atol=1e-3, rtol=0)


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("features", ["input", "q"])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_permuting_the_patches_permutes_the_output(inverse: str, features: str, num_prefix: int) -> None:
    inputs = attention_inputs(num_prefix=num_prefix)
    patches = num_prefix + torch.randperm(17 - num_prefix, generator=torch.Generator().manual_seed(3))
    order = torch.cat([torch.arange(num_prefix), patches])
    q, k, v = (each[:, :, order] for each in (inputs.q, inputs.k, inputs.v))
    permuted = replace(inputs, q=q, k=k, v=v, x=inputs.x[:, order], memo={})
    variant = Fna(num_landmarks=8, features=features, inverse=inverse)
    torch.testing.assert_close(variant(permuted), variant(inputs)[:, :, order], atol=1e-4, rtol=1e-4)


def test_heads_do_not_mix() -> None:
    inputs = attention_inputs()
    variant = Fna(num_landmarks=7, features="input")
    changed = inputs.v.clone()
    changed[:, 1] += 5
    before, after = variant(inputs), variant(replace(inputs, v=changed, memo={}))
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.isclose(before[:, 1], after[:, 1]).any()


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("features", ["input", "q"])
def test_the_output_of_an_image_does_not_depend_on_its_batch(inverse: str, features: str) -> None:
    inputs = attention_inputs(batch=4)
    inputs.k[1] *= 6  # a neighbour with very sharp attention
    variant = Fna(num_landmarks=7, features=features, inverse=inverse)
    together = variant(inputs)
    for image in range(4):
        q, k, v, x = (each[image : image + 1] for each in (inputs.q, inputs.k, inputs.v, inputs.x))
        alone = variant(replace(inputs, q=q, k=k, v=v, x=x, memo={}))
        torch.testing.assert_close(together[image], alone[0], atol=1e-4, rtol=1e-3)


# Precision and layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", [Exact(), *(Fna(num_landmarks=7, inverse=inverse) for inverse in INVERSES)])
def test_the_output_has_the_dtype_and_shape_of_v_and_is_finite(variant: Exact | Fna, dtype: torch.dtype) -> None:
    output = variant(attention_inputs(dtype=dtype))
    assert output.dtype == dtype
    assert output.shape == (2, 3, 17, 8)
    assert output.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_is_near_full_precision(dtype: torch.dtype, tolerance: float) -> None:
    half = attention_inputs(dtype=dtype)
    q, k, v, x = (each.float() for each in (half.q, half.k, half.v, half.x))
    full = replace(half, q=q, k=k, v=v, x=x, memo={})
    variant = Fna(num_landmarks=7, features="input")
    torch.testing.assert_close(variant(half).float(), variant(full), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("inverse", INVERSES)
def test_effective_values_beyond_fp16_become_its_largest_number(inverse: str) -> None:
    inputs = attention_inputs(tokens=60, dtype=torch.float16)
    for size in (1e4, 6e4):
        output = Fna(num_landmarks=12, inverse=inverse)(replace(inputs, v=size * inputs.v.sign(), memo={}))
        assert output.isfinite().all()


@pytest.mark.parametrize("inverse", INVERSES)
def test_strided_tokens_as_timm_gives_them_change_nothing(inverse: str) -> None:
    inputs = attention_inputs()
    fused = torch.stack([inputs.q, inputs.k, inputs.v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, D]
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    assert not q.is_contiguous()
    variant = Fna(num_landmarks=7, inverse=inverse)
    strided = variant(replace(inputs, q=q, k=k, v=v, memo={}))
    torch.testing.assert_close(strided, variant(inputs), atol=1e-4, rtol=1e-4)


def test_the_given_scale_is_used() -> None:
    inputs = replace(attention_inputs(), scale=0.9)
    expected = softmax_attention(inputs.q, inputs.k, inputs.v, 0.9)
    torch.testing.assert_close(Exact()(inputs).double(), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(Fna(num_landmarks=7)(inputs), naive_fna(inputs, 7, "q"), atol=2e-5)


@pytest.mark.parametrize("inverse", ["newton_schulz", "ridge"])
def test_an_image_of_one_colour_gives_finite_outputs(inverse: str) -> None:
    inputs = attention_inputs(num_prefix=0)
    q, k, v = (each[:, :, :1].expand(-1, -1, 17, -1) for each in (inputs.q, inputs.k, inputs.v))
    constant = replace(inputs, q=q, k=k, v=v, x=inputs.x[:, :1].expand(-1, 17, -1), memo={})
    assert Fna(num_landmarks=7, inverse=inverse)(constant).isfinite().all()


# Masks


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("features", ["input", "q"])
@pytest.mark.parametrize("inverse", INVERSES)
def test_a_masked_token_might_as_well_not_be_there(inverse: str, features: str, num_prefix: int) -> None:
    kept = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 15]
    inputs = attention_inputs(num_prefix=num_prefix, mask=key_mask(kept, kept))
    variant = Fna(num_landmarks=6, features=features, inverse=inverse)
    q, k, v = (each[:, :, kept] for each in (inputs.q, inputs.k, inputs.v))
    without = replace(inputs, q=q, k=k, v=v, x=inputs.x[:, kept], mask=None, memo={})
    torch.testing.assert_close(variant(inputs)[:, :, kept], variant(without), atol=1e-4, rtol=1e-4)


def test_the_keys_and_values_of_masked_tokens_reach_no_output() -> None:
    masked = [3, 7, 13, 14, 16]
    kept = [token for token in range(17) if token not in masked]
    inputs = attention_inputs(mask=key_mask(kept, kept))
    k, v = inputs.k.clone(), inputs.v.clone()
    k[:, :, masked] = 9
    v[:, :, masked] = 1e4
    variant = Fna(num_landmarks=6)
    assert torch.equal(variant(inputs), variant(replace(inputs, k=k, v=v, memo={})))


def test_a_masked_prefix_token_is_no_key() -> None:
    kept = list(range(1, 17))
    inputs = attention_inputs(num_prefix=1, mask=key_mask(kept, kept))
    k, v = inputs.k.clone(), inputs.v.clone()
    k[:, :, 0] = 9
    v[:, :, 0] = 1e4
    variant = Fna(num_landmarks=6)
    assert torch.equal(variant(inputs), variant(replace(inputs, k=k, v=v, memo={})))


@pytest.mark.parametrize("features", ["input", "q"])
def test_an_image_with_fewer_tokens_than_landmarks_uses_those_it_has(features: str) -> None:
    mask = key_mask(list(range(17)), [0, 2, 5, 11])
    inputs = attention_inputs(mask=mask)
    expected = naive_fna(inputs, 8, features, mask[:, 0, 0].numpy())
    np.testing.assert_allclose(Fna(num_landmarks=8, features=features)(inputs), expected, atol=2e-5)


def test_one_mask_for_all_images_of_a_batch_is_honoured() -> None:
    kept = list(range(12))
    once, twice = (attention_inputs(mask=mask) for mask in (key_mask(kept), key_mask(kept, kept)))
    assert torch.equal(Fna(num_landmarks=6)(once), Fna(num_landmarks=6)(twice))


def test_a_mask_of_one_flag_for_all_keys_is_honoured() -> None:
    every = attention_inputs(mask=torch.ones(2, 1, 1, 1, dtype=torch.bool))
    expected = Fna(num_landmarks=6)(replace(every, mask=key_mask(list(range(17)), list(range(17))), memo={}))
    assert torch.equal(Fna(num_landmarks=6)(every), expected)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(17, 17, dtype=torch.bool).tril()[None, None],
        torch.ones(17, 17, dtype=torch.bool),
        torch.ones(2, 3, 1, 17, dtype=torch.bool),
        torch.zeros(2, 1, 1, 17),
    ],
    ids=["per query", "two dimensions", "per head", "additive"],
)
def test_fna_refuses_a_mask_that_it_cannot_honour(mask: Tensor) -> None:
    with pytest.raises(ImpossibleError, match="use attention=exact"):
        Fna(num_landmarks=7)(attention_inputs(mask=mask))


def test_exact_honours_every_mask() -> None:
    lower = torch.ones(17, 17, dtype=torch.bool).tril()
    keys = key_mask(list(range(12)), [0, 3, 5])
    inputs = attention_inputs()
    for given, allowed in (
        (replace(inputs, is_causal=True), lower),
        (replace(inputs, mask=lower), lower),
        (replace(inputs, mask=keys), keys),
        (replace(inputs, mask=keys, is_causal=True), lower & keys),
        (replace(inputs, mask=torch.zeros(17, 17).masked_fill(~lower, -torch.inf)), lower),
    ):
        expected = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale, allowed)
        torch.testing.assert_close(Exact()(given).double(), expected, atol=1e-5, rtol=0)


# Landmarks over a forward


def test_landmarks_of_the_first_layer_serve_the_later_ones() -> None:
    first, second = attention_inputs(seed=0), attention_inputs(seed=1)
    second = replace(second, memo=first.memo)
    variant = Fna(num_landmarks=7)
    variant(first)
    chosen = first.memo["landmarks"]
    shared = variant(second)
    assert second.memo["landmarks"] is chosen
    assert not torch.allclose(shared, variant(replace(second, memo={})))


def test_resampling_each_layer_chooses_anew() -> None:
    first, second = attention_inputs(seed=0), attention_inputs(seed=1)
    second = replace(second, memo=first.memo)
    variant = Fna(num_landmarks=7, resample="layer")
    variant(first)
    assert torch.equal(variant(second), variant(replace(second, memo={})))


# Settings and cost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"features": "v"}, "features=v is not known; allowed: input, q, k, qk_concat"),
        ({"resample": "never"}, "resample=never"),
        ({"inverse": "lu"}, "inverse=lu"),
        ({"num_iterations": -1}, "num_iterations=-1 must be at least 0"),
        (
            {"inverse": "ridge", "ridge": 0.0},
            r"ridge=0\.0 is less than .* 64 landmarks .* at least 7\.6e-06, or inverse=pinv",
        ),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Fna(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_landmarks", "fits"), [(5, False), (6, True), (17, True), (18, False)])
def test_the_landmarks_must_outnumber_the_prefix_and_not_the_tokens(num_landmarks: int, fits: bool) -> None:
    shape = shape_of(attention_inputs(num_prefix=5))
    if fits:
        Fna(num_landmarks=num_landmarks).check(shape)
    else:
        with pytest.raises(ImpossibleError, match=r"choose 6\.\.17"):
            Fna(num_landmarks=num_landmarks).check(shape)


def test_where_no_number_of_landmarks_fits_exact_attention_is_offered() -> None:
    with pytest.raises(ImpossibleError, match=r"does not fit 17 tokens .* and 16 sinks; use attention=exact"):
        Fna(num_sinks=16).check(shape_of(attention_inputs()))


@pytest.mark.parametrize("features", ["input", "q"])
@pytest.mark.parametrize("num_landmarks", [7, 16])
def test_the_macs_of_fna_are_those_that_a_counter_sees(features: str, num_landmarks: int) -> None:
    inputs = attention_inputs(tokens=41)
    variant = Fna(num_landmarks=num_landmarks, features=features)
    counted = count_macs(lambda: variant(on_meta(inputs)))
    assert variant.macs(shape_of(inputs), 1) == counted


def test_landmarks_are_counted_once_a_forward_or_once_a_layer() -> None:
    inputs = attention_inputs(tokens=41)
    for resample in ("forward", "layer"):
        variant, memo = Fna(num_landmarks=7, resample=resample), {}
        counted = count_macs(lambda v=variant, m=memo: [v(replace(on_meta(inputs), memo=m)) for _ in range(3)])
        assert variant.macs(shape_of(inputs), 3) == counted


def test_the_macs_of_exact_and_native_are_those_that_a_counter_sees() -> None:
    inputs = attention_inputs(tokens=41)
    counted = count_macs(lambda: Exact()(on_meta(inputs)))
    assert Exact().macs(shape_of(inputs), 1) == Native().macs(shape_of(inputs), 1) == counted
    assert Exact().macs(shape_of(inputs), 5) == 5 * counted


@pytest.mark.parametrize("inverse", INVERSES)
def test_fna_needs_fewer_macs_than_exact_from_the_crossover_on(inverse: str) -> None:
    shape = AttentionShape(num_tokens=197, num_heads=12, head_dim=64, num_channels=768, num_prefix=1)
    variant = Fna(num_landmarks=64, inverse=inverse)
    tokens = crossover_tokens(variant, Exact(), [shape] * 6)
    assert tokens is not None
    below, above = ([replace(shape, num_tokens=n)] * 6 for n in (tokens - 1, tokens))
    assert attention_macs(variant, below) >= attention_macs(Exact(), below)
    assert attention_macs(variant, above) < attention_macs(Exact(), above)


def test_native_has_no_core_to_call() -> None:
    with pytest.raises(RuntimeError, match="never attached"):
        Native()(attention_inputs())


def test_free_keeps_the_values_and_costs_nothing() -> None:
    inputs = attention_inputs()
    assert Free()(inputs) is inputs.v
    assert Free().macs(shape_of(inputs), 12) == 0


def test_variants_are_frozen_values() -> None:
    assert Fna(num_landmarks=8) == Fna(num_landmarks=8)
    with pytest.raises(AttributeError):
        Fna().num_landmarks = 3  # type: ignore[misc]
    assert issubclass(ImpossibleError, FnabenchError)
