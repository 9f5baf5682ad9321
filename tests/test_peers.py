"""The training-free alternatives to FNA against their formulas: Nystromformer, Performer and token merging."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import attention_inputs, key_mask, on_meta, row_softmax, shape_of, softmax_attention

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.nystromformer import Nystromformer
from fnabench.attention.performer import Performer, _directions
from fnabench.attention.tome import Tome
from fnabench.bench.inputs import grouped_inputs
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.macs import count_macs

PEERS: tuple[Attention, ...] = (Nystromformer(num_landmarks=7), Performer(num_features=19), Tome(ratio=0.4))
each_peer = pytest.mark.parametrize("peer", PEERS, ids=[type(peer).__name__ for peer in PEERS])


def in_float64(inputs: AttentionInputs, image: int, head: int) -> list[np.ndarray]:
    return [each[image, head].double().numpy() for each in (inputs.q, inputs.k, inputs.v)]


# What all of them owe


@each_peer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_the_output_has_the_dtype_and_shape_of_v_and_is_finite(
    peer: Attention, dtype: torch.dtype, num_prefix: int
) -> None:
    inputs = attention_inputs(dtype=dtype, num_prefix=num_prefix)
    output = peer(inputs)
    assert output.dtype == dtype
    assert output.shape == inputs.v.shape
    assert output.isfinite().all()


@each_peer
def test_values_of_one_give_outputs_of_one(peer: Attention) -> None:
    inputs = attention_inputs()
    output = peer(replace(inputs, v=torch.ones_like(inputs.v)))
    torch.testing.assert_close(output, torch.ones_like(output), atol=5e-3, rtol=0)  # six iterations leave that much


@each_peer
def test_the_output_of_an_image_does_not_depend_on_its_batch(peer: Attention) -> None:
    inputs = attention_inputs(batch=3)
    inputs.k[1] *= 6  # a neighbour with very sharp attention
    together = peer(inputs)
    for image in range(3):
        q, k, v, x = (each[image : image + 1] for each in (inputs.q, inputs.k, inputs.v, inputs.x))
        alone = peer(replace(inputs, q=q, k=k, v=v, x=x, memo={}))
        torch.testing.assert_close(together[image], alone[0], atol=1e-4, rtol=1e-3)


@each_peer
def test_the_same_inputs_give_the_same_bits(peer: Attention) -> None:
    inputs = attention_inputs()
    assert torch.equal(peer(inputs), peer(replace(inputs, memo={})))


@each_peer
def test_strided_tokens_as_timm_gives_them_change_nothing(peer: Attention) -> None:
    inputs = attention_inputs()
    fused = torch.stack([inputs.q, inputs.k, inputs.v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, D]
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    assert not q.is_contiguous()
    torch.testing.assert_close(peer(replace(inputs, q=q, k=k, v=v, memo={})), peer(inputs), atol=1e-5, rtol=1e-5)


@each_peer
@pytest.mark.parametrize("content", ["zero", "constant", "huge"])
def test_degenerate_images_give_finite_outputs(peer: Attention, content: str) -> None:
    inputs = attention_inputs()
    factor = {"zero": 0.0, "constant": 1.0, "huge": 250.0}[content]
    q, k, v = (
        factor * (each[:, :, :1].expand_as(each) if content == "constant" else each)
        for each in (inputs.q, inputs.k, inputs.v)
    )
    assert peer(replace(inputs, q=q, k=k, v=v, memo={})).isfinite().all()


@each_peer
@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("tokens", [16, 41])
def test_the_macs_are_those_that_a_counter_sees(peer: Attention, num_prefix: int, tokens: int) -> None:
    inputs = attention_inputs(tokens=tokens, num_prefix=num_prefix)
    one = replace(inputs, q=inputs.q[:1], k=inputs.k[:1], v=inputs.v[:1], x=inputs.x[:1])
    assert peer.macs(shape_of(inputs), 1) == count_macs(lambda: peer(one))
    assert peer.macs(shape_of(inputs), 5) == 5 * peer.macs(shape_of(inputs), 1)


@each_peer
def test_a_causal_mask_is_refused(peer: Attention) -> None:
    with pytest.raises(ImpossibleError, match="use attention=exact"):
        peer(attention_inputs(is_causal=True))


@each_peer
def test_a_decoder_is_refused_before_anything_runs(peer: Attention) -> None:
    with pytest.raises(ImpossibleError, match="a causal mask cannot be honoured"):
        peer.check(shape_of(attention_inputs(is_causal=True)))


@pytest.mark.parametrize("peer", [PEERS[0], PEERS[2]], ids=["Nystromformer", "Tome"])
def test_a_key_mask_is_refused_where_every_token_counts(peer: Attention) -> None:
    kept = list(range(12))
    with pytest.raises(ImpossibleError, match="use attention=exact"):
        peer(attention_inputs(mask=key_mask(kept, kept)))


# Nystromformer


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "num_landmarks"), [(17, 7), (40, 13), (17, 17)])
def test_nystromformer_is_its_formula(num_prefix: int, tokens: int, num_landmarks: int) -> None:
    inputs = attention_inputs(tokens=tokens, num_prefix=num_prefix)
    output = Nystromformer(num_landmarks=num_landmarks)(inputs)
    count = num_landmarks - num_prefix
    members = [[token] for token in range(num_prefix)]
    members += [
        [
            num_prefix + patch
            for patch in range(tokens - num_prefix)
            if patch * count // (tokens - num_prefix) == segment
        ]
        for segment in range(count)
    ]
    lengths = {len(segment) for segment in members[num_prefix:]}
    assert max(lengths) - min(lengths) <= 1
    for b in range(2):
        for h in range(3):
            q, k, v = in_float64(inputs, b, h)
            q_l, k_l = (np.stack([each[tokens_of].mean(0) for tokens_of in members]) for each in (q, k))
            a = row_softmax(inputs.scale * q_l @ k_l.T)
            z, one = a.T / a.sum(0).max(), np.eye(num_landmarks)
            for _ in range(6):
                az = a @ z
                z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
            u = row_softmax(inputs.scale * q_l @ k.T) @ v
            expected = row_softmax(inputs.scale * q @ k_l.T) @ z @ u
            np.testing.assert_allclose(output[b, h], expected, atol=5e-5)


def test_one_token_a_segment_and_a_converged_inverse_are_exact_attention() -> None:
    inputs = attention_inputs()
    output = Nystromformer(num_landmarks=17, num_iterations=30)(inputs)
    torch.testing.assert_close(output, Exact()(inputs), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("num_landmarks", "fits"), [(5, False), (6, True), (17, True), (18, False)])
def test_the_segments_must_outnumber_the_prefix_and_not_the_tokens(num_landmarks: int, fits: bool) -> None:
    variant, shape = Nystromformer(num_landmarks=num_landmarks), shape_of(attention_inputs(num_prefix=5))
    if fits:
        variant.check(shape)
    else:
        with pytest.raises(ImpossibleError, match=r"choose 6\.\.17"):
            variant.check(shape)


def test_segments_that_do_not_fit_are_refused_without_a_check_before() -> None:
    for num_landmarks, num_prefix in ((18, 1), (5, 5)):
        with pytest.raises(ImpossibleError, match=f"num_landmarks={num_landmarks} does not fit 17 tokens"):
            Nystromformer(num_landmarks=num_landmarks)(attention_inputs(batch=2, num_prefix=num_prefix))


# Performer


def test_performer_comes_to_exact_attention_with_many_features() -> None:
    inputs = attention_inputs()
    inputs = replace(inputs, q=0.6 * inputs.q, k=0.6 * inputs.v.flip(2))  # the variance grows as exp(|q + k|^2)
    expected = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
    errors = []
    for num_features in (128, 32768):  # 256 times the features are a 16th of the error
        draws = [Performer(num_features=num_features, seed=seed)(inputs).double() for seed in range(5)]
        errors.append(float(np.mean([(draw - expected).norm() / expected.norm() for draw in draws])))
    assert errors[1] < errors[0] / 6
    assert errors[1] < 0.03


def test_performer_loses_no_small_feature_of_long_keys() -> None:
    """They shrink as exp(-|k|^2 / 2) and differ by many orders of magnitude, all of which count for some query."""
    inputs = attention_inputs(num_prefix=0)
    given = replace(inputs, q=2.2 * inputs.q, k=2.2 * inputs.v.flip(2), scale=1.0)
    directions = _directions(256, 8, 0, given.k.device).double()

    def features(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens.double() @ directions.mT - tokens.double().square().sum(-1, keepdim=True) / 2).exp()

    weights = features(given.q) @ features(given.k).mT
    expected = weights / weights.sum(-1, keepdim=True) @ given.v.double()
    torch.testing.assert_close(Performer()(given).double(), expected, atol=1e-3, rtol=1e-3)


def test_performer_s_directions_are_orthogonal_within_a_block_and_depend_on_the_seed() -> None:
    inputs = attention_inputs()
    assert not torch.allclose(Performer(seed=0)(inputs), Performer(seed=1)(inputs))
    directions = _directions(24, 8, 0, torch.device("cpu"))
    for block in directions.split(8):
        gram = block @ block.mT
        torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)


def test_performer_s_masked_keys_might_as_well_not_be_there() -> None:
    kept = [0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 15]
    inputs = attention_inputs(mask=key_mask(kept, kept))
    k, v = inputs.k.clone(), inputs.v.clone()
    k[:, :, 3], v[:, :, 3] = 50, 1e4
    q, fewer_k, fewer_v = (each[:, :, kept] for each in (inputs.q, inputs.k, inputs.v))
    without = replace(inputs, q=q, k=fewer_k, v=fewer_v, x=inputs.x[:, kept], mask=None)
    output = Performer()(replace(inputs, k=k, v=v))[:, :, kept]
    torch.testing.assert_close(output, Performer()(without), atol=1e-5, rtol=1e-5)


def test_performer_gives_zeros_where_no_key_is_allowed_as_exact_attention_does() -> None:
    inputs = attention_inputs(mask=key_mask([], list(range(17))))
    for variant in (Performer(), Exact()):
        output = variant(inputs)
        assert not output[0].any()
        assert output.isfinite().all()


# Token merging


def merged_by_hand(keys: np.ndarray, num_prefix: int, num_merged: int) -> list[list[int]]:
    """The groups of one image, from the head mean of its keys [N, D]."""
    patches = keys[num_prefix:] / np.linalg.norm(keys[num_prefix:], axis=1, keepdims=True)
    closeness = patches[::2] @ patches[1::2].T
    hosts = {token: [token] for token in range(len(keys))}
    for source in np.argsort(-closeness.max(1), kind="stable")[:num_merged]:
        hosts[num_prefix + 2 * int(closeness[source].argmax()) + 1] += hosts.pop(num_prefix + 2 * int(source))
    return list(hosts.values())


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("tokens", [17, 40])
def test_tome_is_its_formula(num_prefix: int, ratio: float, tokens: int) -> None:
    inputs = attention_inputs(tokens=tokens, num_prefix=num_prefix)
    output = Tome(ratio=ratio)(inputs)
    for b in range(2):
        groups = merged_by_hand(inputs.k[b].double().mean(0).numpy(), num_prefix, int(ratio * (tokens - num_prefix)))
        for h in range(3):
            q, k, v = (np.stack([each[group].mean(0) for group in groups]) for each in in_float64(inputs, b, h))
            mass = np.log([len(group) for group in groups])
            expected = row_softmax(inputs.scale * q @ k.T + mass) @ v
            for group, row in zip(groups, expected, strict=True):
                for token in group:
                    np.testing.assert_allclose(output[b, h, token], row, atol=5e-5)


def test_merging_none_is_exact_attention_and_merging_twins_nearly_is() -> None:
    inputs = attention_inputs(tokens=33)
    torch.testing.assert_close(Tome(ratio=0)(inputs), Exact()(inputs))
    q, k, v = (torch.cat([each[:, :, :1], each[:, :, 1::2].repeat_interleave(2, 2)], 2) for each in
               (inputs.q, inputs.k, inputs.v))  # fmt: skip
    twins = replace(inputs, q=q, k=k, v=v)
    torch.testing.assert_close(Tome(ratio=0.5)(twins), Exact()(twins), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_patches", [0, 1, 2, 3])
def test_tome_takes_any_number_of_patches(num_patches: int) -> None:
    inputs = attention_inputs(tokens=2 + num_patches, num_prefix=2)
    assert Tome()(inputs).shape == inputs.v.shape


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Nystromformer, {"num_landmarks": 0}, "num_landmarks=0 must be at least 1"),
        (Nystromformer, {"num_iterations": -1}, "num_iterations=-1 must be at least 0"),
        (Performer, {"num_features": 0}, "num_features=0 must be at least 1"),
        (Tome, {"ratio": 0.6}, r"ratio=0.6 must lie in 0\.\.0.5"),
        (Tome, {"ratio": -0.1}, r"ratio=-0.1 must lie in 0\.\.0.5"),
    ],
)
def test_settings_out_of_range_are_refused(make: type, options: dict[str, float], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make(**options)


@each_peer
def test_nothing_looks_at_the_data_to_choose_a_shape(peer: Attention) -> None:
    assert peer(on_meta(grouped_inputs())).shape == (1, 3, 97, 8)
